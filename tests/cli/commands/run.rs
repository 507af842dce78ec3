//! `run`, `send` and `attach`: answers, waits, questions and files.

use std::process::Stdio;

use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use super::{Scene, ended, first_cells, json_lines, signal, until};

#[tokio::test]
async fn run_answers_without_a_daemon() {
    let scene = Scene::new();
    let text = scene.mainstay(&["run", "What can you do?"]).await.printed();
    assert!(text.contains("You said: “What can you do?”") && text.ends_with('\n'), "{text}");
    assert!(!text.contains('\u{1b}'), "no colours where there is no terminal");
    for args in [&["run", "-"] as &[&str], &["run"]] {
        assert!(scene.mainstay_reading("by pipe", args).await.printed().contains("“by pipe”"));
    }

    let failed = scene.mainstay(&["run", "/fail no luck"]).await;
    assert_eq!(failed.code, Some(1));
    assert!(failed.stdout.contains("error: no luck"), "{failed:?}");

    let events = scene.mainstay(&["--json", "run", "--session", "s", "/tool"]).await.json();
    let seqs: Vec<_> = events.iter().map(|event| event["seq"].as_i64().unwrap()).collect();
    assert_eq!(seqs, (1..=seqs.len() as i64).collect::<Vec<_>>());
    let kinds: Vec<_> = events.iter().map(|event| event["event"]["type"].as_str().unwrap()).collect();
    assert_eq!((kinds[0], kinds[kinds.len() - 1]), ("start", "finish"));
    assert!(events.iter().all(|event| event["run_id"] == events[0]["run_id"] && event["at"].is_string()));
}

#[tokio::test]
async fn run_does_not_wait_for_a_run_elsewhere() {
    let scene = Scene::new();
    let (first, mut lines) = scene.begin(&["--json", "run", "/hang"]);
    until(&mut lines, "text-delta").await;
    scene.mainstay(&["run", "hi"]).await.printed();
    assert_eq!(scene.ask("SELECT status FROM v_runs ORDER BY queued_at"), "running");
    signal(&first, Signal::INT);
    assert_eq!(ended(first).await.code, Some(130));
}

