//! The requests to a gateway, and how a turn ends.

use mainstay::agent_event::{AgentEvent, SessionOrigin};
use mainstay::message::Attachment;
use mainstay::run::{Cause, ExitReport};
use serde_json::{Value, json};

use crate::gateway::scene::{FakeGateway, Turn, prompt};

fn done() -> ExitReport {
    ExitReport { code: Some(0), ..ExitReport::default() }
}

fn result(run: &Value) -> Value {
    json!({"runId": run, "status": "ok", "summary": "completed", "result": {"payloads": [], "meta": {
        "agentMeta": {"contextTokens": 100_000, "usage": {"input": 11, "output": 7, "cacheRead": 3, "cacheWrite": 0},
                      "lastCallUsage": {"total": 18}, "costUsd": 0.5},
    }}})
}

#[tokio::test]
async fn a_turn_is_one_run_of_the_slots_agent() {
    let gateway = FakeGateway::start().await;
    let mut turn = Turn::at(gateway.url()).await;
    let mut peer = gateway.accept("b").await;
    let asked = peer.accept_run().await;
    assert_eq!(
        asked,
        json!({"message": "hi {message}", "agentId": "a", "sessionKey": "agent:a:web:s-1",
               "idempotencyKey": turn.run, "timeout": 1830})
    );
    peer.event(&turn.run, 1, "lifecycle", json!({"phase": "start"})).await;
    peer.says(&turn.run, 3, "Hel", "Hel").await;
    // An event of another run, in another session: ignored.
    peer.event(&json!("other"), 4, "assistant", json!({"text": "no", "delta": "no", "itemId": "x"})).await;
    peer.says(&turn.run, 12, "Hello world", "lo world").await;
    peer.event(&turn.run, 13, "lifecycle", json!({"phase": "end", "executionSettled": true})).await;
    peer.answer("agent", result(&turn.run)).await;
    assert_eq!(turn.ends().await, done());
    assert_eq!(turn.text(), "Hello world");
    assert_eq!(turn.errors(), []);
    let session = AgentEvent::Session { id: "gs-1".to_owned(), origin: SessionOrigin::New };
    assert!(turn.events.contains(&session), "{:?}", turn.events);
    let usage = turn.events.iter().find_map(|event| match event {
        AgentEvent::Usage(usage) => Some(usage.clone()),
        _ => None,
    });
    let usage = usage.unwrap();
    assert_eq!((usage.input_tokens, usage.output_tokens, usage.cache_read_tokens), (Some(11), Some(7), Some(3)));
    assert_eq!((usage.cost_usd, usage.context_tokens, usage.context_size), (Some(0.5), Some(18), Some(100_000)));
}

#[tokio::test]
async fn the_gateways_own_session_is_told_from_a_new_one() {
    let gateway = FakeGateway::start().await;
    let mut known = prompt();
    known.place.agent_session = Some("gs-1".to_owned());
    let mut turn = Turn::of(gateway.url(), known).await;
    let mut peer = gateway.accept("b").await;
    peer.accept_run().await;
    peer.event(&turn.run, 1, "lifecycle", json!({"phase": "start"})).await;
    peer.answer("agent", result(&turn.run)).await;
    turn.ends().await;
    let session = AgentEvent::Session { id: "gs-1".to_owned(), origin: SessionOrigin::Resumed };
    assert!(turn.events.contains(&session), "{:?}", turn.events);
}

#[tokio::test]
async fn gateway_token_is_not_readable_by_other_users() {
    let gateway = FakeGateway::start().await;
    let mut turn = Turn::at(gateway.url()).await;
    let mut peer = gateway.accept("b").await;
    peer.accept_run().await;
    let marker = format!("MAINSTAY_RUN={}", turn.run.as_str().unwrap().strip_suffix("-1").unwrap());
    let mut seen = 0;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if String::from_utf8_lossy(&environment).contains(&marker) {
            let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let both = [environment, arguments].concat();
            assert!(!String::from_utf8_lossy(&both).contains("a-token"), "{entry:?}");
            seen += 1;
        }
    }
    assert!(seen > 0, "the relay was not found");
    peer.answer("agent", result(&turn.run)).await;
    turn.ends().await;
}

#[tokio::test]
async fn a_file_goes_along_and_needs_no_text() {
    let gateway = FakeGateway::start().await;
    let file = Attachment {
        media_type: "image/png".to_owned(),
        filename: Some("a.png".to_owned()),
        url: "data:image/png;base64,AAAA".to_owned(),
    };
    let sent = mainstay::process::Prompt { message: String::new(), attachments: vec![file], ..prompt() };
    let mut turn = Turn::of(gateway.url(), sent).await;
    let mut peer = gateway.accept("b").await;
    let asked = peer.accept_run().await;
    let attached = json!([{"type": "image", "mimeType": "image/png", "fileName": "a.png", "content": "AAAA"}]);
    assert_eq!((&asked["message"], &asked["attachments"]), (&json!("Attached: a.png"), &attached));
    peer.answer("agent", result(&turn.run)).await;
    assert_eq!(turn.ends().await, done());
}

