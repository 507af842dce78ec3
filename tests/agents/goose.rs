//! goose over ACP: a process for one session, which ends cancelled turns as if they were complete, and hangs if its questions
//! are not withdrawn.

use std::path::Path;

use mainstay::agent::{DEFAULT_MAX_LINE_BYTES, DriverConfig, ProcessSpec};
use mainstay::agent_event::{AgentEvent, SessionOrigin};
use mainstay::failure::ErrorClass;
use mainstay::permission::{Answer, ToolKind};
use mainstay::run::{Cause, Status};

use testkit::until;

use crate::live::{Live, errors_of, session_of, text_of};
use crate::scene::{Scene, installed, left_of, slow_words, within};

/// Environment in which it only connects to the model server, and asks before it uses a tool.
fn environment(dir: &Path, model: &str) -> [(&'static str, String); 8] {
    [
        ("HOME", dir.join("home").display().to_string()),
        ("GOOSE_PROVIDER", "openai".to_owned()),
        ("GOOSE_MODEL", "fake-model".to_owned()),
        ("GOOSE_MODE", "approve".to_owned()),
        ("GOOSE_DISABLE_KEYRING", "1".to_owned()),
        ("OPENAI_API_KEY", "none".to_owned()),
        ("OPENAI_HOST", model.to_owned()),
        ("OPENAI_BASE_PATH", "v1/chat/completions".to_owned()),
    ]
}

async fn start() -> Option<Live> {
    let program = installed("goose")?;
    let live = Live::start(false, |dir, model| {
        let env = environment(dir, &model.url).map(|(name, value)| (name.to_owned(), value));
        let process = ProcessSpec {
            command: vec![program.display().to_string(), "acp".to_owned()],
            env: env.into_iter().collect(),
            max_line_bytes: DEFAULT_MAX_LINE_BYTES,
        };
        DriverConfig::Acp { process, shared: false }
    });
    Some(live.await)
}

/// The same under a daemon.
async fn scene() -> Option<Scene> {
    let program = installed("goose")?;
    let keys = |dir: &Path, model: &str| {
        let env = environment(dir, model).map(|(name, value)| format!("{name} = {value:?}")).join(", ");
        format!("driver = \"acp\"\ncommand = [{program:?}, \"acp\"]\nenv = {{ {env} }}")
    };
    Some(Scene::new(keys).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_live_agent_goes_on_whatever_becomes_of_the_daemon_and_the_conversation_whatever_becomes_of_it() {
    let Some(mut scene) = scene().await else { return };
    let origin = "SELECT origin FROM v_agent_sessions";
    let run = scene.turn("s", "[[text:one]]").await;
    assert_eq!(run.status, Status::Completed, "{:?}\n{}", run.error, scene.log());
    assert_eq!(scene.value(origin), "new");

    let run = scene.send("s", "[[slow:60:100]]").await;
    for word in ["w5 ", "w20 ", "w35 "] {
        scene.chunks_until(run, word).await;
        scene.kill();
        scene.start();
    }
    let run = scene.settled(run).await;
    assert_eq!(run.status, Status::Completed, "{:?}\n{}", run.error, scene.log());
    assert_eq!(scene.text(run.id).await, slow_words(60));
    assert_eq!((scene.value(origin).as_str(), left_of(run.id)), ("reused", 0));

    // Between two turns.
    scene.kill();
    scene.start();
    let run = scene.send("s", "[[tool:touch made]]").await;
    let asked = scene.asked(run).await;
    scene.kill();
    scene.start();
    scene.engine.answer_permission(asked.id, Answer::Approved(true), "somebody", None).await.unwrap();
    let run = scene.settled(run).await;
    assert_eq!(run.status, Status::Completed, "{:?}\n{}", run.error, scene.log());
    assert!(scene.dir.path().join("work/made").exists());
    assert_eq!(scene.value(origin), "reused");
    assert_eq!(scene.value("SELECT count(*) FROM backends"), "1");

    let before = scene.model.turns("text");
    let host = scene.value("SELECT pid FROM backends WHERE state = 'running'");
    assert!(std::process::Command::new("kill").args(["-KILL", &host]).status().unwrap().success());
    let run = scene.turn("s", "[[text:again]]").await;
    assert_eq!(run.status, Status::Completed, "{:?}\n{}", run.error, scene.log());
    assert_eq!((scene.text(run.id).await.as_str(), scene.value(origin).as_str()), ("again", "loaded"));
    assert!(scene.model.turns("text") > before + 4, "the model was told what was before");

    let run = scene.send("s", "[[slow:1000:50]]").await;
    scene.chunks_until(run, "w3 ").await;
    scene.engine.cancel_run(run).await.unwrap();
    let run = scene.settled(run).await;
    assert_eq!(run.status, Status::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_goes_on_in_one_session_also_in_another_process() {
    let Some(mut live) = start().await else { return };
    let events = live.turn(None, "[[reasoning]]").await;
    let (id, origin) = session_of(&events);
    assert_eq!((origin, text_of(&events).as_str()), (SessionOrigin::New, "The answer is 42."));
    let reasoning = events.iter().filter_map(|event| match event {
        AgentEvent::Reasoning(text) => Some(text.as_str()),
        _ => None,
    });
    assert_eq!(reasoning.collect::<String>(), "First I think about it. Then I think again. ");
    assert!(events.iter().any(|event| matches!(event, AgentEvent::Usage(usage) if usage.output_tokens == Some(7))));
    assert!(events.iter().any(|event| matches!(event, AgentEvent::Advertised(offers) if offers["modes"].is_object())));

    let mut turn = live.begin(Some(&id), "[[tool:echo tool-ran]]").await;
    let request = turn.asked().await;
    assert_eq!((request.kind, request.tool.as_str()), (ToolKind::Other, "shell"));
    assert_eq!(request.input["command"], "echo tool-ran");
    turn.answer(&request, true).await;
    // A second answer does no harm.
    turn.answer(&request, true).await;
    let events = turn.end().await;
    assert_eq!(session_of(&events), (id.clone(), SessionOrigin::Reused));
    assert!(text_of(&events).ends_with("Done. The tool said: tool-ran"), "{events:#?}");

    let mut turn = live.begin(Some(&id), "[[write:made.txt]]").await;
    let request = turn.asked().await;
    turn.answer(&request, false).await;
    let events = turn.end().await;
    assert!(events.iter().any(|event| matches!(event, AgentEvent::ToolFinished { result: Err(_), .. })), "{events:#?}");
    assert!(!live.dir.path().join("work/made.txt").exists());

    let before = live.model.turns("reasoning");
    live.restart().await;
    let events = live.turn(Some(&id), "[[reasoning]]").await;
    assert_eq!(session_of(&events), (id, SessionOrigin::Loaded));
    assert_eq!(text_of(&events), "The answer is 42.");
    assert!(live.model.turns("reasoning") > before + 4, "the model was told what was before");
    let events = live.turn(Some("20000101_1"), "[[text:new]]").await;
    assert_eq!((session_of(&events).1, text_of(&events).as_str()), (SessionOrigin::New, "new"));
    live.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_turn_ends_and_the_session_goes_on() {
    let Some(live) = start().await else { return };
    let mut turn = live.begin(None, "[[slow:1000:50]]").await;
    turn.hear_text("w3 ").await;
    turn.reply.control.stop(Cause::Cancelled);
    let events = turn.end().await;
    assert!(text_of(&events).starts_with("w0 w1 w2 w3 "));
    assert_eq!(errors_of(&events), []);
    let id = session_of(&events).0;

    // A question is open.
    let mut turn = live.begin(Some(&id), "[[tool]]").await;
    turn.asked().await;
    turn.reply.control.stop(Cause::Cancelled);
    turn.end().await;

    // A tool runs.
    let words = format!("tail -f /dev/null {}", live.dir.path().join("never").display());
    let mut turn = live.begin(Some(&id), &format!("[[tool:{words}]]")).await;
    let request = turn.asked().await;
    turn.answer(&request, true).await;
    until(|| live.running(&words) > 0).await;
    turn.reply.control.stop(Cause::Cancelled);
    turn.end().await;
    until(|| live.running(&words) == 0).await;

    // Its relay is killed.
    let mut turn = live.begin(Some(&id), "[[slow:1000:50]]").await;
    turn.hear_text("w3 ").await;
    turn.reply.control.kill(Cause::Cancelled);
    within(&mut turn.reply.end).await.unwrap();
    let mut events = live.turn(Some(&id), "[[text:after]]").await;
    while errors_of(&events) == [None] {
        events = live.turn(Some(&id), "[[text:after]]").await;
    }
    assert_eq!((session_of(&events).1, text_of(&events).as_str()), (SessionOrigin::Reused, "after"));
    live.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_provider_refuses_is_tried_again_or_said() {
    let Some(live) = start().await else { return };
    let events = live.turn(None, "[[429:1:goose]]").await;
    assert_eq!((text_of(&events).as_str(), errors_of(&events)), ("Recovered after 1 failures.", vec![]));
    // goose reports the error as text, and that the turn came to its end.
    let events = live.turn(None, "[[disconnect]]").await;
    assert!(text_of(&events).contains("Ran into this error"), "{events:#?}");
    live.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_engines_cost_no_word_and_a_killed_agent_is_a_crash() {
    let Some(mut live) = start().await else { return };
    let mut turn = live.begin(None, "[[slow:60:50]]").await;
    for word in ["w5 ", "w20 ", "w40 "] {
        turn.hear_text(word).await;
        turn.change_engine().await;
    }
    let events = turn.end().await;
    assert_eq!(text_of(&events), slow_words(60));

    let id = session_of(&events).0;
    let mut turn = live.begin(Some(&id), "[[slow:1000:50]]").await;
    turn.hear_text("w3 ").await;
    live.server.control.kill(Cause::Internal);
    within(&mut live.server.end).await.unwrap();
    assert_eq!(turn.crashed().await, [Some(ErrorClass::Crashed)]);
    live.start_again().await;
    let events = live.turn(Some(&id), "[[text:again]]").await;
    assert_eq!((session_of(&events).1, text_of(&events).as_str()), (SessionOrigin::Loaded, "again"));
    live.stop().await;
}
