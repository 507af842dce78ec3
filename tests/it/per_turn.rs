//! How turns of Claude Code and Codex end, and how they resume their conversations: with scripts that print their lines.

use mainstay::run::{Run, Status};
use serde_json::{Value, json};

use crate::scene::{Camp, Scene, marked, settled, story, until};

/// Two agents, each a shell script, in workspaces of the same names.
fn config(claude: &str, codex: &str) -> String {
    let agent = |name: &str, script: &str| {
        // A JSON string is a TOML string.
        let script = Value::from(script);
        format!(
            "[agents.{name}]\ndriver = \"{name}\"\nkill_grace = \"500ms\"\nidle_timeout = \"3s\"\ncommand = [\"sh\", \"-c\", {script}, \"agent\"]\n\
             [workspaces.{name}]\nagent = \"{name}\"\n"
        )
    };
    [agent("claude", claude), agent("codex", codex)].concat()
}

async fn claude(script: &str) -> Scene {
    Scene::new(&[], &config(&format!("read -r message; {script}"), "true")).await
}

async fn codex(script: &str) -> Scene {
    Scene::new(&[], &config("true", script)).await
}

/// A command that prints these lines.
fn lines(lines: &[Value]) -> String {
    let lines: Vec<_> = lines.iter().map(|line| format!("'{line}'")).collect();
    format!("printf '%s\\n' {}", lines.join(" "))
}

fn init(session: &str) -> Value {
    json!({"type": "system", "subtype": "init", "session_id": session})
}

fn text(uuid: &str, words: &str) -> Value {
    json!({"type": "assistant", "uuid": uuid, "message": {"id": uuid, "content": [{"type": "text", "text": words}]}})
}

fn success() -> Value {
    json!({"type": "result", "subtype": "success", "is_error": false, "result": "", "stop_reason": "end_turn"})
}

fn of_task(subtype: &str) -> Value {
    json!({"type": "system", "subtype": subtype, "task_id": "t", "task_type": "local_workflow"})
}

/// A turn's output in a thread of Codex.
fn thread(id: &str, words: &str) -> String {
    let message = json!({"type": "item.completed", "item": {"type": "agent_message", "text": words}});
    lines(&[json!({"type": "thread.started", "thread_id": id}), message, json!({"type": "turn.completed"})])
}

fn end(run: &Run) -> (Status, &str, Option<i64>) {
    (run.status, run.cause.as_deref().unwrap_or_default(), run.exit_code)
}

/// The agent's own session that the next turn resumes.
async fn kept(scene: &Scene) -> Option<String> {
    scene.engine.session(&"s".parse().unwrap()).await.unwrap().agent_session.map(|session| session.id)
}

#[tokio::test]
async fn a_turn_without_the_end_of_its_protocol_is_no_success() {
    let scene = claude(&lines(&[init("a"), text("m", "half")])).await;
    let run = scene.turn("claude", "s", "hi").await;
    assert_eq!(end(&run), (Status::Failed, "incomplete", Some(0)));
    assert_eq!(run.error.as_deref(), Some("The agent ended before it said that the turn is over."));
    assert!(scene.story(run.id).await.starts_with("start start-step text-start text-delta=half text-end"));

    let scene =
        codex(&lines(&[json!({"type": "item.completed", "item": {"type": "agent_message", "text": "half"}})])).await;
    assert_eq!(end(&scene.turn("codex", "s", "hi").await), (Status::Failed, "incomplete", Some(0)));
    let limit = json!({"type": "error", "message": "You have hit your usage limit."});
    for code in [0, 1] {
        let scene = codex(&format!("{}; exit {code}", lines(std::slice::from_ref(&limit)))).await;
        let run = scene.turn("codex", "s", "hi").await;
        assert_eq!(end(&run), (Status::Failed, "agent_error", Some(code)));
        assert_eq!(run.error.as_deref(), Some("You have hit your usage limit."));
    }
}

