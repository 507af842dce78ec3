//! Claude Code.

use std::path::Path;
use std::time::{Duration, Instant};

use mainstay::agent::ProcessSpec;
use mainstay::backend::process::Hosts;
use mainstay::backend::{AgentEvent, Backend, Prompt, claude};
use mainstay::failure::ErrorClass;
use mainstay::id::RunId;
use mainstay::options::SessionOptions;
use mainstay::permission::{Decision, ToolKind};
use mainstay::run::{Attempt, Status};

use crate::scene::{PATIENCE, Scene, first, installed, left_of, slow_words, within};

/// The environment in which it talks to nobody but the model server. It gives up early, so that a test sees how.
fn environment(dir: &Path, model: &str) -> [(&'static str, String); 8] {
    let on = || "1".to_owned();
    [
        ("HOME", dir.join("home").display().to_string()),
        ("ANTHROPIC_BASE_URL", model.to_owned()),
        ("ANTHROPIC_API_KEY", "none".to_owned()),
        ("CLAUDE_CODE_MAX_RETRIES", on()),
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", on()),
        ("DISABLE_AUTOUPDATER", on()),
        ("DISABLE_TELEMETRY", on()),
        ("DISABLE_ERROR_REPORTING", on()),
    ]
}

async fn scene() -> Option<Scene> {
    let program = installed("claude")?;
    let keys = |dir: &Path, model: &str| {
        let env = environment(dir, model).map(|(name, value)| format!("{name} = {value:?}")).join(", ");
        format!("driver = \"claude\"\ncommand = [{program:?}]\nenv = {{ {env} }}")
    };
    Some(Scene::new(keys).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn text_reasoning_tools_and_usage_reach_the_reader() {
    let Some(scene) = scene().await else { return };
    let run = scene.turn("s", "[[reasoning]]").await;
    assert_eq!(run.status, Status::Completed, "{:?}\n{}", run.error, scene.log());
    let chunks = scene.chunks(run.id).await;
    let reasoning: String = chunks
        .iter()
        .filter_map(|chunk| (chunk["type"] == "reasoning-delta").then(|| chunk["delta"].as_str().unwrap()))
        .collect();
    assert_eq!(reasoning, "First I think about it. Then I think again. ");
    assert_eq!(scene.text(run.id).await, "The answer is 42.");

    let run = scene.turn("s", "[[tool:echo tool-ran]]").await;
    assert_eq!(run.status, Status::Completed, "{:?}", run.error);
    let chunks = scene.chunks(run.id).await;
    assert_eq!(first(&chunks, "tool-input-available")["input"]["command"], "echo tool-ran");
    assert_eq!(first(&chunks, "tool-output-available")["output"], "tool-ran");
    assert!(scene.text(run.id).await.starts_with("I will run a command. Done."));
    let usage = format!(
        "SELECT input_tokens || ' ' || output_tokens || ' ' || (cost_usd > 0) FROM v_runs WHERE id = '{}'",
        run.id
    );
    assert_eq!(scene.value(&usage), "22 14 1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_where_it_was_also_after_a_restart() {
    let Some(mut scene) = scene().await else { return };
    scene.turn("s", "[[text:one]]").await;
    let id = scene.value("SELECT id || ' ' || origin FROM v_agent_sessions");
    assert!(id.ends_with(" new"), "{id}");
    let before = scene.model.turns("text");
    scene.turn("s", "[[text:two]]").await;
    let between = scene.model.turns("text");
    assert!(between > before, "the model saw {before}, then {between} turns");
    scene.stop();
    scene.start();
    let run = scene.turn("s", "[[text:three]]").await;
    assert_eq!(scene.text(run.id).await, "three");
    assert!(scene.model.turns("text") > between);
    assert_eq!(scene.value("SELECT count(*) FROM v_agent_sessions"), "1");
    assert_eq!(scene.value("SELECT id || ' ' || origin FROM v_agent_sessions"), id.replace(" new", " resumed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_provider_refuses_is_shown_as_what_it_is() {
    let Some(scene) = scene().await else { return };
    let class = |run: RunId| scene.value(&format!("SELECT error_class FROM v_runs WHERE id = '{run}'"));

    let run = scene.turn("a", "[[429:always]]").await;
    assert_eq!((run.status, run.cause.as_deref()), (Status::Failed, Some("agent_error")), "{}", scene.log());
    assert_eq!(class(run.id), ErrorClass::RateLimit.as_str());
    let labels = scene.chunks(run.id).await;
    let labels: Vec<_> = labels.iter().filter_map(|chunk| chunk["data"]["label"].as_str()).collect();
    assert!(labels.iter().any(|label| label.contains("rate limit")), "{labels:?}");

    let run = scene.turn("b", "[[ctx]]").await;
    assert_eq!((run.status, run.cause.as_deref()), (Status::Failed, Some("agent_error")));
    assert_eq!(class(run.id), ErrorClass::ContextTooLong.as_str());

    let run = scene.turn("c", "[[500:always]]").await;
    assert_eq!((run.status, run.cause.as_deref()), (Status::Failed, Some("agent_error")));
    assert!(run.error.unwrap().contains("500"));

    let run = scene.turn("d", "[[500:1:recovers]]").await;
    assert_eq!(run.status, Status::Completed, "{:?}", run.error);
    assert_eq!(scene.text(run.id).await, "Recovered after 1 failures.");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_turn_keeps_what_was_said_and_leaves_no_process() {
    let Some(scene) = scene().await else { return };
    let run = scene.send("s", "[[slow:1000:50]]").await;
    scene.chunks_until(run, "w3 ").await;
    assert!(left_of(run) > 0);
    let began = Instant::now();
    scene.engine.cancel_run(run).await.unwrap();
    assert_eq!(scene.settled(run).await.status, Status::Cancelled);
    assert!(began.elapsed() < Duration::from_secs(20), "it took {:?}", began.elapsed());
    let text = scene.text(run).await;
    assert!(slow_words(1000).starts_with(&text), "{text}");
    assert_eq!(left_of(run), 0);
    // The conversation goes on from there.
    let run = scene.turn("s", "[[text:still here]]").await;
    assert_eq!(scene.text(run.id).await, "still here");
    assert_eq!(scene.value("SELECT count(*) FROM v_agent_sessions"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_may_be_killed_three_times_in_a_turn() {
    let Some(mut scene) = scene().await else { return };
    let run = scene.send("s", "[[slow:60:100]]").await;
    for word in ["w5 ", "w20 ", "w35 "] {
        scene.chunks_until(run, word).await;
        scene.kill();
        scene.start();
    }
    let run = scene.settled(run).await;
    assert_eq!(run.status, Status::Completed, "{:?}\n{}", run.error, scene.log());
    assert_eq!(scene.text(run.id).await, slow_words(60));
    assert_eq!(left_of(run.id), 0);
}

/// What the agent is answered on its stdin, whoever decided it.
#[tokio::test(flavor = "multi_thread")]
async fn it_does_what_it_is_allowed_and_nothing_else() {
    let Some(scene) = scene().await else { return };
    let dir = scene.dir.path();
    let spec = ProcessSpec {
        command: vec![installed("claude").unwrap().display().to_string()],
        env: environment(dir, &scene.model.url).map(|(name, value)| (name.to_owned(), value)).into(),
        max_line_bytes: 1024 * 1024,
    };
    let hosts = Hosts::new(env!("CARGO_BIN_EXE_mainstay").into(), dir.join("agents"));
    let backend = claude::backend(&spec, PATIENCE, &hosts);
    for (allow, is_left) in [(false, true), (true, false)] {
        let file = dir.join("work/file");
        std::fs::write(&file, "").unwrap();
        let prompt = Prompt {
            start_by: Instant::now() + PATIENCE,
            limit: PATIENCE,
            attempt: Attempt { run: RunId::generate(), number: 1 },
            session: "s".parse().unwrap(),
            slot: "slot".to_owned(),
            workspace: "w".parse().unwrap(),
            dir: dir.join("work"),
            agent_session: None,
            message: "[[tool:rm -f file]]".to_owned(),
            attachments: Vec::new(),
            options: SessionOptions::default(),
            oneshot: false,
            endpoint: None,
        };
        let mut reply = backend.prompt(prompt).await.unwrap();
        reply.control.begin();
        let (mut asked, mut result) = (Vec::new(), None);
        while let Some(record) = within(reply.records.recv()).await {
            for event in record.events {
                match event {
                    AgentEvent::Permission(request) => {
                        assert!(file.exists(), "it did not wait");
                        let option = request.option_for(allow).unwrap().clone();
                        let line = backend.answer(&request, &Decision::Selected(option)).unwrap();
                        reply.control.write(&line).await;
                        asked.push(request);
                    }
                    AgentEvent::ToolFinished { result: finished, .. } => result = Some(finished),
                    AgentEvent::Ended => assert!(reply.control.close_input().await),
                    _ => {}
                }
            }
        }
        let [request] = asked.as_slice() else { panic!("asked {asked:?}") };
        assert_eq!((request.tool.as_str(), request.kind), ("Bash", ToolKind::Execute));
        assert_eq!(request.input["command"], "rm -f file");
        assert!(!request.tool_call.is_empty());
        assert_eq!((result.unwrap().is_ok(), file.exists()), (allow, is_left));
        within(reply.end).await.unwrap();
    }
}
