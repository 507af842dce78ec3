//! Turns that are cancelled, or were left running by a killed relay.

use std::time::Duration;

use futures_util::FutureExt;
use mainstay::agent_event::AgentEvent;
use mainstay::driver::Driver;
use mainstay::id::RunId;
use mainstay::process::TurnPlace;
use mainstay::run::Attempt;
use serde_json::json;
use testkit::fake::opencode::{SESSION, Server};

use testkit::within;

use super::{Relay, backend, begins, delta, ends, error_of, options, text_of, turn};

#[tokio::test]
async fn turn_of_a_killed_relay_is_ended_before_the_next_prompt() {
    within(async {
        let mut fake = Server::start().await.unwrap();
        fake.answers("GET /session/ses_new", 200, json!({"id": SESSION}));
        fake.answers("GET /session/ses_new/message", 200, json!([]));
        fake.answers("GET /session/status", 200, json!({"ses_new": {"type": "busy"}}));
        let relay = Relay::start(turn(&fake.endpoint, Some(SESSION), options())).await;
        fake.asked("POST /session/ses_new/abort").await.unwrap();
        fake.answers("GET /session/status", 200, json!({}));
        let follower = fake.followed().await.unwrap();
        fake.asked("POST /session/ses_new/prompt_async").await.unwrap();
        begins(&follower).await;
        ends(&follower, "one").await;
        assert_eq!(text_of(&relay.end().await), "one ");
    })
    .await;
}

#[tokio::test]
async fn turn_of_a_killed_relay_is_ended_on_request() {
    within(async {
        let mut fake = Server::start().await.unwrap();
        let place = |agent_session: Option<&str>| TurnPlace {
            attempt: Attempt { run: RunId::generate(), number: 1 },
            session: "s".parse().unwrap(),
            slot: "w".to_owned(),
            workspace: "w".parse().unwrap(),
            dir: "/a dir".into(),
            agent_session: agent_session.map(str::to_owned),
            endpoint: Some(fake.endpoint.clone()),
        };
        let (known, unknown) = (place(Some(SESSION)), place(None));
        let backend = backend();
        fake.answers("GET /session/status", 200, json!({"ses_new": {"type": "busy"}}));
        let mut ended = tokio::spawn({
            let (backend, known) = (backend.clone(), known.clone());
            async move { backend.end_turn(&known).await }
        });
        // The first abort is always sent, the second because the session is still busy.
        fake.asked("POST /session/ses_new/abort").await.unwrap();
        fake.asked("POST /session/ses_new/abort").await.unwrap();
        assert!((&mut ended).now_or_never().is_none());
        fake.answers("GET /session/status", 200, json!({}));
        assert_eq!(ended.await.unwrap(), Ok(()));
        assert_eq!(backend.end_turn(&unknown).await, Ok(()), "its prompt was not sent");
        fake.answers("POST /session/ses_new/abort", 500, json!({}));
        assert!(backend.end_turn(&known).await.is_err());
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_turn_is_aborted_and_heard_to_its_end() {
    within(async {
        let mut fake = Server::start().await.unwrap();
        let mut relay = Relay::start(turn(&fake.endpoint, None, options())).await;
        let follower = fake.followed().await.unwrap();
        begins(&follower).await;
        let asked = json!({"id": "per_1", "permission": "bash"});
        follower.of_session("permission.asked", asked).await;
        relay.says("per_1").await;
        let go = fake.holds("POST /session/ses_new/abort");
        relay.terminate();
        fake.asked("POST /session/ses_new/abort").await.unwrap();
        go.send(()).unwrap();
        let aborted = json!({"error": {"name": "MessageAbortedError", "data": {"message": "Aborted"}}});
        follower.of_session("session.error", aborted).await;
        follower.of_session("session.idle", json!({})).await;
        // The server reports the end of the message after its first idle.
        ends(&follower, "one two").await;
        let rejected = fake.asked("POST /permission/per_1/reply").await.unwrap();
        assert_eq!(rejected.body, json!({"reply": "reject"}));
        let events = relay.end().await;
        assert_eq!((text_of(&events).as_str(), error_of(&events)), ("one two", None));
        assert_eq!(events.last(), Some(&AgentEvent::Ended));
    })
    .await;
}

#[tokio::test]
async fn turn_with_unread_output_is_aborted() {
    within(async {
        let mut fake = Server::start().await.unwrap();
        let mut relay = Relay::start(turn(&fake.endpoint, None, options())).await;
        let follower = fake.followed().await.unwrap();
        begins(&follower).await;
        relay.says("one ").await;
        let flood = "x".repeat(1024 * 1024);
        for _ in 0..3 {
            follower.of_session("message.part.delta", delta(&flood)).await;
        }
        relay.says_more().await;
        relay.terminate();
        fake.asked("POST /session/ses_new/abort").await.unwrap();
        let ended = tokio::spawn(relay.end());
        ends(&follower, &format!("one {}", flood.repeat(3))).await;
        let events = ended.await.unwrap();
        assert_eq!(text_of(&events).len(), "one ".len() + 3 * flood.len());
        assert_eq!(events.last(), Some(&AgentEvent::Ended));
    })
    .await;
}

#[tokio::test]
async fn a_relay_whose_host_is_gone_aborts_the_turn() {
    within(async {
        let mut fake = Server::start().await.unwrap();
        let mut relay = Relay::start(turn(&fake.endpoint, None, options())).await;
        let follower = fake.followed().await.unwrap();
        begins(&follower).await;
        relay.says("one ").await;
        drop(relay.lines);
        // A process between fork and exec may hold the pipe open for a moment, so that the first word is accepted.
        let talk = tokio::spawn(async move {
            loop {
                follower.of_session("message.part.delta", delta("two ")).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        fake.asked("POST /session/ses_new/abort").await.unwrap();
        talk.abort();
        drop(relay.stdin);
        relay.child.wait().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_turn_that_is_cancelled_while_it_is_prompted_is_aborted() {
    within(async {
        let mut fake = Server::start().await.unwrap();
        let go = fake.holds("POST /session/ses_new/prompt_async");
        let relay = Relay::start(turn(&fake.endpoint, None, options())).await;
        let follower = fake.followed().await.unwrap();
        fake.asked("POST /session/ses_new/prompt_async").await.unwrap();
        relay.terminate();
        go.send(()).unwrap();
        fake.asked("POST /session/ses_new/abort").await.unwrap();
        // The server begins only now: the abort had no effect.
        begins(&follower).await;
        fake.asked("POST /session/ses_new/abort").await.unwrap();
        ends(&follower, "one").await;
        assert_eq!(relay.end().await.last(), Some(&AgentEvent::Ended));
    })
    .await;
}