#[tokio::test]
async fn a_stated_success_is_completed_however_the_process_ends() {
    let said = "start start-step text-start text-delta=all text-end finish-step finish=stop";
    for (how, code, signal) in [("exit 1", Some(1), None), ("kill -9 $$", None, Some(9))] {
        let scene = claude(&format!("{}; {how}", lines(&[init("a"), text("m", "all"), success()]))).await;
        let run = scene.turn("claude", "s", "hi").await;
        assert_eq!(
            (end(&run), run.exit_signal, run.error.as_deref()),
            ((Status::Completed, "finished", code), signal, None)
        );
        assert_eq!(scene.story(run.id).await, said);
        let scene = codex(&format!("{}; {how}", thread("a", "all"))).await;
        let run = scene.turn("codex", "s", "hi").await;
        assert_eq!((end(&run), run.exit_signal), ((Status::Completed, "finished", code), signal));
        assert_eq!(scene.story(run.id).await, said);
    }
}

#[tokio::test]
async fn a_turn_that_ended_while_nobody_listened_is_judged_alike() {
    let half =
        format!("read -r message; {}; until test -e go; do sleep 0.01; done", lines(&[init("a"), text("m", "half")]));
    let whole = format!("{half}; {}; exit 1", lines(&[success()]));
    for (script, ends) in
        [(half, (Status::Failed, "incomplete", Some(0))), (whole, (Status::Completed, "finished", Some(1)))]
    {
        let quick = format!("[engine]\nlease = \"1s\"\nsweep_interval = \"1s\"\n{}", config(&script, "true"));
        let camp = Camp::new(&[], &quick).await;
        let daemon = camp.daemon();
        let run = camp.send("claude", "s", "hi").await;
        camp.grown(run.id, 4).await;
        daemon.kill();
        std::fs::write(camp.dir.path().join("go"), "").unwrap();
        until(|| marked(run.id).is_empty()).await;
        let _daemon = camp.daemon();
        let run = settled(&camp.watcher, run.id).await;
        assert_eq!(end(&run), ends, "{}", camp.log());
        assert!(story(&camp.watcher, run.id).await.contains("text-delta=half"));
        let session = camp.watcher.session(&"s".parse().unwrap()).await.unwrap();
        assert_eq!(session.agent_session.unwrap().id, "a");
    }
}

#[tokio::test]
async fn a_request_that_is_not_served_is_refused_at_once() {
    let asks =
        |id: &str, kind: &str| json!({"type": "control_request", "request_id": id, "request": {"subtype": kind}});
    let script = format!(
        "{}; read -r a; read -r b; printf '%s\\n' \"$a\" \"$b\" > answers; {}",
        lines(&[init("a"), asks("x", "elicitation"), asks("d", "request_user_dialog"), asks("y", "hook_callback")]),
        lines(&[text("m", "ok"), success()])
    );
    let scene = claude(&script).await;
    assert_eq!(scene.turn("claude", "s", "hi").await.status, Status::Completed);
    let answers = std::fs::read_to_string(scene.dir.path().join("answers")).unwrap();
    let answers: Vec<Value> = answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers[0]["response"]["response"], json!({"action": "decline"}));
    assert_eq!(
        (&answers[0]["response"]["request_id"], &answers[1]["response"]["request_id"]),
        (&json!("x"), &json!("y"))
    );
    assert_eq!(answers[1]["response"]["subtype"], "error");
}

