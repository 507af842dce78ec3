//! Agents that break rules.

use std::path::PathBuf;
use std::process::Command;

use mainstay::failure::ErrorClass;
use mainstay::run::{Cause, Outcome};
use serde_json::json;

use crate::acp::scene::Scene;

#[tokio::test]
async fn long_and_foreign_lines_are_counted_and_end_no_turn() {
    let scene = Scene::new("").await;
    let turn = scene.turn("big 600000", None).await;
    assert_eq!((turn.text().len(), turn.outcome().0.len()), (600_000, 0));
    let turn = scene.turn("garbage", None).await;
    assert_eq!((turn.text().as_str(), turn.stop_reason()), ("still here", Some("end_turn")));
    let (unread, outcome) = turn.outcome();
    assert_eq!((unread.len(), outcome), (9, Outcome::completed()), "{unread:#?}");
    assert_eq!(unread[0], "no JSON…");
    // Of a line beyond the limit the beginning is shown.
    let turn = scene.turn("big 3000000", None).await;
    assert_eq!((turn.text().as_str(), turn.stop_reason()), ("", Some("end_turn")));
    let (unread, _) = turn.outcome();
    assert_eq!(unread.len(), 1);
    assert!(unread[0].starts_with(r#"{"jsonrpc""#) && unread[0].len() < 1000, "{}", unread[0]);
}

#[tokio::test]
async fn bad_line_is_counted_in_the_turn_it_names_or_in_none() {
    let scene = Scene::new("").await;
    let at = |name: &str| scene.dir.path().join(name).display().to_string();
    let prompts = [("ours", "a", "b"), ("others", "b", "a")];
    let prompts = prompts.map(|(session, own, other)| (session, format!("meet-badly {} {}", at(own), at(other))));
    for relay in [
        scene.relay(&prompts[0].1, json!({"session": prompts[0].0})).await,
        scene.relay(&prompts[1].1, json!({"session": prompts[1].0})).await,
    ] {
        let turn = relay.end().await;
        let (unread, outcome) = turn.outcome();
        assert_eq!((turn.text().as_str(), unread.len(), outcome), ("met", 1, Outcome::completed()));
        assert!(unread[0].contains(&turn.session().0), "{unread:?}");
    }
}

#[tokio::test]
async fn an_answer_that_does_not_say_how_the_turn_ended_is_an_error() {
    let scene = Scene::new("").await;
    for answer in ["null", "{}", r#"{"stopReason": 5}"#, r#"{"stopReason": null}"#, "7", "[]"] {
        for said in ["-", "word"] {
            let (unread, outcome) = scene.turn(&format!("answer {said} {answer}"), None).await.outcome();
            assert_eq!(
                (outcome.cause, outcome.class),
                (Cause::AgentError, Some(ErrorClass::Protocol)),
                "{answer} {outcome:?}"
            );
            assert_eq!(unread.len(), 0, "{unread:?}");
        }
    }
}

#[tokio::test]
async fn an_unknown_stop_reason_is_a_failure() {
    let scene = Scene::new("").await;
    for said in ["word", "-"] {
        let turn = scene.turn(&format!("answer {said} {}", json!({"stopReason": "banana"})), None).await;
        let (unread, outcome) = turn.outcome();
        assert_eq!((unread.len(), outcome.cause, outcome.class), (0, Cause::AgentError, Some(ErrorClass::Protocol)));
        assert!(outcome.error.as_ref().unwrap().contains("banana"), "{outcome:?}");
    }
    let (_, outcome) = scene.turn(r#"answer word {"stopReason": "cancelled"}"#, None).await.outcome();
    assert_eq!(outcome.cause, Cause::AgentError, "the run was not cancelled");
}

#[tokio::test]
async fn noise_around_a_message_costs_nothing() {
    for can in ["noise", "pretty", "framed"] {
        let scene = Scene::new(can).await;
        assert_eq!(scene.turn("say one", None).await.text(), "one", "{can}");
    }
}

#[tokio::test]
async fn every_request_gets_an_answer() {
    let scene = Scene::new("").await;
    let request = |method: &str, params: serde_json::Value| {
        json!({"jsonrpc": "2.0", "id": "odd", "method": method, "params": params}).to_string()
    };
    for request in [
        request("elicitation/create", json!({"sessionId": "SESSION", "message": "Which?", "mode": "form"})),
        request("fs/read_text_file", json!({"sessionId": "SESSION", "path": "/etc/passwd"})),
        request("no/such/method", json!([1, "two"])),
        request("no/such/method", json!({"sessionId": 5})),
        json!({"jsonrpc": "2.0", "id": "odd", "method": "no/params"}).to_string(),
    ] {
        let turn = scene.turn(&format!("request {request}"), None).await;
        assert_eq!(turn.text(), r#"{"error":-32601}"#, "{request}");
    }
    let request = request("session/request_permission", json!({"sessionId": "SESSION", "options": "none"}));
    let turn = scene.turn(&format!("request {request}"), None).await;
    assert!(turn.text().contains("cancelled"), "{turn:#?}");
}

#[tokio::test]
async fn a_question_of_a_sub_agents_session_is_asked() {
    let scene = Scene::new("").await;
    let mut relay = scene.relay("child", json!({})).await;
    let asked = relay.until("request_permission").await;
    relay.answer(&asked["id"], Some("yes")).await;
    assert!(relay.end().await.text().contains("yes"));
}

#[tokio::test]
async fn requests_with_one_id_are_two_questions() {
    let scene = Scene::new("").await;
    let mut relay = scene.relay("same-id", json!({})).await;
    for option in ["yes", "no"] {
        let asked = relay.until("request_permission").await;
        relay.answer(&asked["id"], Some(option)).await;
    }
    let turn = relay.end().await;
    assert!(turn.text().contains("yes") && turn.text().contains("no"), "{turn:#?}");
}

#[tokio::test]
async fn an_answer_counts_also_when_the_agent_ends_right_behind_it() {
    let scene = Scene::new("").await;
    let turn = scene.turn("bye", None).await;
    assert_eq!((turn.text().as_str(), turn.stop_reason(), turn.code), ("bye", Some("end_turn"), Some(0)));
    assert_eq!(turn.said.last(), Some(&json!({"mainstay": "ended"})), "{turn:#?}");
    assert!(!turn.said.iter().any(|line| line["mainstay"] == "error"), "{turn:#?}");
}

#[tokio::test]
async fn crash_during_a_turn_is_told_with_the_agents_last_words() {
    let mut scene = Scene::new("load").await;
    let turn = scene.turn("crash", None).await;
    assert_eq!(turn.text(), "crashing");
    let error = turn.own("error");
    assert_eq!(error["class"], "crashed");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("exit status: 3") && message.contains("out of luck"), "{message}");
    let (code, stderr) = scene.ended().await;
    assert!(code == Some(1) && stderr.contains("out of luck"), "{stderr}");
    scene.start().await;
    let (id, origin) = turn.session();
    let turn = scene.turn("history", Some(&id)).await;
    assert_eq!((turn.text().as_str(), turn.session().1.as_str(), origin.as_str()), ("crash", "loaded", "new"));
}

#[tokio::test]
async fn turn_tells_of_a_crash_only_when_it_saw_it() {
    let mut scene = Scene::new("").await;
    let mut relay = scene.relay("wait", json!({})).await;
    relay.until("waiting").await;
    scene.end("-KILL").await;
    let turn = relay.end().await;
    assert_eq!((turn.own("error")["class"].as_str(), turn.code), (Some("crashed"), Some(1)));
    // The turn says nothing, so that it can be retried.
    let turn = scene.turn("say one", None).await;
    assert_eq!((turn.said.len(), turn.code), (0, Some(1)));
}

/// The directory in `/proc` of the agent's process.
fn agent_of(scene: &Scene) -> PathBuf {
    let agent = std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let environ = std::fs::read(entry.path().join("environ")).ok()?;
        let log = format!("STUB_LOG={}", scene.dir.path().join("log").display());
        let is_agent = std::fs::read_to_string(entry.path().join("comm")).ok()?.starts_with("mainstay-tort");
        (is_agent && environ.split(|byte| *byte == 0).any(|it| it == log.as_bytes())).then(|| entry.path())
    });
    agent.unwrap()
}

#[tokio::test]
async fn an_agent_that_is_killed_is_told_with_its_signal() {
    for message in ["say one", "hang"] {
        let mut scene = Scene::new("").await;
        let mut relay = scene.relay(message, json!({})).await;
        relay.until("agent_message_chunk").await;
        let pid = agent_of(&scene).file_name().unwrap().to_owned();
        assert!(Command::new("kill").arg("-KILL").arg(pid).status().unwrap().success());
        relay.end().await;
        let (code, stderr) = scene.ended().await;
        let last = stderr.lines().next_back();
        assert_eq!(
            (code, last),
            (Some(1), Some("mainstay: the agent ended (signal: 9 (SIGKILL))")),
            "{message}: {stderr}"
        );
    }
}

#[tokio::test]
async fn a_bridge_that_is_asked_to_end_ends_its_agent_first() {
    let mut scene = Scene::new("").await;
    scene.turn("say one", None).await;
    let agent = agent_of(&scene);
    scene.end("-TERM").await;
    assert!(!agent.exists());
}
