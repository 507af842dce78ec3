//! A run from message to end, with real agent processes.

use std::sync::Arc;

use mainstay::clock::SystemClock;
use mainstay::run::Status;
use serde_json::json;

use crate::scene::{NOTHING, Scene, marked, says};

#[tokio::test]
async fn an_agent_that_answers_is_completed() {
    let script = format!("{}; {}", says("Hel"), says("lo"));
    let scene = Scene::new(&[("echo", &script)], "").await;
    let run = scene.turn("echo", "s", "hi").await;
    assert_eq!((run.status, run.cause.as_deref(), run.exit_code), (Status::Completed, Some("finished"), Some(0)));
    assert_eq!(
        scene.story(run.id).await,
        "start start-step text-start text-delta=Hel text-delta=lo text-end finish-step finish=stop"
    );
    let messages = scene.messages("s").await;
    assert_eq!(messages[0], ("user".into(), json!([{"type": "text", "text": "hi"}])));
    let answer = json!([{"type": "step-start"}, {"type": "text", "text": "Hello", "state": "done"}]);
    assert_eq!(messages[1], ("assistant".into(), answer));
    let session = scene.engine.session(&"s".parse().unwrap()).await.unwrap();
    assert_eq!(session.title.as_deref(), Some("hi"));
    assert_eq!(session.assignment.unwrap().slot.as_deref(), Some("chat-slot-echo-1"));
}

#[tokio::test]
async fn a_run_that_fails_says_why() {
    let script = format!("{}; echo '[agent] Error: no such model' >&2; exit 3", says("partial"));
    let scene = Scene::new(&[("broken", &script)], "").await;
    let run = scene.turn("broken", "s", "hi").await;
    assert_eq!((run.status, run.cause.as_deref(), run.exit_code), (Status::Failed, Some("exit_code"), Some(3)));
    assert_eq!(run.error.as_deref(), Some("no such model"));
    let story = scene.story(run.id).await;
    assert!(story.ends_with("text-end finish-step message-metadata error=no such model finish=error"), "{story}");
    let (stderr, _) = scene.engine.run_diagnostics(run.id).await.unwrap();
    assert!(stderr.unwrap().contains("no such model"));
}