#[tokio::test]
async fn running_tasks_hold_a_turn_open_and_stop_the_idle_clock() {
    // Longer than an agent may stay after its turn, and than it may be silent.
    let script = format!(
        "{}; sleep 7; {}; cat > /dev/null",
        lines(&[init("a"), of_task("task_started"), text("m", "begun"), success()]),
        lines(&[of_task("task_notification"), init("a"), text("n", "found"), success()])
    );
    let scene = claude(&script).await;
    let run = scene.turn("claude", "s", "hi").await;
    assert_eq!(end(&run), (Status::Completed, "finished", Some(0)), "{:?}", run.error);
    let story = scene.story(run.id).await;
    assert!(story.contains("text-delta=begun") && story.contains("text-delta=found"), "{story}");

    // The end of a task is never reported: the agent reports that it is idle, or exits.
    let idle = json!({"type": "system", "subtype": "session_state_changed", "state": "idle"});
    let begun = [init("a"), of_task("task_started"), text("m", "begun"), success()];
    for script in [format!("{}; cat > /dev/null", lines(&[&begun[..], &[idle]].concat())), lines(&begun)] {
        let scene = claude(&script).await;
        let run = scene.turn("claude", "s", "hi").await;
        assert_eq!(end(&run), (Status::Completed, "finished", Some(0)), "{:?}", run.error);
    }
}

#[tokio::test]
async fn what_the_agent_withdraws_is_stored_as_an_empty_text() {
    let retracted = json!({"type": "system", "subtype": "model_refusal_fallback", "content": "Retrying", "retracted_message_uuids": ["u"]});
    let scene = claude(&lines(&[init("a"), text("u", "bad"), retracted, text("v", "good"), success()])).await;
    let run = scene.turn("claude", "s", "hi").await;
    assert_eq!(run.status, Status::Completed, "{:?}", run.error);
    let parts = &scene.messages("s").await[1].1;
    let texts: Vec<_> = parts.as_array().unwrap().iter().filter_map(|part| part["text"].as_str()).collect();
    assert_eq!((texts, &parts[1]["text"]), (vec!["", "good"], &json!("")));
    assert_eq!(parts[3], json!({"type": "data-notice", "id": "notice-3", "data": {"text": "Retrying"}}));
}

#[tokio::test]
async fn a_conversation_is_given_up_only_on_proof_that_it_is_gone() {
    let gone = "*'resume old'*) echo 'Error: thread/resume failed: no rollout found for thread id old' >&2; exit 1";
    let scene = codex(&format!(
        "case \"$* $(cat)\" in {gone};; *first*) {};; *) {};; esac",
        thread("old", "one"),
        thread("new", "two")
    ))
    .await;
    scene.turn("codex", "s", "first").await;
    assert_eq!(kept(&scene).await.as_deref(), Some("old"));
    let run = scene.turn("codex", "s", "second").await;
    assert_eq!((run.status, run.attempts), (Status::Completed, 2), "{:?}", run.error);
    assert_eq!(
        scene.story(run.id).await,
        "start start-step data-notice text-start text-delta=two text-end finish-step finish=stop"
    );
    assert_eq!(kept(&scene).await.as_deref(), Some("new"));

    let errors = |words: &str| json!({"type": "result", "subtype": "error_during_execution", "is_error": true, "errors": [words]});
    let resumed = |failure: &str| {
        format!(
            "read -r message; case \"$*\" in *--resume=old*) {failure};; *) {};; esac",
            lines(&[init("old"), text("m", "hi"), success()])
        )
    };
    let scene =
        Scene::new(&[], &config(&resumed(&format!("{}; exit 1", lines(&[errors("EBUSY: disk busy")]))), "true")).await;
    scene.turn("claude", "s", "first").await;
    let run = scene.turn("claude", "s", "second").await;
    assert_eq!((run.status, run.attempts, run.error.as_deref()), (Status::Failed, 2, Some("EBUSY: disk busy")));
    assert_eq!(kept(&scene).await.as_deref(), Some("old"));
    let gone = lines(&[errors("No conversation found with session ID: old")]);
    let scene = Scene::new(&[], &config(&resumed(&format!("{gone}; exit 1")), "true")).await;
    scene.turn("claude", "s", "first").await;
    let run = scene.turn("claude", "s", "second").await;
    assert_eq!((run.status, run.attempts), (Status::Completed, 2), "{:?}", run.error);
    assert!(scene.story(run.id).await.contains("data-notice text-start text-delta=hi"));
}