#[tokio::test]
async fn attach_shows_what_was_asked_and_each_error_once() {
    let scene = Scene::new();
    scene.mainstay(&["run", "--session", "s", "/tool"]).await.printed();
    let failed = scene.mainstay(&["run", "--session", "s", "/fail no luck"]).await;
    let run = scene.mainstay(&["runs", "--json"]).await.json()[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(failed.stdout.matches("no luck").count(), 1, "{failed:?}");
    assert!(failed.stdout.contains(&format!("error: no luck (run {run})")), "{failed:?}");
    let attached = scene.mainstay(&["attach", "s"]).await;
    let (first, second) = attached.stdout.split_once("> /fail no luck\n").unwrap();
    assert!(first.starts_with("> /tool\n") && first.ends_with("The tool counted to 3.\n"), "{attached:?}");
    assert_eq!(second, format!("error: no luck (run {run})\n"));
    assert!(!scene.mainstay(&["attach", &run]).await.stdout.contains("> /fail"));
}

#[tokio::test]
async fn what_an_agent_wrote_to_stderr_is_shown_whole() {
    let scene = Scene::new();
    let script = r"printf 'first\n\033[31msecond\n' >&2; exit 3";
    scene.write(
        "mainstay.toml",
        &format!("[agents.x]\ndriver = \"openclaw\"\ncommand = [\"sh\", \"-c\", {}]", Value::from(script)),
    );
    let failed = scene.mainstay(&["--json", "run", "--agent", "x", "hi"]).await;
    assert_eq!(failed.code, Some(1));
    let run = json_lines(&failed.stdout)[0]["run_id"].as_str().unwrap().to_owned();
    let shown = scene.mainstay(&["show", &run]).await.printed();
    assert!(shown.contains("\nexit_code") && shown.ends_with("\nstderr:\nfirst\n␛[31msecond\n"), "{shown}");
    let shown = scene.mainstay(&["show", &run, "--json"]).await.json();
    assert_eq!(shown[0]["stderr"].as_str().map(str::trim_end), Some("first\n\u{1b}[31msecond"));
}

#[tokio::test]
async fn run_without_session_gives_slot_back() {
    let scene = Scene::new();
    for _ in 0..6 {
        scene.mainstay(&["run", "hi"]).await.printed();
    }
    assert_eq!(scene.ask("SELECT group_concat(DISTINCT state) FROM v_slots"), "free");
    let used = "SELECT count(DISTINCT slot) || ' of ' || count(*) FROM v_runs";
    assert_eq!(scene.ask(used), "1 of 6", "each had a slot of its own, which was free again for the next");
    scene.mainstay(&["run", "--session", "s", "hi"]).await.printed();
    assert_eq!(scene.ask("SELECT session_id FROM v_slots WHERE state = 'idle'"), "s");
}

#[tokio::test]
async fn run_and_attach_say_what_they_wait_for() {
    let scene = Scene::new();
    scene.write("mainstay.toml", "[workspaces.default]\nslots = 1");
    let (daemon, _) = scene.serve(&[]).await;
    let hanging = scene.mainstay(&["send", "a", "/hang"]).await.printed();
    let (mut running, _) = scene.begin(&["run", "--session", "b", "hi"]);
    let mut log = BufReader::new(running.stderr.take().unwrap()).lines();
    until(&mut log, "waiting for a slot of workspace default").await;
    running.stderr = Some(log.into_inner().into_inner());
    let (mut attached, _) = scene.begin(&["attach", "b", "--json"]);
    let mut told = BufReader::new(attached.stderr.take().unwrap()).lines();
    until(&mut told, r#""waits_for":"slot""#).await;
    let waiting = scene.ask("SELECT id FROM v_runs WHERE session_id = 'b'");
    assert!(scene.mainstay(&["show", &waiting]).await.printed().contains("a slot of workspace default"));
    assert_eq!(scene.mainstay(&["show", &waiting, "--json"]).await.json()[0]["waits_for"], "slot");
    scene.mainstay(&["cancel", hanging.trim_end(), "--wait"]).await.printed();
    let rest = ended(running).await;
    assert_eq!((rest.code, rest.stderr.as_str()), (Some(0), ""), "it was said once");
    assert_eq!(ended(attached).await.code, Some(0));
    signal(&daemon, Signal::TERM);
    assert_eq!(ended(daemon).await.code, Some(0));
}

#[tokio::test]
async fn what_an_agent_asks_is_answered_from_another_terminal() {
    let scene = Scene::new();
    for (word, says) in [("allow", "“Allow once”"), ("always", "“Allow always”"), ("deny", "“Reject”")] {
        let (running, mut lines) = scene.begin(&["run", "--session", word, "/ask"]);
        until(&mut lines, "  mainstay permissions --answer ").await;
        let listed = scene.mainstay(&["permissions", "--session", word, "--json"]).await.json();
        let (id, state) = (listed[0]["id"].as_str().unwrap(), listed[0]["state"].as_str().unwrap());
        assert_eq!((listed.len(), state), (1, "pending"));
        let short = first_cells(&scene.mainstay(&["permissions"]).await.printed()).remove(0);
        assert!(id.starts_with(&short), "{short}");
        let wrong = scene.mainstay(&["permissions", "--answer", id, "maybe"]).await.refused(1);
        assert!(wrong.contains("\"always\" (Allow always)"), "{wrong}");
        let state = if word == "deny" { "denied" } else { "allowed" };
        let answered = scene.mainstay(&["permissions", "--answer", &short, word, "--reason", "why"]).await.printed();
        assert_eq!(answered, format!("{id} {state}\n"));
        until(&mut lines, says).await;
        assert_eq!(ended(running).await.code, Some(0));
        let other = if word == "deny" { "allow" } else { "deny" };
        let late = scene.mainstay(&["permissions", "--answer", id, other]).await.refused(1);
        assert!(late.contains(&format!("{state} already, by cli")), "{late}");
        assert!(scene.mainstay(&["permissions", "--json"]).await.json().is_empty(), "nothing is left to do");
        assert_eq!(scene.mainstay(&["permissions", "--json", "--state", state]).await.json()[0]["reason"], "why");
    }
    assert_eq!(scene.mainstay(&["permissions", "--all", "--json"]).await.json().len(), 3);
}

/// In a terminal that `script` provides.
#[tokio::test]
async fn question_is_asked_at_the_terminal() {
    if Command::new("script").arg("--version").stdout(Stdio::null()).status().await.is_err() {
        println!("SKIPPED: question_is_asked_at_the_terminal: script (util-linux) is not installed");
        return;
    }
    let scene = Scene::new();
    for (answer, says) in [("y", "“Allow once”"), ("perhaps\nno", "“Reject”")] {
        let run = format!("{} run /ask", env!("CARGO_BIN_EXE_mainstay"));
        let mut terminal = Command::new("script");
        terminal.args(["-qefc", &run, "/dev/null"]).current_dir(scene.dir.path()).kill_on_drop(true);
        terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = terminal.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        until(&mut lines, "Write demo.txt: ").await;
        stdin.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        until(&mut lines, says).await;
        assert_eq!(ended(child).await.code, Some(0));
    }
}

#[tokio::test]
async fn a_file_goes_along_with_a_message_or_instead_of_one() {
    let scene = Scene::new();
    scene.write("a.txt", "hello");
    scene.write("b.txt", "hello");
    let said = scene.mainstay(&["run", "--attach", "a.txt", "--attach", "b.txt", "look"]).await.printed();
    assert!(said.contains("You said: “look”.") && said.contains("You sent along: a.txt, b.txt."), "{said}");
    let said = scene.mainstay(&["run", "--session", "s", "--attach", "a.txt", ""]).await.printed();
    assert!(said.contains("You sent along: a.txt."), "{said}");
    let run = scene.mainstay(&["send", "s", "", "--attach", "b.txt", "-q", "-q"]).await.printed();
    assert!(!run.trim().is_empty());
    let messages = scene.mainstay(&["messages", "s"]).await.printed();
    assert!(messages.contains("[a.txt]") && messages.contains("[b.txt]"), "{messages}");
    let stderr = scene.mainstay(&["run", "--attach", "none.txt", "hi"]).await.refused(1);
    assert!(stderr.contains("failed to attach none.txt"), "{stderr}");
    std::fs::write(scene.dir.path().join("a.png"), b"\x89PNG\xff").unwrap();
    let stderr = scene.mainstay(&["run", "--attach", "a.png", "hi"]).await.refused(1);
    assert!(stderr.contains("image/png") && stderr.contains("agent demo does not take"), "{stderr}");
}

#[tokio::test]
async fn run_says_why_an_agent_does_not_start_and_what_to_do() {
    let scene = Scene::new();
    let agent = |name: &str, command: &str| {
        format!(
            "[agents.{name}]\ndriver = \"acp\"\ncommand = [{command:?}]\nrestart_pause = \"10ms\"\nmax_restarts = 1\n\
             [workspaces.{name}]\nagent = {name:?}\n"
        )
    };
    scene.write("mainstay.toml", &(agent("gone", "no-such-agent") + &agent("fails", "false")));
    for (name, told, advice, may_be_tried) in [
        ("gone", "the program no-such-agent was not found: install it", "Install the agent", false),
        ("fails", "the agent ended (exit status: 1)", "`mainstay backends` says it", true),
    ] {
        let ended = scene.mainstay(&["run", "--workspace", name, "hi"]).await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stdout.contains(told) && ended.stderr.contains(advice), "{ended:?}");
        assert_eq!(ended.stderr.contains("It can be tried again at "), may_be_tried, "{ended:?}");
        assert!(!ended.stderr.contains("The limit is over"), "{ended:?}");
    }
    assert!(scene.mainstay(&["backends"]).await.printed().contains("the agent ended (exit status: 1)"));
}
