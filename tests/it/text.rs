//! Commands whose stdout is the answer and whose exit code means success or failure.

use std::path::Path;

use mainstay::run::{Cause, Status};
use serde_json::{Value, json};

use crate::scene::{Camp, Scene, settled, until, within};

/// A config with an agent of the driver `text` that runs a script, with these arguments.
fn config(script: &str, arguments: &[&str]) -> String {
    let command = [&["sh", "-c", script, "command"], arguments].concat();
    format!(
        "[agents.words]\ndriver = \"text\"\nkill_grace = \"500ms\"\ncommand = {}\n\
         [workspaces.words]\nagent = \"words\"\n",
        json!(command)
    )
}

async fn scene(script: &str, arguments: &[&str]) -> Scene {
    Scene::new(&[], &config(script, arguments)).await
}

fn touch(dir: &Path, name: &str) {
    std::fs::write(dir.join(name), "").unwrap();
}

/// The text of the answer in a session.
async fn answer(scene: &Scene, session: &str) -> String {
    let messages = scene.messages(session).await;
    let parts = messages.iter().filter(|(role, _)| role == "assistant").flat_map(|(_, parts)| parts.as_array());
    let texts = parts.flatten().filter(|part| part["type"] == "text");
    texts.map(|part| part["text"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn output_is_streamed_before_its_line_ends() {
    let scene = scene("printf 'thinking…'; while [ ! -e go ]; do sleep 0.01; done; printf ' done\\n'", &[]).await;
    let run = scene.send("words", "s", "hi").await;
    scene.said(run.id, "thinking…").await;
    touch(scene.dir.path(), "go");
    let run = scene.settled(run.id).await;
    assert_eq!((run.status, run.exit_code, run.malformed_lines), (Status::Completed, Some(0), 0));
    assert_eq!(answer(&scene, "s").await, "thinking… done\n");
}

#[tokio::test]
async fn message_goes_to_the_argument_or_to_stdin() {
    let by_stdin = scene("printf 'in: '; cat", &[]).await;
    by_stdin.turn("words", "s", "a \"b\" $(c)").await;
    assert_eq!(answer(&by_stdin, "s").await, "in: a \"b\" $(c)");
    let by_argument = scene("printf '%s|' \"$@\"; cat", &["{message}", "{session}", "{slot}"]).await;
    by_argument.turn("words", "s", "a \"b\" $(c)").await;
    assert_eq!(answer(&by_argument, "s").await, "a \"b\" $(c)|s|chat-slot-words-1|");
}

#[tokio::test]
async fn exit_code_decides_whatever_was_printed() {
    let scene = scene("eval \"$1\"", &["{message}"]).await;
    for (index, (script, status, cause, error)) in [
        ("true", Status::Completed, Cause::Finished, None),
        ("echo '{\"event\":\"error\"}'; echo oops >&2", Status::Completed, Cause::Finished, None),
        ("printf half; echo one >&2; echo two >&2; exit 3", Status::Failed, Cause::ExitCode, {
            Some("The command exited with code 3: one\ntwo")
        }),
        ("exit 1", Status::Failed, Cause::ExitCode, Some("The command exited with code 1.")),
        ("kill -9 $$", Status::Failed, Cause::Signal, Some("The command was ended by signal 9 (SIGKILL).")),
    ]
    .into_iter()
    .enumerate()
    {
        let session = format!("s{index}");
        let run = scene.turn("words", &session, script).await;
        assert_eq!((run.status, run.cause.as_deref()), (status, Some(cause.as_str())), "{script}");
        assert_eq!(run.error.as_deref(), error, "{script}");
    }
    let story = scene.messages("s2").await;
    let texts: Vec<_> = story[1].1.as_array().unwrap().iter().filter_map(|part| part["text"].as_str()).collect();
    assert_eq!(texts, ["half", "[error] The command exited with code 3: one\ntwo"]);
}

#[tokio::test]
async fn bytes_that_are_no_text_are_replaced_or_left_out() {
    let scene =
        scene("printf 'a\\377b\\033[1mc\\000d'; printf '\\303'; sleep 0.1; printf '\\251\\342\\202'", &[]).await;
    let run = scene.turn("words", "s", "hi").await;
    assert_eq!(run.status, Status::Completed);
    assert_eq!(answer(&scene, "s").await, "a\u{fffd}bcd\u{e9}\u{fffd}");
}

#[tokio::test]
async fn cancel_ends_the_command() {
    let scene = scene("printf started; sleep 1000", &[]).await;
    let run = scene.send("words", "s", "hi").await;
    scene.said(run.id, "started").await;
    scene.engine.cancel_run(run.id).await.unwrap();
    assert_eq!(scene.settled(run.id).await.status, Status::Cancelled);
}

/// The daemons are killed while neither a line nor a character is complete.
#[tokio::test(flavor = "multi_thread")]
async fn killed_daemons_cost_no_byte_and_double_none() {
    let script = "i=0; while [ ! -e stop ]; do i=$((i+1)); printf '%s\\303\\251 ' $i >> record; \
                  printf '%s\\303' $i; sleep 0.01; printf '\\251 '; done";
    let camp = Camp::new(&[], &config(script, &[])).await;
    let mut daemon = camp.daemon();
    let run = camp.send("words", "s", "hi").await.id;
    let mut follower = camp.watcher.follow_run(run, 0).await.unwrap();
    let mut text = String::new();
    for round in 1..=4 {
        while text.len() < round * 100 {
            let events = within(follower.next_events()).await.unwrap().unwrap();
            text.extend(events.iter().filter_map(|event| delta(&event.event)));
        }
        if round < 4 {
            daemon.kill();
            daemon = camp.daemon();
        }
    }
    touch(camp.dir.path(), "stop");
    let run = settled(&camp.watcher, run).await;
    assert_eq!((run.status, run.attempts), (Status::Completed, 1));
    while let Some(events) = within(follower.next_events()).await.unwrap() {
        text.extend(events.iter().filter_map(|event| delta(&event.event)));
    }
    assert_eq!(text, std::fs::read_to_string(camp.dir.path().join("record")).unwrap());
    daemon.stop();
    until(|| crate::scene::marked(run.id).is_empty()).await;
}

fn delta(event: &str) -> Option<String> {
    let chunk: Value = serde_json::from_str(event).unwrap();
    chunk["delta"].as_str().map(str::to_owned)
}