#[tokio::test]
async fn an_announced_id_takes_the_place_of_another_only_with_words() {
    let other = lines(&[json!({"type": "thread.started", "thread_id": "other"})]);
    let scene = codex(&format!(
        "case \"$* $(cat)\" in *first*) {};; *silent*) {other}; exit 3;; *) {};; esac",
        thread("old", "one"),
        thread("other", "two")
    ))
    .await;
    scene.turn("codex", "s", "first").await;
    assert_eq!(scene.turn("codex", "s", "silent").await.status, Status::Failed);
    assert_eq!(kept(&scene).await.as_deref(), Some("old"));
    let run = scene.turn("codex", "s", "third").await;
    assert!(scene.story(run.id).await.contains("data-notice text-start text-delta=two"));
    assert_eq!(kept(&scene).await.as_deref(), Some("other"));
}

#[tokio::test]
async fn noise_around_the_lines_costs_no_line() {
    let glued = format!("{}{}", text("m", "all"), success());
    let script = format!(
        "printf '\\357\\273\\277npm WARN old\\n\\033]0;title\\007%s\\n' '{}'; printf '\\033[2K\\r%s' '{glued}'",
        init("a")
    );
    let scene = claude(&script).await;
    let run = scene.turn("claude", "s", "hi").await;
    assert_eq!((end(&run), run.malformed_lines), ((Status::Completed, "finished", Some(0)), 1), "{:?}", run.error);
    assert!(scene.story(run.id).await.contains("text-delta=all"));

    let scene = claude("echo 'Usage: agent [OPTIONS]'").await;
    let run = scene.turn("claude", "s", "hi").await;
    assert!(run.error.unwrap().ends_with("Usage: agent [OPTIONS]"));
}

#[tokio::test]
async fn an_id_that_could_be_an_option_is_not_stored() {
    for id in ["--help", "a\0b", " b", "\u{202e}x"] {
        let scene = codex(&format!("echo \"$@\" >> arguments; {}", thread(id, "word"))).await;
        let first = scene.turn("codex", "s", "hi").await;
        assert_eq!((end(&first), kept(&scene).await), ((Status::Completed, "finished", Some(0)), None), "{id:?}");
        let told = scene.story(first.id).await;
        assert_eq!(told.matches("data-notice").count(), 1, "{told}");
        assert_eq!(scene.turn("codex", "s", "hi").await.status, Status::Completed, "{id:?}");
        let arguments = std::fs::read_to_string(scene.dir.path().join("arguments")).unwrap();
        assert!(arguments.lines().count() == 2 && !arguments.contains("resume"), "{arguments}");
    }
}

#[tokio::test]
async fn an_id_that_another_program_stored_poisons_no_turn() {
    let scene = codex(&format!("echo \"$@\" >> arguments; {}", thread("good", "word"))).await;
    scene.turn("codex", "s", "hi").await;
    let db = scene.dir.path().join("m.db");
    tokio::task::spawn_blocking(move || {
        let other = rusqlite::Connection::open(db).unwrap();
        other.busy_timeout(crate::scene::TIMEOUT).unwrap();
        let set = "UPDATE sessions SET agent_session = ?1";
        assert!(other.execute(set, ["a\0b"]).is_err() && other.execute(set, ["--x"]).is_err());
        other.execute_batch("PRAGMA ignore_check_constraints = ON").unwrap();
        other.execute(set, ["a\0b"]).unwrap();
    })
    .await
    .unwrap();
    let second = scene.turn("codex", "s", "hi").await;
    assert_eq!(second.status, Status::Completed);
    let told = scene.story(second.id).await;
    assert!(told.contains("data-notice"), "{told}");
    let arguments = std::fs::read_to_string(scene.dir.path().join("arguments")).unwrap();
    assert!(!arguments.contains("resume"), "{arguments}");
    assert_eq!(kept(&scene).await.as_deref(), Some("good"));
}
