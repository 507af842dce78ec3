//! Messages that are edited, replaced and regenerated.

use std::time::Duration;

use mainstay::id::MessageId;
use mainstay::message::UserMessage;
use mainstay::run::{Outcome, Status};
use mainstay::store::run::Purpose;
use mainstay::workspace::WhenFull;

use super::Scene;

#[tokio::test]
async fn regenerate_replaces_the_answer_edit_replaces_what_follows() {
    let scene = Scene::new(1).await;
    let shown = async || {
        let key = scene.store.find_session_key(&"s".parse().unwrap()).await.unwrap().unwrap();
        let start = mainstay::store::message::MessageCursor::START;
        let page = scene.store.list_messages(key, start, 100, false).await.unwrap();
        page.messages.into_iter().map(|message| message.id).collect::<Vec<MessageId>>()
    };
    let mut answers = Vec::new();
    for message in ["m1", "m2"] {
        answers.push(scene.send("s", message).await.run.run.response_id);
        scene.settle(&scene.claim(1).await[0], Outcome::completed()).await.unwrap();
    }
    let (m1, m2): (MessageId, MessageId) = ("m1".parse().unwrap(), "m2".parse().unwrap());
    assert_eq!(shown().await, [m1.clone(), answers[0].clone(), m2.clone(), answers[1].clone()]);

    let mut again = scene.enqueue_request("s", "m2");
    again.purpose = Purpose::Regenerate;
    let third = scene.store.enqueue(again.clone()).await.unwrap().unwrap();
    let same = scene.store.enqueue(again).await.unwrap().unwrap();
    assert_eq!((third.created, same.created, third.run.run.id), (true, false, same.run.run.id));
    scene.settle(&scene.claim(1).await[0], Outcome::completed()).await.unwrap();
    assert_eq!(shown().await, [m1.clone(), answers[0].clone(), m2, third.run.run.response_id]);

    let mut edit = scene.enqueue_request("s", "m1");
    edit.purpose = Purpose::Edit;
    edit.message = UserMessage::text(m1.clone(), "another text").unwrap();
    let fourth = scene.store.enqueue(edit).await.unwrap().unwrap();
    assert_eq!(shown().await, std::slice::from_ref(&m1));
    scene.settle(&scene.claim(1).await[0], Outcome::completed()).await.unwrap();
    assert_eq!(shown().await, [m1, fourth.run.run.response_id]);
}

#[tokio::test]
async fn an_edit_of_a_queued_message_keeps_what_is_queued_behind() {
    let scene = Scene::new(1).await;
    for message in ["m1", "m2", "m3"] {
        scene.send("s", message).await;
    }
    let running = scene.claim(1).await.remove(0);
    let mut edit = scene.enqueue_request("s", "m2");
    edit.purpose = Purpose::Edit;
    edit.message = UserMessage::text("m2".parse().unwrap(), "another text").unwrap();
    let edited = scene.store.enqueue(edit).await.unwrap().unwrap();
    assert!(!edited.created, "it waits, and its run takes the new text");
    let runs = async || {
        let runs = scene.store.list_runs(&Default::default(), 10).await.unwrap();
        runs.into_iter()
            .rev()
            .map(|located| (located.run.message_id.to_string(), located.run.status))
            .collect::<Vec<_>>()
    };
    let expect =
        |runs: &[(&str, Status)]| runs.iter().map(|(id, status)| ((*id).to_owned(), *status)).collect::<Vec<_>>();
    let (busy, queued, cancelled) = (Status::Running, Status::Queued, Status::Cancelled);
    assert_eq!(runs().await, expect(&[("m1", busy), ("m2", queued), ("m3", queued)]));
    scene.settle(&running, Outcome::completed()).await.unwrap();
    let claimed = scene.claim(1).await.remove(0);
    assert_eq!(claimed.run, edited.run.run.id);
    assert!(claimed.message_parts.contains("another text"), "it is answered as it reads now");
    let mut edit = scene.enqueue_request("s", "m1");
    edit.purpose = Purpose::Edit;
    edit.message = UserMessage::text("m1".parse().unwrap(), "another text").unwrap();
    scene.store.enqueue(edit).await.unwrap().unwrap();
    let all = [("m1", Status::Completed), ("m2", busy), ("m3", cancelled), ("m1", queued)];
    assert_eq!(runs().await, expect(&all));
}

#[tokio::test]
async fn waiting_session_keeps_its_turn_when_its_message_is_replaced() {
    let scene = Scene::new(1).await;
    scene.send("a", "m1").await;
    let mut request = scene.enqueue_request("b", "m1");
    request.when_full = WhenFull::Wait;
    scene.store.enqueue(request.clone()).await.unwrap().unwrap();
    scene.clock.advance(Duration::from_secs(1));
    let mut behind = scene.enqueue_request("c", "m1");
    behind.when_full = WhenFull::Wait;
    scene.store.enqueue(behind).await.unwrap().unwrap();
    scene.clock.advance(Duration::from_secs(1));
    request.purpose = Purpose::Edit;
    request.message = UserMessage::text("m1".parse().unwrap(), "another text").unwrap();
    scene.store.enqueue(request).await.unwrap().unwrap();
    scene.store.close_session("a".parse().unwrap(), true).await.unwrap().unwrap();
    assert_eq!(scene.claim(8).await[0].session_id.as_str(), "b");
}

#[tokio::test]
async fn an_answer_to_what_was_replaced_while_it_ran_is_not_shown() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    let old = scene.claim(1).await.remove(0);
    let mut edit = scene.enqueue_request("s", "m1");
    edit.purpose = Purpose::Edit;
    edit.message = UserMessage::text("m1".parse().unwrap(), "another text").unwrap();
    let new = scene.store.enqueue(edit).await.unwrap().unwrap();
    scene.settle(&old, Outcome::completed()).await.unwrap();
    scene.settle(&scene.claim(1).await[0], Outcome::completed()).await.unwrap();
    assert_eq!(scene.shown("s").await, ["m1", new.run.run.response_id.as_str()]);
}

#[tokio::test]
async fn hidden_message_answered_again_is_shown_with_its_answer() {
    let scene = Scene::new(1).await;
    for message in ["m1", "m2"] {
        scene.send("s", message).await;
        scene.settle(&scene.claim(1).await[0], Outcome::completed()).await.unwrap();
    }
    let mut answers = Vec::new();
    for message in ["m1", "m2"] {
        let mut again = scene.enqueue_request("s", message);
        again.purpose = Purpose::Regenerate;
        answers.push(scene.store.enqueue(again).await.unwrap().unwrap().run.run.response_id);
        scene.settle(&scene.claim(1).await[0], Outcome::completed()).await.unwrap();
    }
    assert_eq!(scene.shown("s").await, ["m1", answers[0].as_str(), "m2", answers[1].as_str()]);
}
