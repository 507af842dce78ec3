//! Claude Code.

use std::path::Path;
use std::time::{Duration, Instant};

use mainstay::agent::ProcessSpec;
use mainstay::agent_event::AgentEvent;
use mainstay::driver::per_turn::PerTurn;
use mainstay::driver::{Driver, claude};
use mainstay::failure::ErrorClass;
use mainstay::id::RunId;
use mainstay::message::Attachment;
use mainstay::options::{Effect, SessionOptions};
use mainstay::permission::{Answer, Decision, PermissionState, ToolKind};
use mainstay::process::Shims;
use mainstay::process::{Prompt, TurnPlace};
use mainstay::run::{Attempt, Status};
use serde_json::{Value, json};

use crate::scene::{Scene, TIMEOUT, first, installed, left_of, slow_words, within};

/// Environment in which it only connects to the model server. It gives up early, so that a test sees how.
pub fn environment(dir: &Path, model: &str) -> [(&'static str, String); 8] {
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
        .filter(|chunk| chunk["type"] == "reasoning-delta")
        .map(|chunk| chunk["delta"].as_str().unwrap())
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
    // The conversation continues from there.
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

#[tokio::test(flavor = "multi_thread")]
async fn a_question_outlives_the_engine_and_is_answered_by_somebody_else() {
    let Some(mut scene) = scene().await else { return };
    let file = scene.dir.path().join("work/file");
    for (approved, is_left) in [(true, false), (false, true)] {
        std::fs::write(&file, "").unwrap();
        let run = scene.send("s", "[[tool:rm -f file]]").await;
        let asked = scene.asked(run).await;
        assert_eq!((asked.request.tool.as_str(), asked.request.kind), ("Bash", ToolKind::Execute));
        scene.kill();
        scene.start();
        assert!(file.exists());
        scene.engine.answer_permission(asked.id, Answer::Approved(approved), "somebody", None).await.unwrap();
        let run = scene.settled(run).await;
        assert_eq!(run.status, Status::Completed, "{:?}\n{}", run.error, scene.log());
        assert_eq!(file.exists(), is_left);
        assert!(scene.text(run.id).await.contains("Done."));
    }
    let run = scene.send("s", "[[tool:rm -f file]]").await;
    let asked = scene.asked(run).await;
    scene.engine.cancel_run(run).await.unwrap();
    assert_eq!(scene.settled(run).await.status, Status::Cancelled);
    assert_eq!(scene.engine.permission(asked.id).await.unwrap().state, PermissionState::Cancelled);
    assert_eq!((file.exists(), left_of(run)), (true, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_that_it_does_not_know_any_more_is_begun_anew() {
    let Some(scene) = scene().await else { return };
    scene.turn("s", "[[text:one]]").await;
    std::fs::remove_dir_all(scene.dir.path().join("home/.claude/projects")).unwrap();
    let run = scene.turn("s", "[[text:two]]").await;
    assert_eq!(run.status, Status::Completed, "{:?}\n{}", run.error, scene.log());
    assert_eq!(scene.text(run.id).await, "two");
    assert_eq!(scene.value("SELECT group_concat(origin) FROM v_agent_sessions"), "new,new");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_options_of_the_session_are_told() {
    let Some(scene) = scene().await else { return };
    scene.turn("s", "[[text:one]]").await;
    let options =
        json!({"model": "some-model", "mode": "plan", "extra": {"append-system-prompt": "Be brief, please."}});
    let session = "s".parse().unwrap();
    let report = scene.engine.update_options(&session, options.as_object().unwrap().clone()).await.unwrap();
    assert!(report.effects.values().all(|effect| *effect == Effect::Applied), "{:?}", report.effects);
    scene.turn("s", "[[text:two]]").await;
    let asked = scene.model.asked("text");
    assert_eq!(asked["model"], "some-model");
    assert!(asked["body"]["system"].to_string().contains("Be brief, please."));
    let mode = scene.value("SELECT advertised ->> '$.modes.currentModeId' FROM v_sessions");
    assert_eq!(mode, "plan");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_ended_with_the_process_that_holds_it() {
    let Some(scene) = scene().await else { return };
    let run = scene.send("s", "[[slow:1000:50]]").await;
    scene.chunks_until(run, "w3 ").await;
    let host = scene.value(&format!("SELECT pid FROM v_runs WHERE id = '{run}'"));
    assert!(std::process::Command::new("kill").args(["-9", &host]).status().unwrap().success());
    assert_eq!(scene.settled(run).await.status, Status::Interrupted);
    assert_eq!(left_of(run), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sub_agents_are_shown_with_the_call_they_work_for() {
    let Some(scene) = scene().await else { return };
    for message in ["[[task]]", "[[task:background]]"] {
        let run = scene.turn("s", message).await;
        assert_eq!(run.status, Status::Completed, "{:?}\n{}", run.error, scene.log());
        let chunks = scene.chunks(run.id).await;
        let call = first(&chunks, "tool-input-available")["toolCallId"].clone();
        let is_inner = |chunk: &&Value| chunk["type"] == "tool-input-available" && chunk["toolName"] == "Bash";
        let inner = chunks.iter().find(is_inner).unwrap();
        assert_eq!(inner["providerMetadata"]["mainstay"]["parentToolCallId"], call, "{chunks:#?}");
        let output =
            |chunk: &&Value| chunk["type"] == "tool-output-available" && chunk["toolCallId"] == inner["toolCallId"];
        assert_eq!(chunks.iter().find(output).unwrap()["output"], "helped");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_stream_broke_is_withdrawn() {
    let Some(scene) = scene().await else { return };
    for (message, text) in [
        ("[[disconnect]]", "This sentence will be cut off before its end comes."),
        ("[[badjson]]", "Half of this is broken."),
    ] {
        let run = scene.turn("s", message).await;
        assert_eq!(run.status, Status::Completed, "{:?}\n{}", run.error, scene.log());
        let stored =
            scene.value(&format!("SELECT text FROM v_messages WHERE run_id = '{}' AND role = 'assistant'", run.id));
        assert_eq!(stored.trim(), text);
    }
}

/// A turn without an engine: what it says, and how it is answered.
struct Direct {
    backend: PerTurn,
    prompt: Prompt,
}

impl Direct {
    fn new(scene: &Scene, message: &str) -> Self {
        let dir = scene.dir.path();
        let spec = ProcessSpec {
            command: vec![installed("claude").unwrap().display().to_string()],
            env: environment(dir, &scene.model.url).map(|(name, value)| (name.to_owned(), value)).into(),
            max_line_bytes: 1024 * 1024,
        };
        let shims = Shims::new(env!("CARGO_BIN_EXE_mainstay").into(), dir.join("agents"));
        let prompt = Prompt {
            place: TurnPlace {
                attempt: Attempt { run: RunId::generate(), number: 1 },
                session: "s".parse().unwrap(),
                slot: "slot".to_owned(),
                workspace: "w".parse().unwrap(),
                dir: dir.join("work"),
                agent_session: None,
                endpoint: None,
            },
            start_by: Instant::now() + TIMEOUT,
            limit: TIMEOUT,
            message: message.to_owned(),
            attachments: Vec::new(),
            options: SessionOptions::default(),
            rules: Default::default(),
            oneshot: false,
        };
        Self { backend: claude::backend(&spec, TIMEOUT, &shims), prompt }
    }

    /// The whole turn, with what it asks for allowed or not.
    async fn turn(self, allow: bool) -> Vec<AgentEvent> {
        let mut reply = self.backend.prompt(self.prompt).await.unwrap();
        reply.control.begin();
        let mut said = Vec::new();
        while let Some(record) = within(reply.records.recv()).await {
            for event in record.events {
                if let AgentEvent::Permission(request) = &event {
                    let option = request.option_for(allow).unwrap().clone();
                    let line = self.backend.answer(request, &Decision::Selected(option)).unwrap();
                    // An engine that adopts a run answers again.
                    assert!(reply.control.write(&line).await && reply.control.write(&line).await);
                }
                if event == AgentEvent::Ended {
                    assert!(reply.control.close_input().await);
                }
                said.push(event);
            }
        }
        within(reply.end).await.unwrap();
        said
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_may_be_told_twice() {
    let Some(scene) = scene().await else { return };
    let file = scene.dir.path().join("work/file");
    for (allow, is_left) in [(false, true), (true, false)] {
        std::fs::write(&file, "").unwrap();
        let said = Direct::new(&scene, "[[tool:rm -f file]]").turn(allow).await;
        let asked = said.iter().filter(|event| matches!(event, AgentEvent::Permission(_))).count();
        assert_eq!((asked, file.exists()), (1, is_left), "{said:?}");
        let done =
            said.iter().filter(|event| matches!(event, AgentEvent::ToolFinished { result, .. } if result.is_ok()));
        assert_eq!(done.count(), usize::from(allow));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_message_reach_the_model() {
    const PIXEL: &str =
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
    let Some(scene) = scene().await else { return };
    let mut direct = Direct::new(&scene, "[[text:seen]]");
    let file = |media_type: &str, data: &str| Attachment {
        media_type: media_type.to_owned(),
        filename: Some("it".to_owned()),
        url: format!("data:{media_type};base64,{data}"),
    };
    direct.prompt.attachments = vec![file("image/png", PIXEL), file("text/plain", "cmVhZCBtZQ==")];
    let said = direct.turn(false).await;
    assert!(said.contains(&AgentEvent::Ended), "{said:?}");
    let body = scene.model.asked("text")["body"]["messages"].to_string();
    assert!(body.contains("\"media_type\":\"image/png\"") && body.contains("read me"), "{body}");
}
