//! Gateways that are not there, refuse, disconnect, send nonsense, or never end.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use mainstay::agent::{DriverConfig, GatewaySpec};
use mainstay::agent_event::AgentEvent;
use mainstay::catalogue::Found;
use mainstay::driver::relay::RelayedTurn;
use mainstay::driver::{Driver, open};
use mainstay::failure::ErrorClass;
use mainstay::process::End;
use mainstay::run::Cause;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use testkit::fake::gateway::challenge;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::gateway::scene::{FakeGateway, TIMEOUT, TOKEN, Turn, backend, prompt, within};

#[tokio::test]
async fn missing_gateway_is_told_with_what_to_do() {
    let gateway = FakeGateway::start().await;
    let url = gateway.url();
    drop(gateway);
    let mut turn = Turn::at(url).await;
    assert_eq!(turn.ends().await.code, Some(0));
    let error = turn.error();
    assert_eq!(error.class, Some(ErrorClass::AgentMissing));
    assert!(error.message.contains("openclaw gateway run"), "{error:?}");
}

#[tokio::test]
async fn a_wrong_token_is_a_failure_of_authentication() {
    let gateway = FakeGateway::start().await;
    let mut turn = Turn::at(gateway.url()).await;
    let mut peer = gateway.stranger().await;
    peer.send(challenge()).await;
    peer.asked("connect").await;
    let error = json!({"code": "INVALID_REQUEST", "message": "unauthorized: gateway token mismatch",
        "details": {"code": "AUTH_TOKEN_MISMATCH"}});
    peer.send(json!({"type": "res", "id": "connect", "ok": false, "error": error})).await;
    assert_eq!(turn.ends().await.code, Some(0));
    let error = turn.error();
    assert_eq!(error.class, Some(ErrorClass::Authentication));
    assert!(error.message.contains("token mismatch") && !error.message.contains("a-token"), "{error:?}");
}

#[tokio::test]
async fn a_policy_violation_before_the_consent_is_one_too() {
    let gateway = FakeGateway::start().await;
    let mut turn = Turn::at(gateway.url()).await;
    let mut peer = gateway.stranger().await;
    let close = CloseFrame { code: CloseCode::Policy, reason: "unauthorized".into() };
    within(peer.connection.socket.close(Some(close))).await.unwrap();
    turn.ends().await;
    assert_eq!(turn.error().class, Some(ErrorClass::Authentication));
}

