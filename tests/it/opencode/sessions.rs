//! Which session of the server a turn uses, and with what options.

use mainstay::agent_event::AgentEvent;
use mainstay::driver::relay::RelayedTurn;
use mainstay::options::SessionOptions;
use serde_json::json;
use testkit::fake::opencode::{SESSION, Server};
use tokio::io::AsyncWriteExt;

use testkit::within;

use super::{Relay, begins, ends, error_of, options, session_of, text_of, turn};

#[tokio::test]
async fn a_turn_is_told_from_its_prompt_until_the_server_is_idle() {
    within(async {
        let mut fake = Server::start().await.unwrap();
        let options = SessionOptions {
            mode: Some("build".to_owned()),
            model: Some("p/a/b".to_owned()),
            extra: [("variant".to_owned(), "high".to_owned())].into(),
            ..options()
        };
        let relay = Relay::start(turn(&fake.endpoint, None, options)).await;
        let follower = fake.followed().await.unwrap();
        let asked = fake.asked("POST /session/ses_new/prompt_async").await.unwrap();
        assert_eq!(asked.authorization, "Basic b3BlbmNvZGU6c2VjcmV0");
        assert_eq!(asked.query, "directory=%2Fa%20dir");
        let marker = asked.body.pointer("/parts/0/metadata/mainstay").unwrap();
        for key in ["run", "attempt", "session", "slot"] {
            assert!(marker.get(key).is_some_and(|value| !value.is_null()), "{key}: {marker}");
        }
        let parts = json!([{"type": "text", "text": "hello", "metadata": {"mainstay": marker}},
            {"type": "file", "mime": "text/plain", "url": "data:text/plain,a", "filename": "a.txt"}]);
        let prompt = json!({"parts": parts, "agent": "build", "model": {"providerID": "p", "modelID": "a/b"},
            "variant": "high"});
        assert_eq!(asked.body, prompt);
        // An idle event that belongs to what was before, and the text of another session.
        follower.of_session("session.idle", json!({})).await;
        follower.tell("message.part.delta", json!({"sessionID": "ses_other", "delta": "not ours"})).await;
        begins(&follower).await;
        ends(&follower, "one two").await;
        let events = relay.end().await;
        assert_eq!(session_of(&events), (SESSION.to_owned(), "new"));
        assert_eq!(text_of(&events), "one two");
        assert_eq!((error_of(&events), events.last()), (None, Some(&AgentEvent::Ended)));
        assert!(events.iter().any(|event| matches!(event, AgentEvent::Advertised(_))));
    })
    .await;
}

#[tokio::test]
async fn options_that_the_server_does_not_offer_are_not_pushed() {
    within(async {
        let mut fake = Server::start().await.unwrap();
        let unknown = SessionOptions { mode: Some("helper".to_owned()), model: Some("p/c".to_owned()), ..options() };
        fake.answers("POST /session/ses_new/prompt_async", 400, json!({"data": {"message": "no"}}));
        let relay = Relay::start(turn(&fake.endpoint, None, unknown)).await;
        let _follower = fake.followed().await.unwrap();
        let asked = fake.asked("POST /session/ses_new/prompt_async").await.unwrap();
        assert_eq!((asked.body.get("agent"), asked.body.get("model")), (None, None));
        let events = relay.end().await;
        let labels = events.iter().filter(|event| matches!(event, AgentEvent::Status(_))).count();
        assert_eq!(labels, 2);
        assert_eq!(error_of(&events).unwrap().message, "opencode: HTTP status 400: no");
    })
    .await;
}

#[tokio::test]
async fn a_session_that_the_server_knows_is_gone_on_with() {
    within(async {
        let mut fake = Server::start().await.unwrap();
        fake.answers("GET /session/ses_new", 200, json!({"id": SESSION}));
        fake.answers("GET /session/ses_new/message", 200, json!([{"info": {"id": "msg_0"}, "parts": []}]));
        let relay = Relay::start(turn(&fake.endpoint, Some(SESSION), options())).await;
        let follower = fake.followed().await.unwrap();
        fake.asked("POST /session/ses_new/prompt_async").await.unwrap();
        begins(&follower).await;
        ends(&follower, "one").await;
        assert_eq!(session_of(&relay.end().await), (SESSION.to_owned(), "resumed"));
    })
    .await;
}

#[tokio::test]
async fn a_session_that_the_server_does_not_know_is_replaced() {
    for known in ["ses_gone", "../../etc", "ses_?x=/"] {
        within(async {
            let mut fake = Server::start().await.unwrap();
            let relay = Relay::start(turn(&fake.endpoint, Some(known), options())).await;
            let follower = fake.followed().await.unwrap();
            begins(&follower).await;
            ends(&follower, "one").await;
            assert_eq!(session_of(&relay.end().await), (SESSION.to_owned(), "new"), "{known}");
            fake.asked("POST /session").await.unwrap();
        })
        .await;
    }
}

#[tokio::test]
async fn a_session_for_one_turn_is_removed() {
    within(async {
        let mut fake = Server::start().await.unwrap();
        let relay = Relay::start(RelayedTurn { oneshot: true, ..turn(&fake.endpoint, None, options()) }).await;
        let follower = fake.followed().await.unwrap();
        begins(&follower).await;
        ends(&follower, "one").await;
        fake.asked("DELETE /session/ses_new").await.unwrap();
        relay.end().await;
    })
    .await;
}

#[tokio::test]
async fn permissions_are_answered_and_questions_refused() {
    within(async {
        let mut fake = Server::start().await.unwrap();
        let mut relay = Relay::start(turn(&fake.endpoint, None, options())).await;
        let follower = fake.followed().await.unwrap();
        begins(&follower).await;
        follower.of_session("permission.asked", json!({"id": "per_1", "permission": "bash"})).await;
        relay.says("per_1").await;
        relay.stdin.write_all(b"nonsense\n{\"permission\":\"../x\",\"reply\":\"once\"}\n").await.unwrap();
        relay.stdin.write_all(b"{\"permission\":\"per_1\",\"reply\":\"once\"}\n").await.unwrap();
        let answered = fake.asked("POST /permission/per_1/reply").await.unwrap();
        assert_eq!(answered.body, json!({"reply": "once"}));
        follower.of_session("permission.replied", json!({"requestID": "per_1", "reply": "once"})).await;
        follower.of_session("question.asked", json!({"id": "que_1", "questions": []})).await;
        fake.asked("POST /question/que_1/reject").await.unwrap();
        ends(&follower, "one").await;
        relay.end().await;
    })
    .await;
}