#[tokio::test]
async fn a_killed_agent_is_not_completed() {
    let script = format!("{}; kill -9 $$", says("partial"));
    let scene = Scene::new(&[("killed", &script)], "").await;
    let run = scene.turn("killed", "s", "hi").await;
    assert_eq!((run.status, run.cause.as_deref()), (Status::Failed, Some("signal")));
    assert_eq!((run.exit_code, run.exit_signal), (None, Some(9)));
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_a_failure_of_its_own() {
    let more = "[agents.missing]\ndriver = \"openclaw\"\ncommand = [\"no-such-program-anywhere\"]\n\
                [workspaces.missing]\nagent = \"missing\"\n";
    let scene = Scene::new(&[], more).await;
    let run = scene.turn("missing", "s", "hi").await;
    assert_eq!((run.status, run.cause.as_deref()), (Status::Failed, Some("spawn_failed")));
    assert!(run.error.unwrap().contains("no-such-program-anywhere"));
    let story = scene.story(run.id).await;
    assert!(story.contains("text-delta=[error] Failed to start agent"), "{story}");
}

#[tokio::test]
async fn stderr_does_not_spoil_a_good_answer() {
    let script = format!("echo 'warning: old config' >&2; {}", says("fine"));
    let scene = Scene::new(&[("chatty", &script)], "").await;
    let run = scene.turn("chatty", "s", "hi").await;
    assert_eq!(run.status, Status::Completed);
    assert!(!scene.story(run.id).await.contains("error"));
}

#[tokio::test]
async fn an_agent_that_stays_after_its_end_is_ended_and_completed() {
    let script = format!(
        "{}; echo '{{\"event\":\"agent\",\"stream\":\"lifecycle\",\"data\":{{\"phase\":\"end\"}}}}'; exec tail -f /dev/null",
        says("done")
    );
    let scene = Scene::new(&[("lingers", &script)], "").await;
    let run = scene.turn("lingers", "s", "hi").await;
    assert_eq!(run.status, Status::Completed);
    assert_eq!(run.exit_signal, Some(15));
}

#[tokio::test]
async fn demo_agent_is_process_unless_embedded() {
    let scene = Scene::new(&[], "").await;
    answers_as_the_demo_agent_does(&scene).await;
    let run = scene.send("default", "s", "/hang").await;
    scene.said(run.id, "cancelled").await;
    assert!(!marked(run.id).is_empty(), "it is a process");
    scene.engine.cancel_run(run.id).await.unwrap();
    assert_eq!(scene.settled(run.id).await.status, Status::Cancelled);
    assert_eq!(marked(run.id), NOTHING);
    let embedded = Scene::embedded("", Arc::new(SystemClock)).await;
    embedded.engine.start().await.unwrap();
    answers_as_the_demo_agent_does(&embedded).await;
}

async fn answers_as_the_demo_agent_does(scene: &Scene) {
    let run = scene.turn("default", "s", "What can you do?").await;
    assert_eq!(run.status, Status::Completed);
    let story = scene.story(run.id).await;
    for part in ["reasoning-delta", "tool-input-available", "tool-output-available", "text-delta"] {
        assert!(story.contains(part), "{story}");
    }
    let failed = scene.turn("default", "s", "/fail boom").await;
    assert_eq!((failed.status, failed.error.as_deref()), (Status::Failed, Some("boom")));
    let exited = scene.turn("default", "s", "/exit 7").await;
    assert_eq!((exited.status, exited.exit_code), (Status::Failed, Some(7)));
}

#[tokio::test]
async fn turns_of_a_session_come_one_after_the_other_in_its_slot() {
    let record = "echo \"begin $1\" >> log; sleep 0.02; echo \"end $1\" >> log";
    let script = format!("{record}; {}", says("ok"));
    let scene = Scene::new(&[("slow", &script)], "").await;
    let mut runs = Vec::new();
    for number in 0..8 {
        runs.push(scene.send("slow", "s", &number.to_string()).await);
    }
    for run in &runs {
        assert_eq!(scene.settled(run.id).await.status, Status::Completed);
    }
    let log = std::fs::read_to_string(scene.dir.path().join("log")).unwrap();
    let expected: String = (0..8).map(|number| format!("begin {number}\nend {number}\n")).collect();
    assert_eq!(log, expected);
}

#[tokio::test]
async fn what_the_agent_finds_in_its_environment() {
    let script =
        "printf '%s|%s|%s|%s|%s\\n' \"$MAINSTAY_SESSION\" \"$MAINSTAY_RUN\" \"$MAINSTAY_SLOT\" \"$PWD\" \"$1\" > seen; "
            .to_owned() + &says("ok");
    let scene = Scene::new(&[("env", &script)], "").await;
    let run = scene.turn("env", "web:1", "it's \"$(touch pwned)\" `x`").await;
    let seen = std::fs::read_to_string(scene.dir.path().join("seen")).unwrap();
    let dir = scene.dir.path().display();
    assert_eq!(seen, format!("web:1|{}|chat-slot-env-1|{dir}|it's \"$(touch pwned)\" `x`\n", run.id));
    assert!(!scene.dir.path().join("pwned").exists());
}

#[tokio::test]
async fn an_agent_that_takes_its_end_with_a_code_is_completed() {
    let script = format!(
        "trap 'exit 143' TERM; {}; echo '{{\"event\":\"agent\",\"stream\":\"lifecycle\",\"data\":{{\"phase\":\"end\"}}}}'; \
         while :; do sleep 0.1; done",
        says("done")
    );
    let scene = Scene::new(&[("lingers", &script)], "").await;
    let run = scene.turn("lingers", "s", "hi").await;
    assert_eq!((run.status, run.error, run.exit_code), (Status::Completed, None, Some(143)));
}

#[tokio::test]
async fn who_waits_for_one_run_leaves_the_next_alone() {
    let scene = Scene::idle(&[("echo", &says("x"))], "").await;
    let first = scene.send("echo", "s", "1").await;
    let second = scene.send("echo", "s", "2").await;
    scene.engine.execute_until(first.id).await.unwrap();
    assert_eq!(scene.settled(first.id).await.status, Status::Completed);
    scene.engine.drain(std::time::Duration::ZERO).await;
    let second = scene.engine.run(second.id).await.unwrap();
    assert_eq!((second.status, second.attempts), (Status::Queued, 0));
}