#[tokio::test]
async fn what_is_no_gateway_is_a_failure_of_the_protocol() {
    let gateway = FakeGateway::start().await;
    let mut turn = Turn::at(gateway.url()).await;
    let (mut socket, _) = within(gateway.listener.accept()).await.unwrap();
    let mut request = [0; 1024];
    assert!(within(socket.read(&mut request)).await.unwrap() > 0);
    within(socket.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")).await.unwrap();
    turn.ends().await;
    let error = turn.error();
    assert_eq!(error.class, Some(ErrorClass::Protocol));
    assert!(error.message.contains("404"), "{error:?}");
}

#[tokio::test]
async fn a_gateway_that_ends_before_it_took_us_in_has_crashed() {
    for is_greeted in [false, true] {
        let gateway = FakeGateway::start().await;
        let mut turn = Turn::at(gateway.url()).await;
        if is_greeted {
            drop(gateway.stranger().await);
        } else {
            let (mut socket, _) = within(gateway.listener.accept()).await.unwrap();
            // Unread input would make the close a reset.
            let mut request = [0; 4096];
            assert!(within(socket.read(&mut request)).await.unwrap() > 0);
        }
        turn.ends().await;
        let error = turn.error();
        assert_eq!(error.class, Some(ErrorClass::Crashed), "{error:?}");
        assert!(error.message.contains("closed the connection"), "{error:?}");
    }
}

#[tokio::test]
async fn only_a_gateway_that_accepts_us_is_found() {
    let gateway = FakeGateway::start().await;
    let spec = GatewaySpec { url: gateway.url(), token: Some(TOKEN.to_owned()), agent: "a".to_owned() };
    let driver = DriverConfig::OpenclawGateway(spec);
    let look = || within(open::look(&driver, Path::new("/"), Instant::now() + TIMEOUT));
    let (found, _) = tokio::join!(look(), gateway.accept("b"));
    assert_eq!(found, Ok(Found { at: gateway.url(), version: Some("1".to_owned()) }));

    let (refused, ()) = tokio::join!(look(), async {
        let mut peer = gateway.stranger().await;
        peer.send(challenge()).await;
        peer.asked("connect").await;
        let error = json!({"message": "gateway token mismatch", "details": {"code": "AUTH_TOKEN_MISMATCH"}});
        peer.send(json!({"type": "res", "id": "connect", "ok": false, "error": error})).await;
        peer.hears_the_end().await;
    });
    let refused = refused.unwrap_err();
    assert!(refused.contains("token mismatch") && refused.contains("correct `token`"), "{refused}");

    let (stranger, ()) = tokio::join!(look(), async {
        let (mut socket, _) = within(gateway.listener.accept()).await.unwrap();
        let mut request = [0; 1024];
        assert!(within(socket.read(&mut request)).await.unwrap() > 0);
        within(socket.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")).await.unwrap();
    });
    assert!(stranger.unwrap_err().contains("HTTP status 404"));

    drop(gateway);
    assert!(look().await.unwrap_err().contains("no OpenClaw gateway can be reached"));
}

#[tokio::test]
async fn a_gateway_that_is_starting_is_waited_for() {
    let gateway = FakeGateway::start().await;
    let mut turn = Turn::at(gateway.url()).await;
    let mut peer = gateway.stranger().await;
    peer.send(challenge()).await;
    peer.asked("connect").await;
    let error = json!({"code": "UNAVAILABLE", "message": "starting", "retryable": true, "retryAfterMs": 1});
    peer.send(json!({"type": "res", "id": "connect", "ok": false, "error": error})).await;
    let mut peer = gateway.accept("b").await;
    peer.accept_run().await;
    peer.answer("agent", json!({"runId": turn.run, "status": "ok"})).await;
    turn.ends().await;
    assert_eq!(turn.errors(), []);
}

#[tokio::test]
async fn run_is_followed_over_a_broken_connection_once() {
    let gateway = FakeGateway::start().await;
    let mut turn = Turn::at(gateway.url()).await;
    let mut peer = gateway.accept("b").await;
    peer.accept_run().await;
    peer.says(&turn.run, 3, "one", "one").await;
    turn.hears("one").await;
    drop(peer);
    let mut peer = gateway.accept("b").await;
    assert_eq!(peer.asked("sessions.messages.subscribe").await, json!({"key": "agent:a:web:s-1"}));
    assert_eq!(peer.asked("agent.wait").await["runId"], turn.run);
    // " two" was said while no client was connected; its tool is reported under another name.
    peer.says(&turn.run, 3, "one", "one").await;
    let tool = json!({"phase": "start", "name": "exec", "toolCallId": "t", "args": {}});
    let payload = json!({"runId": turn.run, "stream": "tool", "data": tool, "seq": 5});
    peer.send(json!({"type": "event", "event": "session.tool", "payload": payload})).await;
    peer.says(&turn.run, 8, "one two three", " three").await;
    peer.answer("wait-1", json!({"runId": turn.run, "status": "timeout", "timeoutPhase": "gateway_draining"})).await;
    peer.asked("agent.wait").await;
    let end = json!({"phase": "end", "terminalReply": {"disposition": "visible", "text": "one two three four"}});
    peer.event(&turn.run, 9, "lifecycle", end).await;
    peer.answer("wait-2", json!({"runId": turn.run, "status": "ok", "endedAt": 1})).await;
    assert_eq!(turn.ends().await.code, Some(0));
    assert_eq!((turn.text().as_str(), turn.errors()), ("one two three four", vec![]));
    assert!(turn.events.iter().any(|event| matches!(event, AgentEvent::ToolStarted { .. })), "{:?}", turn.events);
}

#[tokio::test]
async fn run_that_ended_while_unwatched_is_told_from_its_history() {
    let gateway = FakeGateway::start().await;
    let mut turn = Turn::at(gateway.url()).await;
    let mut peer = gateway.accept("b").await;
    peer.accept_run().await;
    peer.says(&turn.run, 3, "one", "one").await;
    turn.hears("one").await;
    drop(peer);
    let mut peer = gateway.accept("b").await;
    peer.asked("sessions.messages.subscribe").await;
    peer.asked("agent.wait").await;
    peer.answer("wait-1", json!({"runId": turn.run, "status": "ok", "endedAt": 1})).await;
    peer.asked("chat.history").await;
    let said = json!([{"type": "text", "text": "one two"}]);
    let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": said}]);
    peer.answer("history", json!({"messages": messages})).await;
    assert_eq!(turn.ends().await.code, Some(0));
    assert_eq!((turn.text().as_str(), turn.errors()), ("one two", vec![]));
}

#[tokio::test]
async fn unanswered_request_is_repeated_with_the_same_key() {
    let gateway = FakeGateway::start().await;
    let mut turn = Turn::at(gateway.url()).await;
    let mut peer = gateway.accept("b").await;
    let first = peer.asked("agent").await;
    drop(peer);
    let mut peer = gateway.accept("b").await;
    assert_eq!(peer.asked("agent").await, first);
    peer.answer("agent", json!({"runId": turn.run, "status": "in_flight"})).await;
    // The response to the first request went to the first connection.
    peer.asked("agent.wait").await;
    peer.event(&turn.run, 1, "lifecycle", json!({"phase": "end"})).await;
    peer.answer("wait-1", json!({"runId": turn.run, "status": "ok", "endedAt": 1})).await;
    turn.ends().await;
    assert_eq!(turn.errors(), []);
}

#[tokio::test]
async fn a_gateway_that_was_restarted_is_not_asked_to_begin_anew() {
    let gateway = FakeGateway::start().await;
    let mut turn = Turn::at(gateway.url()).await;
    let mut peer = gateway.accept("b").await;
    peer.accept_run().await;
    peer.says(&turn.run, 3, "one", "one").await;
    drop(peer);
    gateway.accept("c").await.hears_the_end().await;
    turn.ends().await;
    assert_eq!((turn.text().as_str(), turn.error().class), ("one", Some(ErrorClass::Crashed)));
}

#[tokio::test]
async fn garbage_is_counted_and_ends_nothing() {
    let gateway = FakeGateway::start().await;
    let mut turn = Turn::at(gateway.url()).await;
    let mut peer = gateway.accept("b").await;
    peer.accept_run().await;
    for garbage in ["", "{", "null", "[]", "7", "{\"type\":\"event\",\"event\":\"agent\",\n\"payload\":", "\u{0}\u{1}"]
    {
        peer.send_text(garbage.to_owned()).await;
    }
    within(futures_util::SinkExt::send(&mut peer.connection.socket, Message::binary(vec![0xff; 1000]))).await.unwrap();
    peer.send(json!({"type": "event", "event": "agent", "payload": {"runId": turn.run, "stream": 7}})).await;
    // Half a surrogate pair must not make another run's words count as this run's.
    peer.send_text(
        r#"{"type":"event","event":"agent","payload":{"runId":"r","stream":"assistant","data":{"delta":"no \ud83d","text":"no \ud83d"}}}"#
            .to_owned(),
    )
    .await;
    peer.send(json!({"type": "res", "id": "nobody", "ok": 5})).await;
    peer.send(json!({"type": "res", "id": "wait-99", "ok": true, "payload": {"status": "timeout"}})).await;
    peer.says(&turn.run, 3, "one", "one").await;
    peer.answer("agent", json!({"runId": turn.run, "status": "ok"})).await;
    let report = turn.ends().await;
    assert_eq!((report.code, turn.text().as_str(), turn.errors()), (Some(0), "one", vec![]));
    assert!(report.malformed_lines >= 3, "{report:?}");
}

#[tokio::test]
async fn unconfirmed_cancel_leaves_the_gateway() {
    let gateway = FakeGateway::start().await;
    let mut turn = Turn::with_grace(gateway.url(), prompt(), Duration::from_millis(200)).await;
    let mut peer = gateway.accept("b").await;
    peer.accept_run().await;
    peer.says(&turn.run, 3, "one", "one").await;
    turn.hears("one").await;
    turn.reply.control.stop(Cause::IdleTimeout);
    peer.asked("chat.abort").await;
    let report = turn.ends().await;
    assert_eq!((report.stopped, report.signal), (Some(Cause::IdleTimeout), Some(9)));
}

#[tokio::test]
async fn run_cancelled_before_acceptance_is_cancelled_on_acceptance() {
    let gateway = FakeGateway::start().await;
    let mut turn = Turn::at(gateway.url()).await;
    let mut peer = gateway.accept("b").await;
    let asked = peer.asked("agent").await;
    turn.reply.control.stop(Cause::Cancelled);
    peer.asked("chat.abort").await;
    peer.answer("abort", json!({"ok": true, "aborted": false, "runIds": []})).await;
    peer.answer("agent", json!({"runId": asked["idempotencyKey"], "status": "accepted", "acceptedAt": 1})).await;
    peer.asked("chat.abort").await;
    peer.answer("abort", json!({"ok": true, "aborted": true, "runIds": [turn.run]})).await;
    peer.event(&turn.run, 1, "lifecycle", json!({"phase": "end", "status": "cancelled", "aborted": true})).await;
    peer.answer("agent", json!({"runId": turn.run, "status": "timeout", "stopReason": "rpc"})).await;
    let report = turn.ends().await;
    assert_eq!((report.stopped, report.code), (Some(Cause::Cancelled), Some(0)));
}

#[tokio::test]
async fn run_with_unread_output_is_cancelled() {
    let gateway = FakeGateway::start().await;
    let prompt = prompt();
    let run = json!(format!("{}-1", prompt.place.attempt.run));
    let turn = RelayedTurn::new(&prompt, gateway.url());
    let told = json!({"turn": turn, "key": run, "agent": "a", "token": TOKEN, "limit_s": 1800});
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command.args(["relay", "openclaw-gateway"]).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut relay = command.spawn().unwrap();
    relay.stdin.as_mut().unwrap().write_all(format!("{told}\n").as_bytes()).await.unwrap();
    let mut peer = gateway.accept("b").await;
    peer.accept_run().await;
    let flood = "x".repeat(2 * 1024 * 1024);
    peer.says(&run, 1, &flood, &flood).await;
    let mut stdout = relay.stdout.take().unwrap();
    let mut said = vec![within(stdout.read_u8()).await.unwrap()];
    let pid = Pid::from_raw(relay.id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    peer.asked("chat.abort").await;
    peer.event(&run, 2, "lifecycle", json!({"phase": "end", "status": "cancelled", "aborted": true})).await;
    peer.answer("agent", json!({"runId": run, "status": "timeout", "stopReason": "rpc"})).await;
    within(stdout.read_to_end(&mut said)).await.unwrap();
    assert_eq!(within(relay.wait()).await.unwrap().code(), Some(0));
    let last = said.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(last).unwrap()["payload"]["stopReason"], "rpc");
}

#[tokio::test]
async fn a_run_whose_host_was_killed_is_cancelled() {
    let gateway = FakeGateway::start().await;
    let mut turn = Turn::at(gateway.url()).await;
    let mut peer = gateway.accept("b").await;
    peer.accept_run().await;
    peer.says(&turn.run, 3, "one", "one").await;
    turn.hears("one").await;
    let host = turn.reply.host.as_ref().unwrap().process.pid;
    rustix::process::kill_process(Pid::from_raw(host).unwrap(), Signal::KILL).unwrap();
    peer.asked("chat.abort").await;
    drop(peer);
    assert!(matches!(within(turn.reply.end).await.unwrap(), End::ShimLost(_)));
}

#[tokio::test]
async fn a_run_whose_relay_was_killed_is_ended_when_an_engine_asks() {
    let gateway = FakeGateway::start().await;
    let place = prompt().place;
    let run = format!("{}-1", place.attempt.run);
    let aborted = json!({"sessionKey": "agent:a:web:s-1", "runId": run});
    let ended = || {
        let (backend, place) = (backend(gateway.url(), Duration::ZERO), place.clone());
        tokio::spawn(async move { backend.end_turn(&place).await })
    };
    for (status, is_over) in [("ok", true), ("timeout", false)] {
        let ended = ended();
        let mut peer = gateway.accept("b").await;
        assert_eq!(peer.asked("chat.abort").await, aborted);
        peer.says(&json!("another"), 1, "one", "one").await;
        peer.answer("abort", json!({"ok": true, "aborted": true, "runIds": [run]})).await;
        assert_eq!(peer.asked("agent.wait").await["runId"], json!(run));
        peer.answer("wait", json!({"runId": run, "status": status})).await;
        assert_eq!(within(ended).await.unwrap().is_ok(), is_over, "{status}");
    }
    let none = ended();
    let mut peer = gateway.accept("b").await;
    // The newest request may be about to begin: its run is looked up twice.
    for _ in 0..2 {
        peer.asked("chat.abort").await;
        peer.answer("abort", json!({"ok": true, "aborted": false, "runIds": []})).await;
    }
    assert_eq!(within(none).await.unwrap(), Ok(()));
    let broken = ended();
    drop(gateway.accept("b").await);
    assert!(within(broken).await.unwrap().is_err());
    let gone = gateway.url();
    drop(gateway);
    assert_eq!(within(backend(gone, Duration::ZERO).end_turn(&place)).await, Ok(()), "it took the run with it");
}

#[tokio::test]
async fn a_run_that_was_cancelled_is_not_asked_for_again() {
    let gateway = FakeGateway::start().await;
    let mut turn = Turn::at(gateway.url()).await;
    let mut peer = gateway.accept("b").await;
    peer.asked("agent").await;
    turn.reply.control.stop(Cause::Cancelled);
    peer.asked("chat.abort").await;
    drop(peer);
    let mut peer = gateway.accept("b").await;
    peer.asked("sessions.messages.subscribe").await;
    peer.asked("chat.abort").await;
    peer.answer("abort", json!({"ok": true, "aborted": false, "runIds": []})).await;
    let report = turn.ends().await;
    assert_eq!((report.stopped, report.code), (Some(Cause::Cancelled), Some(0)));
}

#[tokio::test]
async fn a_run_whose_connection_broke_is_still_cancelled() {
    let gateway = FakeGateway::start().await;
    let mut turn = Turn::at(gateway.url()).await;
    let mut peer = gateway.accept("b").await;
    peer.accept_run().await;
    peer.says(&turn.run, 3, "one", "one").await;
    turn.hears("one").await;
    turn.reply.control.stop(Cause::Cancelled);
    peer.asked("chat.abort").await;
    drop(peer);
    let mut peer = gateway.accept("b").await;
    peer.asked("sessions.messages.subscribe").await;
    peer.asked("chat.abort").await;
    peer.answer("abort", json!({"ok": true, "aborted": false, "runIds": []})).await;
    let report = turn.ends().await;
    assert_eq!((report.code, report.stopped), (Some(0), Some(Cause::Cancelled)));
}
