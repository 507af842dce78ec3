//! Sessions: titles, parents, and the agent's own session.

use std::sync::Arc;

use mainstay::id::SessionId;
use mainstay::run::{Cause, Outcome};
use mainstay::store::event::Append;
use mainstay::store::fact::Fact;
use mainstay::store::run::Claimed;
use mainstay::store::session::{NamedValues, NewSession};
use mainstay::text::AgentSessionId;

use super::Scene;

#[tokio::test]
async fn agent_does_not_change_a_title_that_a_user_gave() {
    let scene = Scene::new(1).await;
    let (id, text) = (|| "s".parse::<SessionId>().unwrap(), |title: &str| Some(title.to_owned()));
    let sent = scene.enqueue_request("s", "m1");
    let new = NewSession { title: text("at the beginning"), ..sent.new.clone() };
    scene.store.create_session(id(), new, NamedValues::default()).await.unwrap();
    scene.store.enqueue(sent).await.unwrap().unwrap();
    let claimed = scene.claim(1).await.remove(0);
    let says = async |title: &str| {
        let append = Append { facts: vec![Fact::Title(title.to_owned())], ..scene.text(&claimed, "a") };
        scene.store.append(append).await.unwrap().unwrap();
        scene.store.find_session(&id()).await.unwrap().unwrap().title
    };
    assert_eq!(says("one").await, text("at the beginning"));
    assert!(scene.store.update_session(id(), Some(None), None).await.unwrap());
    assert_eq!(scene.store.find_session(&id()).await.unwrap().unwrap().title, None);
    assert_eq!(says("two").await, text("two"));
    assert_eq!(says("three").await, text("three"));
    assert!(scene.store.update_session(id(), Some(text("later")), None).await.unwrap());
    assert_eq!(says("four").await, text("later"));
    assert!(scene.store.update_session(id(), None, Some(1000)).await.unwrap());
    assert_eq!(says("five").await, text("later"));
}

#[tokio::test]
async fn run_gives_up_one_agent_session_that_was_there_before() {
    let scene = Scene::new(1).await;
    let own = |id: &str| Fact::AgentSession { id: id.parse().unwrap(), origin: "new" };
    let said =
        |claimed: &Claimed, facts| Append { facts, events: Arc::default(), said: false, ..scene.text(claimed, "") };
    scene.send("s", "m1").await;
    let claimed = scene.claim(1).await.remove(0);
    assert!(!scene.store.put_back_afresh(claimed.lease).await.unwrap(), "there is none to give up");
    scene.store.append(said(&claimed, vec![own("first")])).await.unwrap().unwrap();
    assert!(!scene.store.put_back_afresh(claimed.lease).await.unwrap(), "its agent said that it is in it");
    scene.settle(&claimed, Outcome::completed()).await.unwrap();

    scene.send("s", "m2").await;
    let old = scene.claim(1).await.remove(0);
    assert_eq!(old.agent_session.as_ref().map(AgentSessionId::as_str), Some("first"));
    assert!(scene.store.put_back_afresh(old.lease).await.unwrap());
    assert!(!scene.store.put_back_afresh(old.lease).await.unwrap(), "the lease is gone");
    let again = scene.claim(1).await.remove(0);
    assert_eq!((again.run, again.agent_session.as_ref().map(AgentSessionId::as_str)), (old.run, None));
    scene.store.append(said(&again, vec![own("second")])).await.unwrap().unwrap();
    assert!(!scene.store.put_back_afresh(again.lease).await.unwrap(), "once is enough");
    let mut spoken = scene.text(&again, "a");
    spoken.source_offset = 20;
    scene.store.append(spoken).await.unwrap().unwrap();
    scene.settle(&again, Outcome::because(Cause::ExitCode, "code 1")).await.unwrap();

    let history = scene.store.list_agent_sessions(again.session, 10).await.unwrap();
    let history: Vec<_> = history.iter().map(|one| (one.id.as_str(), one.lost_in)).collect();
    assert_eq!(history, [("second", None), ("first", Some(old.run))]);
    let session = scene.store.find_session(&"s".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(session.agent_session.unwrap().id, "second");

    // A turn that has spoken is never retried, and neither is one that is being cancelled.
    scene.send("s", "m3").await;
    let claimed = scene.claim(1).await.remove(0);
    scene.store.append(scene.text(&claimed, "a")).await.unwrap().unwrap();
    assert!(!scene.store.put_back_afresh(claimed.lease).await.unwrap());
    scene.settle(&claimed, Outcome::completed()).await.unwrap();
    let sent = scene.send("s", "m4").await;
    let claimed = scene.claim(1).await.remove(0);
    scene.store.cancel_run(sent.run.run.id).await.unwrap();
    assert!(!scene.store.put_back_afresh(claimed.lease).await.unwrap());
}

#[tokio::test]
async fn run_cancelled_before_a_word_keeps_the_agent_session() {
    let scene = Scene::new(1).await;
    scene.send("s", "m1").await;
    let claimed = scene.claim(1).await.remove(0);
    let known = vec![Fact::AgentSession { id: "first".parse().unwrap(), origin: "new" }];
    scene.store.append(Append { facts: known, ..scene.text(&claimed, "a") }).await.unwrap().unwrap();
    scene.settle(&claimed, Outcome::completed()).await.unwrap();
    for id in ["m2", "m3"] {
        let sent = scene.send("s", id).await;
        let claimed = scene.claim(1).await.remove(0);
        assert_eq!(claimed.agent_session.as_ref().map(AgentSessionId::as_str), Some("first"), "{id}");
        assert!(scene.store.put_back_afresh(claimed.lease).await.unwrap());
        if id == "m2" {
            scene.store.cancel_run(sent.run.run.id).await.unwrap();
        } else {
            let again = scene.claim(1).await.remove(0);
            scene.store.cancel_run(sent.run.run.id).await.unwrap();
            scene.settle(&again, Outcome::cancelled()).await.unwrap();
        }
        let kept = scene.store.find_session(&"s".parse().unwrap()).await.unwrap().unwrap().agent_session.unwrap();
        assert_eq!((kept.id.as_str(), kept.lost_in), ("first", None), "{id}");
    }
}

#[tokio::test]
async fn a_session_is_never_its_own_parent() {
    let scene = Scene::new(1).await;
    let new = |parent: Option<&str>| NewSession {
        spawned_by: parent.map(|id| id.parse().unwrap()),
        ..NewSession::of("default".parse().unwrap(), "demo".parse().unwrap(), 1000)
    };
    for (id, parent) in [("a", None), ("b", Some("a"))] {
        scene.store.create_session(id.parse().unwrap(), new(parent), NamedValues::default()).await.unwrap();
    }
    let other = rusqlite::Connection::open(&scene.path).unwrap();
    for sql in [
        "UPDATE sessions SET spawned_by = (SELECT key FROM sessions WHERE id = 'b') WHERE id = 'a'",
        "UPDATE sessions SET spawned_by = NULL WHERE id = 'b'",
        "INSERT INTO sessions (key, id, workspace, agent, idle_ttl_ms, created_at, updated_at, spawned_by)
         VALUES (99, 'c', 'w', 'a', 1, 0, 0, 99)",
    ] {
        assert!(other.execute(sql, []).is_err(), "{sql}");
    }
}
