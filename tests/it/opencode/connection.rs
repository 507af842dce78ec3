//! Connections that break, servers that die or do not answer.

use mainstay::agent_event::AgentEvent;
use mainstay::driver::Warm;
use mainstay::failure::ErrorClass;
use serde_json::json;
use testkit::fake::opencode::{SESSION, Server};
use tokio::net::TcpListener;

use testkit::within;

use super::{Relay, backend, begins, delta, ends, error_of, message, options, text_of, text_part, turn};

#[tokio::test]
async fn refused_connection_is_a_crash() {
    within(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://opencode:secret@{}", listener.local_addr().unwrap());
        drop(listener);
        let events = Relay::start(turn(&endpoint, None, options())).await.end().await;
        let error = error_of(&events).unwrap();
        assert_eq!(error.class, Some(ErrorClass::Crashed));
        assert!(!error.message.contains("secret"), "{error:?}");
    })
    .await;
}

#[tokio::test]
async fn a_server_that_dies_in_mid_turn_has_crashed() {
    within(async {
        let mut fake = Server::start().await.unwrap();
        let mut relay = Relay::start(turn(&fake.endpoint, None, options())).await;
        let follower = fake.followed().await.unwrap();
        begins(&follower).await;
        relay.says("one ").await;
        fake.die().await;
        follower.cut().await;
        let events = relay.end().await;
        assert_eq!(text_of(&events), "one ");
        assert_eq!(error_of(&events).unwrap().class, Some(ErrorClass::Crashed));
        assert_eq!(events.last(), Some(&AgentEvent::Ended));
    })
    .await;
}

#[tokio::test]
async fn broken_connection_neither_loses_nor_doubles_words() {
    within(async {
        let mut fake = Server::start().await.unwrap();
        let mut relay = Relay::start(turn(&fake.endpoint, None, options())).await;
        let follower = fake.followed().await.unwrap();
        begins(&follower).await;
        relay.says("one ").await;
        let messages = json!([{"info": message("msg_1", "user", false), "parts": []},
            {"info": message("msg_2", "assistant", false), "parts": [text_part("", false),
                {"id": "prt_2", "messageID": "msg_2", "sessionID": SESSION, "type": "tool", "tool": "bash",
                 "callID": "call_1", "state": {"status": "completed", "input": {"command": "ls"}, "output": "a"}}]}]);
        fake.answers("GET /session/ses_new/message", 200, messages);
        let permission = json!({"id": "per_1", "sessionID": SESSION, "permission": "bash"});
        fake.answers("GET /permission", 200, json!([permission]));
        fake.answers("GET /session/status", 200, json!({"ses_new": {"type": "busy"}}));
        follower.cut().await;
        let follower = fake.followed().await.unwrap();
        relay.says("caught_up").await;
        follower.of_session("message.part.delta", delta("three ")).await;
        fake.answers("GET /session/status", 200, json!({}));
        ends(&follower, "one two three ").await;
        let events = relay.end().await;
        assert_eq!(text_of(&events), "one two three ");
        let tools = events.iter().filter(|event| matches!(event, AgentEvent::ToolFinished { .. })).count();
        let permissions = events.iter().filter(|event| matches!(event, AgentEvent::Permission(_))).count();
        assert_eq!((tools, permissions), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn a_turn_that_ended_while_the_connection_was_broken_is_over() {
    within(async {
        let mut fake = Server::start().await.unwrap();
        let mut relay = Relay::start(turn(&fake.endpoint, None, options())).await;
        let follower = fake.followed().await.unwrap();
        begins(&follower).await;
        relay.says("one ").await;
        let messages = json!([{"info": message("msg_2", "assistant", true), "parts": [text_part("one two", true)]}]);
        fake.answers("GET /session/ses_new/message", 200, messages);
        follower.cut().await;
        let _follower = fake.followed().await.unwrap();
        let events = relay.end().await;
        assert_eq!((text_of(&events).as_str(), error_of(&events)), ("one two", None));
    })
    .await;
}

#[tokio::test]
async fn a_server_that_accepts_and_never_answers_holds_up_no_cancel() {
    within(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let relay = Relay::start(turn(&endpoint, None, options())).await;
        let (_silent, _) = listener.accept().await.unwrap();
        relay.terminate();
        let events = relay.end().await;
        assert_eq!(events, [AgentEvent::Ended]);
    })
    .await;
}

#[tokio::test]
async fn a_server_is_well_only_when_it_says_so_in_time() {
    within(async {
        let backend = backend();
        let fake = Server::start().await.unwrap();
        for (answer, is_well) in
            [(json!({"healthy": true}), true), (json!({"healthy": false}), false), (json!(1), false)]
        {
            fake.answers("GET /global/health", 200, answer);
            assert_eq!(backend.probe(&fake.endpoint).await.is_ok(), is_well);
        }
        fake.answers("GET /global/health", 401, json!({"healthy": true}));
        assert!(backend.probe(&fake.endpoint).await.is_err());
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for endpoint in [format!("http://{}", silent.local_addr().unwrap()), "/a/socket".to_owned(), String::new()] {
            assert!(backend.probe(&endpoint).await.is_err(), "{endpoint}");
        }
    })
    .await;
}
