//! Pages of large rows end by their bytes.

use mainstay::id::PermissionId;
use mainstay::permission::{PermissionRequest, ToolKind};
use mainstay::store::LargeText;
use mainstay::store::event::{Frames, Range};
use mainstay::store::fact::Fact;
use mainstay::store::permission::{NewPermission, PermissionFilter};

use super::Scene;

#[tokio::test]
async fn pages_of_large_events_end_by_their_bytes() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    let claimed = scene.claim(1).await.remove(0);
    let large = "x".repeat(5_000_000);
    for _ in 0..5 {
        scene.store.append(scene.text(&claimed, &large)).await.unwrap().unwrap();
    }
    let range = |after, limit| Range { session: claimed.session, run: None, after, limit };
    let seqs = |events: &[mainstay::event::Event]| events.iter().map(|event| event.seq).collect::<Vec<_>>();
    let page = async |after, limit| {
        let page = scene.store.event_page(range(after, limit)).await.unwrap();
        (seqs(&page.events), page.more)
    };
    // One event, or as many as fit into 4 MiB.
    assert_eq!(page(0, 500).await, (vec![1], true));
    assert_eq!(page(1, 500).await, (vec![2], true));
    assert_eq!(page(5, 500).await, (vec![6], false));
    assert_eq!(page(6, 2).await, (vec![], false));
    assert_eq!(seqs(&scene.store.events(range(0, 500)).await.unwrap()), [1, 2, 3, 4, 5, 6]);
    assert_eq!(seqs(&scene.store.events(range(0, 3)).await.unwrap()), [1, 2, 3]);
    // A stream returns a large event in pieces.
    let frames = async |after| scene.store.frames(range(after, 1000), 1_000_000).await.unwrap();
    assert!(matches!(frames(0).await, Some(Frames::Events { last_seq: 1, .. })));
    let Some(Frames::Large { seq: 2, text }) = frames(1).await else { panic!("it is large") };
    let event = scene.store.events(range(1, 1)).await.unwrap().remove(0);
    assert!(read_in_pieces(&text, 1_500_000).await == event.event.get().as_bytes());
    assert!(frames(6).await.is_none());
    // So does a page, whose event then lacks only that text; other pages have their events complete.
    let page = scene.store.event_page_without_large(range(1, 500)).await.unwrap();
    assert_eq!((seqs(&page.events), page.more, page.events[0].event.get()), (vec![2], true, "null"));
    assert!(read_in_pieces(&page.large.unwrap(), 70_000).await == event.event.get().as_bytes());
    let small = scene.store.event_page_without_large(range(0, 1)).await.unwrap();
    assert!(small.large.is_none() && small.events[0].event.get().starts_with(r#"{"type":"start""#));
}

#[tokio::test]
async fn pages_of_large_permissions_end_by_their_bytes() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    let claimed = scene.claim(1).await.remove(0);
    for number in 0..6 {
        let request = PermissionRequest {
            request: format!("r{number}"),
            tool_call: "t".into(),
            tool: "t".into(),
            kind: ToolKind::Other,
            title: "t".into(),
            input: "x".repeat(if number == 0 { 5_000_000 } else { 1_000_000 }).into(),
            options: Vec::new(),
        };
        let new = NewPermission { id: PermissionId::generate(), request, expires_at: None, decision: None };
        let mut append = scene.text(&claimed, "?");
        append.facts = vec![Fact::Permission(Box::new(new))];
        scene.store.append(append).await.unwrap().unwrap();
    }
    let (mut pages, mut filter) = (Vec::new(), PermissionFilter::default());
    loop {
        let page = scene.store.permission_page(&filter, 500).await.unwrap();
        let asked = page.permissions.iter().map(|(_, permission)| permission.request.request.clone());
        pages.push(asked.collect::<Vec<_>>().join(" "));
        filter.before = page.permissions.last().map(|(cursor, _)| *cursor);
        if !page.more {
            break;
        }
    }
    assert_eq!(pages, ["r5 r4 r3 r2", "r1", "r0"]);
    let page = scene.store.permission_page(&PermissionFilter::default(), 2).await.unwrap();
    assert_eq!((page.permissions.len(), page.more), (2, true));
}

/// A large text, read in pieces of about this size.
async fn read_in_pieces(text: &LargeText, bytes: usize) -> Vec<u8> {
    let mut whole = Vec::new();
    while whole.len() < text.len() {
        whole.extend(text.piece(whole.len(), bytes).await.unwrap());
    }
    whole
}
