//! What a person is told about an agent that cannot be started.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use mainstay::backend::Backend;
use mainstay::config::Config;
use mainstay::engine::{Engine, SendMessage};
use mainstay::id::{MessageId, RunId};
use mainstay::message::UserMessage;
use mainstay::run::{Run, Status};
use serde_json::{Value, json};

use crate::acp::scene::{AGENT, within};

/// An engine whose agent is started with this command, and a run that was sent to it.
async fn sent_to(dir: &Path, command: &[&str], more: &str) -> (Engine, RunId) {
    send(dir, command, more, "say hello").await
}

/// The same with a message.
pub async fn send(dir: &Path, command: &[&str], more: &str, message: &str) -> (Engine, RunId) {
    let text = format!(
        "[agents.live]\ndriver = \"acp\"\ncommand = {}\n{more}\n[workspaces.w]\nagent = \"live\"\n",
        json!(command)
    );
    let mut config = Config::load(&text, Path::new("test.toml"), dir).unwrap();
    config.engine.shim_program = env!("CARGO_BIN_EXE_mainstay").into();
    let engine = Engine::open(&dir.join("m.db"), config).await.unwrap();
    engine.start().await.unwrap();
    let mut send = SendMessage::new("s".parse().unwrap(), UserMessage::text(MessageId::generate(), message).unwrap());
    send.workspace = Some("w".parse().unwrap());
    let run = engine.send(send).await.unwrap().run.id;
    (engine, run)
}

/// The settled run on such an agent, and its backend.
async fn turn_on(dir: &Path, command: &[&str], more: &str) -> (Run, Backend) {
    let (engine, run) = sent_to(dir, command, more).await;
    let run = within(engine.wait_settled(run)).await.unwrap();
    let backend = engine.list_backends().await.unwrap().remove(0);
    engine.close().await;
    (run, backend)
}

#[tokio::test]
async fn missing_program_is_told_before_anything_is_started() {
    for (program, class, words) in [
        ("no-such-agent", json!("agent_missing"), "the program no-such-agent was not found: install it"),
        ("./gone/agent", json!("agent_missing"), "the program ./gone/agent was not found"),
        ("./text", json!(null), "./text must not be executed here"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("text"), "no program").unwrap();
        let (run, backend) = turn_on(dir.path(), &[program], "").await;
        let error = run.error.clone().unwrap();
        assert!(error.starts_with("Failed to start agent: ") && error.contains(words), "{error}");
        assert_eq!((json!(run.error_class), run.retry_at), (class, None), "{run:?}");
        assert_eq!((backend.generation, backend.pid), (1, None), "{backend:?}");
        assert!(error.ends_with(&backend.reason.unwrap()));
    }
}

/// Agents that answer `initialize`, each in a way of its own.
pub fn stub(dir: &Path, can: &str) -> String {
    let [store, log] = ["store", "log"].map(|name| json!(dir.join(name)));
    format!("env = {{ STUB_CAN = \"{can}\", STUB_STORE = {store}, STUB_LOG = {log} }}")
}

#[tokio::test]
async fn permanent_start_failure_is_not_retried() {
    for (command, can, class, words) in [
        (
            &AGENT[..],
            "login-first",
            "authentication",
            "initialize with the agent failed: Authentication required: run `stub login`",
        ),
        (&AGENT, "version-2", "protocol", "required ACP protocol version 1 but peer negotiated 2"),
        (&AGENT, "nonsense", "protocol", "protocolVersion must be a valid ACP protocol version"),
        (&AGENT, "nonsense", "protocol", r#""result":"hello"}"#),
        (&["cat"], "", "protocol", "initialize with the agent failed: Method not found"),
        (&["./of-no-interpreter"], "", "agent_missing", "failed to start the agent: ./of-no-interpreter: No such file"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("of-no-interpreter");
        std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let (run, backend) = turn_on(dir.path(), command, &stub(dir.path(), can)).await;
        let error = run.error.clone().unwrap();
        assert!(error.starts_with("Failed to start agent: ") && error.contains(words), "{error}");
        assert_eq!((json!(run.error_class), run.retry_at), (json!(class), None), "{run:?}");
        assert_eq!((backend.generation, backend.error_class), (1, run.error_class), "{backend:?}");
        assert!(error.ends_with(&backend.reason.unwrap()));
    }
}

#[tokio::test]
async fn one_that_ends_is_told_with_how_it_ended_and_its_own_words() {
    for (script, words) in [
        (
            "echo 'I am not set up: run `agent login`' >&2; exit 3",
            "(exit status: 3); it wrote last: I am not set up: run `agent login`",
        ),
        // After the request was read, so that the agent's pipes break first.
        ("read -r asked; exec >&- <&-; echo 'Error: no key' >&2; exit 4", "(exit status: 4); it wrote last: no key"),
        ("kill -KILL $$", "(signal: 9 (SIGKILL))"),
        ("exit 0", "(exit status: 0)"),
        ("echo 'usage: agent [options]'; exit 0", "(exit status: 0); it said: usage: agent [options]"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let quick = "restart_pause = \"10ms\"\nmax_restarts = 1";
        let (run, backend) = turn_on(dir.path(), &["sh", "-c", script], quick).await;
        let expected = format!("the agent ended {words}");
        assert_eq!(run.error.as_deref(), Some(format!("Failed to start agent: {expected}").as_str()));
        assert_eq!((json!(run.error_class), run.retry_at), (json!("crashed"), backend.not_before), "{run:?}");
        assert_eq!(backend.reason, Some(expected));
    }
}

#[tokio::test]
async fn follower_sees_agent_start_and_why_it_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let wait = "while [ ! -e seen ]; do sleep 0.02; done; echo 'Error: no luck' >&2; exit 3";
    let script = format!("[ -e seen ] || {{ {wait}; }}; exec {}", AGENT.join(" "));
    let (engine, run) = sent_to(dir.path(), &["sh", "-c", &script], &stub(dir.path(), "")).await;
    let mut follower = engine.follow_run(run, 0).await.unwrap();
    let mut told = Vec::new();
    while let Some(events) = within(follower.next_events()).await.unwrap() {
        let chunks = events.iter().map(|event| serde_json::from_str::<Value>(&event.event).unwrap());
        told.extend(chunks.filter(|chunk| chunk["type"] == "data-status").map(|chunk| chunk["data"]["label"].clone()));
        if told == [json!("Starting live…")] {
            std::fs::write(dir.path().join("seen"), "").unwrap();
        }
    }
    let reason = "the agent ended (exit status: 3); it wrote last: no luck";
    assert_eq!(told, [json!("Starting live…"), json!(format!("live does not run: {reason}. It is started again."))]);
    let run = engine.run(run).await.unwrap();
    assert_eq!((run.status, run.attempts, run.progress.as_deref()), (Status::Completed, 1, Some("hello")), "{run:?}");
    engine.close().await;
}
