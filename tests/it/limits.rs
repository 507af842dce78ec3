//! The limits of a turn, and of concurrent runs.

use mainstay::run::Status;

use crate::scene::{NOTHING, Scene, marked, says};

fn with_limits(script: &str, limits: &str) -> String {
    // A JSON string is a TOML string.
    let script = serde_json::Value::from(script);
    format!(
        "[agents.limited]\ndriver = \"openclaw\"\nkill_grace = \"500ms\"\n{limits}\n\
         command = [\"sh\", \"-c\", {script}, \"agent\", \"{{message}}\"]\n[workspaces.limited]\nagent = \"limited\"\n"
    )
}

#[tokio::test]
async fn a_turn_that_takes_too_long_is_timed_out() {
    let script = format!("while :; do {}; sleep 0.05; done", says("."));
    let scene = Scene::new(&[], &with_limits(&script, "turn_timeout = \"1s\"")).await;
    let run = scene.turn("limited", "s", "hi").await;
    assert_eq!((run.status, run.cause.as_deref()), (Status::TimedOut, Some("turn_timeout")));
    let story = scene.story(run.id).await;
    assert!(story.contains("finish-step message-metadata error=") && story.ends_with("finish=error"), "{story}");
    assert_eq!(marked(run.id), NOTHING);
}

#[tokio::test]
async fn an_agent_without_progress_is_timed_out_but_not_while_a_tool_runs() {
    let tool = |phase: &str| {
        format!(
            r#"echo '{{"event":"agent","stream":"tool","data":{{"phase":"{phase}","toolCallId":"t","name":"build"}}}}'"#
        )
    };
    let script = format!("{}; sleep 1.5; {}; {}; exec tail -f /dev/null", tool("start"), tool("result"), says("built"));
    let scene = Scene::new(&[], &with_limits(&script, "idle_timeout = \"1s\"")).await;
    let run = scene.turn("limited", "s", "hi").await;
    assert_eq!((run.status, run.cause.as_deref()), (Status::TimedOut, Some("idle_timeout")));
    assert!(scene.story(run.id).await.contains("text-delta=built"), "it was ended while its tool ran");
}

#[tokio::test]
async fn no_more_runs_of_an_agent_at_once_than_it_may() {
    let script = "echo begin >> log; sleep 0.05; echo end >> log; ".to_owned() + &says("ok");
    let script = script + "";
    let scene = Scene::new(&[], &with_limits(&script, "max_concurrent = 2")).await;
    let mut runs = Vec::new();
    for number in 0..10 {
        runs.push(scene.send("limited", &format!("s{}", number % 5), "hi").await);
    }
    for run in &runs {
        assert_eq!(scene.settled(run.id).await.status, Status::Completed);
    }
    let log = std::fs::read_to_string(scene.dir.path().join("log")).unwrap();
    let mut at_once = 0_i32;
    for line in log.lines() {
        at_once += if line == "begin" { 1 } else { -1 };
        assert!((0..=2).contains(&at_once), "{log}");
    }
}