#[tokio::test]
async fn cancel_is_sent_to_the_gateway_and_both_ends_awaited() {
    let gateway = FakeGateway::start().await;
    let mut turn = Turn::at(gateway.url()).await;
    let mut peer = gateway.accept("b").await;
    peer.accept_run().await;
    peer.says(&turn.run, 1, "w0", "w0").await;
    turn.hears("w0").await;
    turn.reply.control.stop(Cause::Cancelled);
    let abort = peer.asked("chat.abort").await;
    assert_eq!(abort, json!({"sessionKey": "agent:a:web:s-1", "runId": turn.run}));
    peer.event(&turn.run, 2, "lifecycle", json!({"phase": "end", "status": "cancelled", "aborted": true})).await;
    peer.answer("abort", json!({"ok": true, "aborted": true, "runIds": [turn.run]})).await;
    // The sequence numbers start again.
    peer.event(&turn.run, 1, "lifecycle", json!({"phase": "error", "error": "This operation was aborted"})).await;
    let ended = json!({"runId": turn.run, "status": "timeout", "summary": "aborted", "stopReason": "rpc"});
    peer.answer("agent", ended).await;
    let report = turn.ends().await;
    assert_eq!(report, ExitReport { stopped: Some(Cause::Cancelled), ..done() });
    // Both ends are reported as one error.
    assert_eq!(turn.error().message, "This operation was aborted");
    assert_eq!(turn.text(), "w0");
}

#[tokio::test]
async fn turn_cancelled_before_the_handshake_sends_nothing() {
    let gateway = FakeGateway::start().await;
    let mut turn = Turn::at(gateway.url()).await;
    let peer = gateway.stranger().await;
    turn.reply.control.stop(Cause::Cancelled);
    peer.hears_the_end().await;
    let report = turn.ends().await;
    assert_eq!(report, ExitReport { stopped: Some(Cause::Cancelled), ..done() });
}

#[tokio::test]
async fn turn_outlives_its_engine_and_the_next_hears_all_of_it() {
    let gateway = FakeGateway::start().await;
    let mut turn = Turn::at(gateway.url()).await;
    let mut peer = gateway.accept("b").await;
    peer.accept_run().await;
    peer.says(&turn.run, 1, "one", "one").await;
    turn.hears("one").await;
    let mut turn = turn.goes_on(gateway.url()).await;
    peer.says(&turn.run, 2, "one two", " two").await;
    peer.answer("agent", result(&turn.run)).await;
    assert_eq!(turn.ends().await, done());
    assert_eq!(turn.text(), "one two");
}

#[tokio::test]
async fn an_error_that_the_gateway_gets_over_is_none_of_the_run() {
    for (settled, status, errors) in [(false, "ok", 0), (false, "error", 1), (true, "ok", 1)] {
        let gateway = FakeGateway::start().await;
        let mut turn = Turn::at(gateway.url()).await;
        let mut peer = gateway.accept("b").await;
        peer.accept_run().await;
        let error = json!({"phase": "error", "error": "overloaded", "executionSettled": settled});
        peer.event(&turn.run, 1, "lifecycle", error).await;
        peer.event(&turn.run, 2, "lifecycle", json!({"phase": "start"})).await;
        peer.says(&turn.run, 3, "with another model", "with another model").await;
        peer.event(&turn.run, 4, "lifecycle", json!({"phase": "end"})).await;
        peer.answer("agent", json!({"runId": turn.run, "status": status, "summary": "other words"})).await;
        turn.ends().await;
        let words: Vec<_> = turn.errors().into_iter().map(|error| error.message).collect();
        assert_eq!(words, vec!["overloaded"; errors], "{settled} {status}");
    }
}

#[tokio::test]
async fn a_failed_run_says_once_why() {
    let gateway = FakeGateway::start().await;
    let mut turn = Turn::at(gateway.url()).await;
    let mut peer = gateway.accept("b").await;
    peer.accept_run().await;
    peer.event(&turn.run, 1, "lifecycle", json!({"phase": "error", "error": "no model", "executionSettled": true}))
        .await;
    let error = json!({"code": "UNAVAILABLE", "message": "Error: no model at all"});
    peer.send(json!({"type": "res", "id": "agent", "ok": false, "payload": {"status": "error"}, "error": error})).await;
    assert_eq!(turn.ends().await, done());
    assert_eq!(turn.error().message, "no model");
}
