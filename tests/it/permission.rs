//! Agents' questions before they use a tool: decided by policy, by the first answer from any process, or by timeout; kept
//! across a restart.

use std::sync::Arc;
use std::time::Duration;

use mainstay::clock::{Clock, ManualClock, SystemClock};
use mainstay::engine::{Engine, EngineError, PermissionFilter};
use mainstay::id::{PermissionId, RunId};
use mainstay::permission::{Answer, Permission, PermissionState};
use mainstay::run::{Cause, Status};
use serde_json::{Value, json};

use crate::claude_lines::{asks, done, says, tool};
use crate::scene::{Camp, Scene, read_all, settled, story, within};

/// An agent that speaks as Claude Code does: it asks before it uses a tool, records the answer, and reports it.
fn asking() -> String {
    let says = |line: Value| format!("printf '%s\\n' '{line}'\n");
    let tool = json!({"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "ls"}});
    let asks = json!({"subtype": "can_use_tool", "tool_name": "Bash", "tool_use_id": "t1", "input": {"command": "ls"},
                      "description": "Run ls"});
    let result = |content: &str, is_error: bool| {
        json!({"type": "user", "message": {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": content, "is_error": is_error}]}})
    };
    let end = json!({"type": "result", "subtype": "success", "is_error": false, "result": ""});
    [
        "read -r message\n",
        &says(json!({"type": "system", "subtype": "init", "session_id": "c1"})),
        &says(json!({"type": "assistant", "message": {"id": "m1", "role": "assistant", "content": [tool]}})),
        &says(json!({"type": "control_request", "request_id": "r1", "request": asks})),
        "read -r answer; echo \"$answer\" >> answers\n",
        "case $answer in *'\"allow\"'*)\n",
        &says(result("files", false)),
        ";; *)\n",
        &says(result("not allowed", true)),
        ";; esac\n",
        &says(end),
    ]
    .concat()
}

/// A config with that agent, and the demo agent in a workspace of its own.
fn config(more: &str) -> String {
    let script = Value::from(asking());
    format!(
        "[engine]\nlease = \"1s\"\nsweep_interval = \"1s\"\n\
         [agents.asking]\ndriver = \"claude\"\ncommand = [\"sh\", \"-c\", {script}, \"agent\"]\nidle_timeout = \"2s\"\n\
         [workspaces.asking]\nagent = \"asking\"\n[workspaces.demo]\nagent = \"demo\"\n{more}\n"
    )
}

/// The first question of a run. The transaction that stores it also stores the chunk that shows it.
async fn asked(engine: &Engine, run: RunId) -> Permission {
    let mut follower = engine.follow_run(run, 0).await.unwrap();
    loop {
        let events = within(follower.next_events()).await.unwrap().expect("the run ended without asking");
        if events.iter().any(|event| event.event.contains(r#""tool-approval-request""#)) {
            return of_run(engine, run).await.remove(0);
        }
    }
}

async fn of_run(engine: &Engine, run: RunId) -> Vec<Permission> {
    let filter = PermissionFilter { run: Some(run), ..PermissionFilter::default() };
    let permissions = engine.list_permissions(&filter, 100).await.unwrap();
    permissions.into_iter().map(|(_, permission)| permission).collect()
}

async fn answer(engine: &Engine, id: PermissionId, approved: bool) -> Result<Permission, EngineError> {
    engine.answer_permission(id, Answer::Approved(approved), "test", Some("because".into())).await
}

fn answers(dir: &std::path::Path) -> String {
    std::fs::read_to_string(dir.join("answers")).unwrap_or_default()
}

/// The tool part in the answer of a session.
async fn tool_part(scene: &Scene, session: &str) -> Value {
    let (_, parts) = scene.messages(session).await.remove(1);
    parts.as_array().unwrap().iter().find(|part| part["type"] == "dynamic-tool").unwrap().clone()
}

#[tokio::test]
async fn an_agent_waits_for_its_answer_and_is_told() {
    let scene = Scene::new(&[], &config("")).await;
    for (session, approved, state, option, behavior, end) in [
        ("yes", true, PermissionState::Allowed, "allow", r#""behavior":"allow""#, "tool-output-available"),
        ("no", false, PermissionState::Denied, "deny", r#""behavior":"deny""#, "tool-output-denied"),
    ] {
        let run = scene.send("asking", session, "hi").await;
        let permission = asked(&scene.engine, run.id).await;
        assert_eq!((permission.state, permission.run_id), (PermissionState::Pending, run.id));
        assert_eq!(
            (permission.request.title.as_str(), &permission.request.input),
            ("Run ls", &json!({"command": "ls"}))
        );
        let decided = answer(&scene.engine, permission.id, approved).await.unwrap();
        assert_eq!((decided.state, decided.option.as_deref()), (state, Some(option)));
        assert_eq!((decided.answered_by.as_deref(), decided.reason.as_deref()), (Some("test"), Some("because")));
        assert_eq!(scene.settled(run.id).await.status, Status::Completed);
        let told = answers(scene.dir.path());
        assert!(told.lines().last().unwrap().contains(behavior), "{told}");
        let story = scene.story(run.id).await;
        let again = if approved { " tool-input-available" } else { "" };
        let expected = format!("tool-input-available tool-approval-request{again} {end} ");
        assert!(story.contains(&expected), "{story}");
        let part = tool_part(&scene, session).await;
        let expected = json!({"id": permission.id, "approved": approved});
        assert_eq!((&part["approval"], part["toolCallId"].as_str()), (&expected, Some("t1")), "{part}");
    }
}

#[tokio::test]
async fn the_policy_answers_at_once_and_nobody_is_bothered() {
    for (policy, state, behavior) in [
        ("execute = \"allow\"", PermissionState::Allowed, r#""behavior":"allow""#),
        ("execute = \"deny\"", PermissionState::Denied, r#""behavior":"deny""#),
        ("default = \"allow\"\nread = \"deny\"", PermissionState::Allowed, r#""behavior":"allow""#),
    ] {
        let scene = Scene::new(&[], &config(&format!("[agents.asking.permissions]\n{policy}\n"))).await;
        let run = scene.turn("asking", "s", "hi").await;
        assert_eq!(run.status, Status::Completed);
        let permission = of_run(&scene.engine, run.id).await.remove(0);
        assert_eq!((permission.state, permission.answered_by.as_deref()), (state, Some("policy")));
        assert_eq!((permission.expires_at, permission.answered_at), (None, Some(permission.requested_at)));
        assert!(answers(scene.dir.path()).contains(behavior));
        assert!(!scene.story(run.id).await.contains("approval"));
    }
}

#[tokio::test]
async fn of_two_answers_the_first_counts() {
    let scene = Scene::new(&[], &config("")).await;
    for round in 0..10 {
        let run = scene.send("demo", &format!("s{round}"), "/ask").await;
        let id = asked(&scene.engine, run.id).await.id;
        let (yes, no) = tokio::join!(answer(&scene.engine, id, true), answer(&scene.engine, id, false));
        let (won, lost) = if yes.is_ok() { (yes, no) } else { (no, yes) };
        let won = won.unwrap();
        let Err(EngineError::Decided(decided)) = lost else { panic!("both were first") };
        assert_eq!(*decided, won);
        let allowed = won.state == PermissionState::Allowed;
        assert_eq!(answer(&scene.engine, id, allowed).await.unwrap(), won, "to say the same again changes nothing");
        assert_eq!(scene.settled(run.id).await.status, Status::Completed);
        let word = if allowed { "“Allow once”" } else { "“Reject”" };
        let text = scene.messages(&format!("s{round}")).await[1].1.to_string();
        assert!(text.contains(word), "{text}");
    }
}

#[tokio::test]
async fn an_answer_is_one_that_the_agent_offers() {
    let scene = Scene::new(&[], &config("")).await;
    let run = scene.send("demo", "s", "/ask").await;
    let id = asked(&scene.engine, run.id).await.id;
    let give = |option: &str| scene.engine.answer_permission(id, Answer::Option(option.into()), "test", None);
    let refused = give("maybe").await.unwrap_err();
    assert!(refused.to_string().contains("\"always\" (Allow always)"), "{refused}");
    assert!(matches!(answer(&scene.engine, PermissionId::generate(), true).await, Err(EngineError::NotFound { .. })));
    assert_eq!(give("always").await.unwrap().state, PermissionState::Allowed);
    scene.settled(run.id).await;
    assert!(scene.messages("s").await[1].1.to_string().contains("“Allow always”"));
}

#[tokio::test]
async fn nobody_answers_in_time() {
    let clock = Arc::new(ManualClock::new(SystemClock.now()));
    let scene = Scene::with_clock(&[], &config("[agents.asking.permissions]\ntimeout = \"1h\"\n"), clock.clone()).await;
    scene.engine.start().await.unwrap();
    let run = scene.send("asking", "s", "hi").await;
    let permission = asked(&scene.engine, run.id).await;
    assert_eq!(permission.expires_at, Some(permission.requested_at + Duration::from_secs(3600)));
    clock.advance(Duration::from_secs(3600));
    assert_eq!(scene.settled(run.id).await.status, Status::Completed);
    let permission = of_run(&scene.engine, run.id).await.remove(0);
    assert_eq!((permission.state, permission.option), (PermissionState::Expired, None));
    assert!(answers(scene.dir.path()).contains(r#""behavior":"deny""#));
    assert!(scene.story(run.id).await.contains("tool-approval-request tool-output-denied"));
    let late = answer(&scene.engine, permission.id, true).await.unwrap_err();
    assert_eq!(late.to_string(), "the permission is expired already");
}

#[tokio::test]
async fn whoever_answers_too_late_is_told_even_when_nobody_watched() {
    let clock = Arc::new(ManualClock::new(SystemClock.now()));
    let scene = Scene::with_clock(&[], &config(""), clock.clone()).await;
    scene.engine.start().await.unwrap();
    let run = scene.send("demo", "s", "/ask").await;
    let id = asked(&scene.engine, run.id).await.id;
    clock.advance(Duration::from_secs(3 * 24 * 3600));
    // Whether or not the run has noticed the timeout: the result is the same.
    assert!(matches!(answer(&scene.engine, id, true).await, Err(EngineError::Decided(_))));
    scene.settled(run.id).await;
    assert!(scene.messages("s").await[1].1.to_string().contains("“Reject”"));
}

#[tokio::test]
async fn a_cancel_answers_what_is_asked() {
    let scene = Scene::new(&[], &config("")).await;
    for agent in ["demo", "asking"] {
        let run = scene.send(agent, agent, "/ask").await;
        let id = asked(&scene.engine, run.id).await.id;
        scene.engine.cancel_run(run.id).await.unwrap();
        assert_eq!(scene.settled(run.id).await.status, Status::Cancelled);
        assert_eq!(scene.engine.permission(id).await.unwrap().state, PermissionState::Cancelled);
        assert!(matches!(answer(&scene.engine, id, true).await, Err(EngineError::Decided(_))));
        let story = scene.story(run.id).await;
        assert!(story.ends_with("tool-approval-request tool-output-denied finish-step abort finish=other"), "{story}");
        let part = tool_part(&scene, agent).await;
        assert_eq!(part["approval"], json!({"id": id, "approved": false}), "{part}");
    }
}

#[tokio::test]
async fn the_idle_limit_waits_for_the_answer() {
    let scene = Scene::new(
        &[],
        &config(
            "[agents.quick]\ndriver = \"demo\"\nidle_timeout = \"1s\"\n\
        [workspaces.quick]\nagent = \"quick\"\n",
        ),
    )
    .await;
    let waiting = scene.send("quick", "asks", "/ask").await;
    let id = asked(&scene.engine, waiting.id).await.id;
    // Meanwhile its neighbour, which began later, reaches its limit.
    let idle = scene.turn("quick", "hangs", "/hang").await;
    assert_eq!(idle.cause.as_deref(), Some(Cause::IdleTimeout.as_str()));
    answer(&scene.engine, id, true).await.unwrap();
    assert_eq!(scene.settled(waiting.id).await.status, Status::Completed);
}

#[tokio::test]
async fn an_agent_that_goes_on_without_an_answer_takes_its_question_back() {
    let wait = |file: &str| format!("while [ ! -e {file} ]; do sleep 0.01; done; ");
    let hastily = format!("{}answer='\"allow\"';", wait("go-on"));
    let script = asking().replace("read -r answer;", &hastily) + &wait("end");
    let script = Value::from(script);
    let more = format!(
        "[agents.hasty]\ndriver = \"claude\"\ncommand = [\"sh\", \"-c\", {script}, \"agent\"]\n\
         [workspaces.hasty]\nagent = \"hasty\"\n"
    );
    let scene = Scene::new(&[], &config(&more)).await;
    let run = scene.send("hasty", "s", "hi").await;
    let id = asked(&scene.engine, run.id).await.id;
    std::fs::write(scene.dir.path().join("go-on"), "").unwrap();
    let permission = within(async {
        loop {
            let permission = scene.engine.permission(id).await.unwrap();
            if permission.state != PermissionState::Pending {
                return permission;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let permission = permission.await;
    assert_eq!((permission.state, permission.answered_by), (PermissionState::Cancelled, None));
    // It was not closed by the end of the run.
    assert_eq!(scene.engine.run(run.id).await.unwrap().status, Status::Running);
    std::fs::write(scene.dir.path().join("end"), "").unwrap();
    assert_eq!(scene.settled(run.id).await.status, Status::Completed);
    assert_eq!(tool_part(&scene, "s").await["state"], "output-available");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_survives_its_engine_and_is_answered_by_another_process() {
    let camp = Camp::new(&[], &config("")).await;
    let daemon = camp.daemon();
    let run = camp.send("asking", "s", "hi").await.id;
    let id = asked(&camp.watcher, run).await.id;
    daemon.kill();
    let daemon = camp.daemon();
    assert_eq!(answer(&camp.watcher, id, true).await.unwrap().state, PermissionState::Allowed);
    let run = settled(&camp.watcher, run).await;
    assert_eq!((run.status, run.attempts), (Status::Completed, 1));
    let told = answers(camp.dir.path());
    assert_eq!(told.matches(r#""behavior":"allow""#).count(), 1, "{told}");
    assert_eq!(story(&camp.watcher, run.id).await.matches("tool-approval-request").count(), 1);
    daemon.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_answered_while_no_engine_lives_is_told_by_the_next() {
    let camp = Camp::new(&[], &config("")).await;
    let daemon = camp.daemon();
    let run = camp.send("asking", "s", "hi").await.id;
    let id = asked(&camp.watcher, run).await.id;
    daemon.kill();
    answer(&camp.watcher, id, false).await.unwrap();
    let daemon = camp.daemon();
    assert_eq!(settled(&camp.watcher, run).await.status, Status::Completed);
    assert!(answers(camp.dir.path()).contains(r#""behavior":"deny""#));
    assert!(story(&camp.watcher, run).await.contains("tool-approval-request tool-output-denied"));
    daemon.stop();
}

#[tokio::test]
async fn a_chat_ends_at_the_question_and_goes_on_behind_it() {
    let scene = Scene::new(&[], &config("")).await;
    let run = scene.send("demo", "s", "/ask").await;
    let mut seen = read_chat(&scene, run.id, 0).await;
    assert_eq!(scene.engine.run(run.id).await.unwrap().status, Status::Running);
    let id = of_run(&scene.engine, run.id).await.remove(0).id;
    assert!(
        seen.trim_end()
            .ends_with(&format!(r#"{{"type":"tool-approval-request","approvalId":"{id}","toolCallId":"call-1"}}"#))
    );
    let session = "s".parse().unwrap();
    let paused = scene.engine.paused_at(&session, &[id]).await.unwrap();
    assert!(scene.engine.paused_at(&"other".parse().unwrap(), &[id]).await.is_err(), "it is of another session");
    answer(&scene.engine, id, true).await.unwrap();
    seen += &read_chat(&scene, paused.run, paused.after).await;
    let all = read_all(scene.engine.follow_run(run.id, 0).await.unwrap()).await;
    let all: String = all.iter().map(|(seq, event)| format!("id: {}\ndata: {event}\n\n", seq.unwrap())).collect();
    assert_eq!(seen, all, "the two streams are one, and a question that is answered ends none");
    assert_eq!(read_chat(&scene, run.id, 0).await, all);
}

/// What a chat reads of a run up to the end of its stream.
async fn read_chat(scene: &Scene, run: RunId, after: i64) -> String {
    let mut chat = scene.engine.follow_chat(run, after).await.unwrap();
    let mut seen = String::new();
    while let Some(frames) = within(chat.next_frames()).await.unwrap() {
        seen += std::str::from_utf8(&frames).unwrap();
    }
    seen
}

#[tokio::test]
async fn a_chat_waits_until_only_answers_are_waited_for() {
    let script = [
        "read -r message\n".to_owned(),
        says(json!({"type": "system", "subtype": "init", "session_id": "c1"})),
        [tool("working"), tool("a"), tool("b")].concat(),
        [asks("a"), asks("b"), done("working")].concat(),
        "read -r one; ".to_owned() + &done("b"),
        "read -r two; ".to_owned() + &done("a"),
        says(json!({"type": "result", "subtype": "success", "is_error": false, "result": "done"})),
    ];
    let script = Value::from(script.concat());
    let more = format!(
        "[agents.parallel]\ndriver = \"claude\"\ncommand = [\"sh\", \"-c\", {script}, \"agent\"]\n\
         [workspaces.parallel]\nagent = \"parallel\"\n"
    );
    let scene = Scene::new(&[], &config(&more)).await;
    let run = scene.send("parallel", "s", "hi").await.id;
    let first = read_chat(&scene, run, 0).await;
    assert_eq!(first.matches("tool-approval-request").count(), 2);
    assert!(
        first.lines().rev().nth(1).unwrap().contains(r#""type":"tool-output-available","toolCallId":"working""#),
        "{first}"
    );
    let asked = of_run(&scene.engine, run).await;
    let find = |id: &str| asked.iter().find(|asked| asked.request.tool_call == id).unwrap().id;
    let session = "s".parse().unwrap();
    // The newer question is answered first: the open one still ends the stream.
    let paused = scene.engine.paused_at(&session, &[find("b")]).await.unwrap();
    answer(&scene.engine, find("b"), true).await.unwrap();
    let second = read_chat(&scene, run, paused.after).await;
    assert!(second.lines().rev().nth(1).unwrap().contains(r#""toolCallId":"b""#), "{second}");
    answer(&scene.engine, find("a"), true).await.unwrap();
    let seen = first + &second;
    let last_seq = seen.lines().rev().find_map(|line| line.strip_prefix("id: ")).unwrap();
    let third = read_chat(&scene, run, last_seq.parse().unwrap()).await;
    scene.settled(run).await;
    let all = read_all(scene.engine.follow_run(run, 0).await.unwrap()).await;
    let all: String = all.iter().map(|(seq, event)| format!("id: {}\ndata: {event}\n\n", seq.unwrap())).collect();
    assert_eq!(seen + &third, all);
}
