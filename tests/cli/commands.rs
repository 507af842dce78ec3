//! What scripts and people rely on of the command line: exit codes, what goes to stdout and what to stderr, and JSON that
//! parses. Real processes on a database of their own.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// The longest that anything may take on a loaded machine before the test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

async fn within<F: Future>(future: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("it took longer than anything may take"),
    }
}

/// A working directory, which is also where the database comes to be.
struct Scene {
    dir: tempfile::TempDir,
}

/// How a command ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    /// What it printed, when it succeeded without a word on stderr.
    #[track_caller]
    fn printed(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{}", self.stdout);
        self.stdout
    }

    /// What it said on stderr, when it ended with this code and nothing on stdout.
    #[track_caller]
    fn refused(self, code: i32) -> String {
        assert_eq!((self.code, self.stdout.as_str()), (Some(code), ""), "{}", self.stderr);
        assert!(!self.stderr.is_empty(), "it failed without a word");
        self.stderr
    }

    /// One JSON value a line, when it succeeded.
    #[track_caller]
    fn json(self) -> Vec<Value> {
        json_lines(&self.printed())
    }
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

impl Scene {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MAINSTAY_")) {
            command.env_remove(name);
        }
        command.args(args).current_dir(self.dir.path()).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    async fn mainstay(&self, args: &[&str]) -> Ended {
        ended(self.command(args).spawn().unwrap()).await
    }

    async fn mainstay_reading(&self, stdin: &str, args: &[&str]) -> Ended {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).await.unwrap();
        ended(child).await
    }

    /// A command that goes on, and the lines that it prints.
    fn begin(&self, args: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
        let mut child = self.command(args).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        (child, BufReader::new(stdout).lines())
    }

    /// A daemon that serves, and its address.
    async fn serve(&self, args: &[&str]) -> (Child, String) {
        let (mut child, mut lines) = self.begin(&[&["serve", "--listen", "127.0.0.1:0"], args].concat());
        let Some(line) = within(lines.next_line()).await.unwrap() else {
            panic!("no daemon: {}", ended(child).await.stderr)
        };
        let address = line.strip_prefix("listening on http://127.0.0.1:").unwrap_or_else(|| panic!("{line}"));
        let address = format!("127.0.0.1:{address}");
        child.stdout = Some(lines.into_inner().into_inner());
        (child, address)
    }

    /// One column of one row of the database.
    fn ask(&self, sql: &str) -> String {
        let db = rusqlite::Connection::open(self.dir.path().join("mainstay.db")).unwrap();
        db.query_row(sql, [], |row| row.get(0)).unwrap_or_else(|error| panic!("{error}: {sql}"))
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }
}

async fn ended(child: Child) -> Ended {
    let output = within(child.wait_with_output()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Reads until a line contains this.
async fn until(lines: &mut Lines<BufReader<impl AsyncRead + Unpin>>, what: &str) {
    loop {
        match within(lines.next_line()).await.unwrap() {
            Some(line) if line.contains(what) => return,
            Some(_) => {}
            None => panic!("it ended without {what}"),
        }
    }
}

#[tokio::test]
async fn help_and_version_are_results() {
    let scene = Scene::new();
    let help = scene.mainstay(&["--help"]).await.printed();
    let commands =
        "serve run send attach cancel close sessions session runs messages slots workers show sweep doctor backup";
    for command in commands.split(' ') {
        assert!(help.contains(&format!("\n  {command} ")), "{command} is not in the help");
        assert!(scene.mainstay(&[command, "--help"]).await.printed().contains(&format!("Usage: mainstay {command}")));
    }
    assert_eq!(scene.mainstay(&["--version"]).await.printed(), format!("mainstay {}\n", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn wrong_usage_and_config_is_two_and_does_nothing() {
    let scene = Scene::new();
    scene.write("typo.toml", "[engine]\nleese = \"30s\"");
    scene.write("open.toml", "[server]\nauth = \"none\"");
    for (args, said) in [
        (&[] as &[&str], "Usage"),
        (&["serv"], "serve"),
        (&["send", "a"], "<TEXT>"),
        (&["send", "a/b", "hi"], "A–Z"),
        (&["send", "a", " "], "the message is empty"),
        (&["run"], "the message is empty"),
        (&["attach", "a", "--after", "-1"], "-1"),
        (&["runs", "--status", "done"], "timed_out"),
        (&["--config", "typo.toml", "runs"], "typo.toml:2: unknown key engine.leese: the nearest known one is lease"),
        (&["--config", "none.toml", "runs"], "none.toml"),
        (&["serve", "--listen", "localhost:1"], "such as 127.0.0.1:7717"),
        (&["--config", "open.toml", "serve", "--listen", "0.0.0.0:0"], "auth = \"none\""),
        (&["--config", "open.toml", "serve", "--token", "x"], "protect nothing"),
        (&["serve", "--token", ""], "token"),
    ] {
        let stderr = scene.mainstay(args).await.refused(2);
        assert!(stderr.contains(said), "{args:?}: {stderr}");
    }
    let stderr = ended(scene.command(&["runs"]).env("MAINSTAY_CONFIG", "none.toml").spawn().unwrap()).await.refused(2);
    assert!(stderr.contains("none.toml"), "{stderr}");
    assert!(!scene.dir.path().join("mainstay.db").exists());
}

#[tokio::test]
async fn what_is_not_there_is_one() {
    let scene = Scene::new();
    let stderr = scene.mainstay(&["runs"]).await.refused(1);
    assert!(stderr.contains("mainstay.db") && stderr.contains("--db"), "{stderr}");
    assert!(!scene.dir.path().join("mainstay.db").exists(), "looking makes nothing");

    scene.mainstay(&["run", "hi"]).await.printed();
    for command in ["attach", "show", "messages", "cancel", "close"] {
        let stderr = scene.mainstay(&[command, "nope"]).await.refused(1);
        assert!(stderr.contains("nope"), "{command}: {stderr}");
    }
    for args in [&["run", "--agent", "nope", "hi"], &["run", "--workspace", "nope", "hi"]] {
        assert!(scene.mainstay(args).await.refused(1).contains("nope"));
    }
    scene.write("notes.txt", "not a database, but long enough to be taken for the header of one, or so one may think");
    let before = std::fs::read(scene.dir.path().join("notes.txt")).unwrap();
    scene.mainstay(&["--db", "notes.txt", "run", "hi"]).await.refused(1);
    assert_eq!(std::fs::read(scene.dir.path().join("notes.txt")).unwrap(), before);
}

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
async fn one_who_runs_does_not_wait_for_another() {
    let scene = Scene::new();
    let (first, mut lines) = scene.begin(&["--json", "run", "/hang"]);
    until(&mut lines, "text-delta").await;
    scene.mainstay(&["run", "hi"]).await.printed();
    assert_eq!(scene.ask("SELECT status FROM v_runs ORDER BY queued_at"), "running");
    signal(&first, Signal::INT);
    assert_eq!(ended(first).await.code, Some(130));
}

#[tokio::test]
async fn lists_are_tables_or_json() {
    let scene = Scene::new();
    scene.mainstay(&["run", "--session", "s", "hi"]).await.printed();
    let run = scene.mainstay(&["runs", "--json"]).await.json()[0]["id"].as_str().unwrap().to_owned();
    let lists: [(&[&str], usize, &str); 7] = [
        (&["sessions"], 1, "id workspace agent title idle_ttl_ms assignment execution last_seq created_at updated_at"),
        (&["runs", "--session", "s"], 1, "id session_id status cause error queued_at claimed_at settled_at last_seq"),
        (&["runs", "--status", "failed"], 0, ""),
        (&["messages", "s"], 2, "id role parts"),
        (&["slots"], 5, "id workspace number state session_id run_id"),
        (&["show", &run], 1, "id status stderr"),
        (&["show", "s"], 1, "id last_seq current_run"),
    ];
    for (args, count, keys) in lists {
        let items = scene.mainstay(&[&["--json"], args].concat()).await.json();
        assert_eq!(items.len(), count, "{args:?}");
        for key in keys.split_whitespace() {
            assert!(items.iter().all(|item| item.get(key).is_some()), "{args:?} without {key}");
        }
        assert!(!scene.mainstay(args).await.printed().is_empty());
    }
    assert!(scene.mainstay(&["workers", "--json"]).await.json().is_empty());
    let swept = scene.mainstay(&["sweep", "--json"]).await.json();
    assert_eq!((swept.len(), &swept[0]["runs_settled"]), (1, &Value::from(0)));
    assert!(scene.mainstay(&["sweep"]).await.printed().contains("runs_settled"));

    let mut child = scene.command(&["runs", "--json"]).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(ended(child).await.printed(), "", "a reader that has gone is no failure");
}

/// The first cell of each row of a table.
fn first_cells(table: &str) -> Vec<String> {
    table.lines().skip(1).map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn tables_fit_and_their_ids_are_taken() {
    let scene = Scene::new();
    scene
        .mainstay(&["run", "first, with a title that is longer than any table has room for, in 80 columns"])
        .await
        .printed();
    scene.mainstay(&["run", "second"]).await.printed();
    scene
        .mainstay(&[
            "run",
            "--session",
            "a-name-that-a-client-made-up",
            "/fail it broke in a way that takes long to tell",
        ])
        .await;
    for args in [&["sessions"] as &[&str], &["sessions", "--tree"], &["runs"], &["slots"], &["workers"]] {
        let table = scene.mainstay(args).await.printed();
        for line in table.lines() {
            assert!(line.chars().count() <= 80, "{args:?}: {line}");
        }
        let wide = ended(scene.command(args).env("COLUMNS", "200").spawn().unwrap()).await.printed();
        assert!(wide.len() >= table.len(), "{wide}");
    }
    let table = scene.mainstay(&["runs"]).await.printed();
    let whole = scene.mainstay(&["runs", "--json"]).await.json();
    for (short, run) in first_cells(&table).iter().zip(&whole) {
        let id = run["id"].as_str().unwrap();
        assert!(id.starts_with(short.as_str()) && short.len() < id.len(), "{table}");
        assert_eq!(scene.mainstay(&["show", short, "--json"]).await.json()[0]["id"], id);
        assert_eq!(scene.mainstay(&["cancel", short, "--json"]).await.json()[0]["id"], id);
    }
    let sessions = scene.mainstay(&["sessions"]).await.printed();
    let short = first_cells(&sessions).into_iter().find(|id| !id.starts_with('a')).unwrap();
    for args in
        [&["messages", &short] as &[&str], &["session", &short], &["runs", "--session", &short], &["close", &short]]
    {
        scene.mainstay(args).await.printed();
    }
    // What goes on with a session does not make another.
    let before = scene.ask("SELECT CAST(count(*) AS TEXT) FROM sessions");
    scene.mainstay(&["run", "--session", &short, "again"]).await.printed();
    scene.mainstay(&["send", &short, "once more"]).await;
    assert_eq!(scene.ask("SELECT CAST(count(*) AS TEXT) FROM sessions"), before);
    scene.mainstay(&["show", "a-name"]).await.printed();

    let first = whole[0]["id"].as_str().unwrap();
    let stderr = scene.mainstay(&["show", &first[..5]]).await.refused(1);
    assert!(stderr.contains("several ids") && stderr.contains(first), "{stderr}");
    let stderr = scene.mainstay(&["show", "--json", &first[..5]]).await.refused(1);
    assert_eq!(json_lines(&stderr)[0]["error"]["code"], "ambiguous_id");
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
async fn errors_are_json_where_json_was_asked_for() {
    let scene = Scene::new();
    scene.write("typo.toml", "[engine]\nleese = \"30s\"");
    for (args, code, kind, said) in [
        (&["--json"] as &[&str], 2, "usage", "--help"),
        (&["serv", "--json"], 2, "usage", "serve"),
        (&["send", "a", "--json"], 2, "usage", "<TEXT>"),
        (&["send", "a", " ", "--json"], 2, "usage", "the message is empty"),
        (&["--json", "--config", "typo.toml", "runs"], 2, "config", "typo.toml:2"),
        (&["--json", "runs"], 1, "failed", "mainstay.db"),
        (&["--json", "run", "--agent", "nope", "hi"], 1, "unknown_agent", "nope"),
    ] {
        let stderr = scene.mainstay(args).await.refused(code);
        let errors = json_lines(&stderr);
        let error = &errors[0]["error"];
        assert_eq!((errors.len(), error["code"].as_str()), (1, Some(kind)), "{args:?}: {stderr}");
        assert!(error["message"].as_str().unwrap().contains(said), "{args:?}: {stderr}");
    }
    scene.mainstay(&["run", "hi"]).await.printed();
    let stderr = scene.mainstay(&["show", "nope", "--json"]).await.refused(1);
    assert_eq!(json_lines(&stderr)[0]["error"]["code"], "not_found");
    assert!(scene.mainstay(&["--json", "--help"]).await.printed().contains("Usage"));
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
async fn a_daemon_serves_and_the_commands_work_with_it() {
    let scene = Scene::new();
    let (daemon, address) = scene.serve(&["--log-format", "json"]).await;
    let health = reqwest::get(format!("http://{address}/healthz")).await.unwrap();
    assert_eq!(health.status(), 200);
    assert_eq!(scene.mainstay(&["workers", "--json"]).await.json()[0]["capacity"], 8);
    let stderr = scene.mainstay(&["serve", "--listen", &address]).await.refused(1);
    assert!(stderr.contains(&address), "{stderr}");

    // `send` prints the id of the run and nothing else.
    let sent = scene.mainstay(&["send", "s", "/slow 5"]).await.printed();
    let run = sent.trim_end();
    assert_eq!(sent, format!("{run}\n"));
    let answer = scene.mainstay(&["attach", run]).await.printed();
    assert!(answer.starts_with("1 2 3 4 5"), "{answer}");
    assert_eq!(
        scene.mainstay(&["attach", "s"]).await.printed(),
        format!("> /slow 5\n{answer}"),
        "a session's runs, and its end when it is idle"
    );
    let run_stream = scene.mainstay(&["attach", run, "--format", "sse"]).await.printed();
    assert!(run_stream.starts_with("id: 1\ndata: {") && run_stream.ends_with("data: [DONE]\n\n"), "{run_stream}");
    let session_stream = scene.mainstay(&["attach", "s", "--format", "sse"]).await.printed();
    assert_eq!(session_stream, run_stream.trim_end_matches("data: [DONE]\n\n"));
    let all = scene.mainstay(&["attach", "s", "--json"]).await.json();
    let rest = scene.mainstay(&["attach", "s", "--after", "3", "--format", "ndjson"]).await.json();
    assert_eq!((rest.len(), &rest[0]), (all.len() - 3, &all[3]));
    scene.mainstay(&["attach", "s", "--after", "999"]).await.refused(1);

    // `run` leaves it to the daemon.
    scene.mainstay(&["run", "--session", "s", "hi"]).await.printed();
    let failed = scene.mainstay(&["--json", "send", "s", "/exit 3"]).await.json();
    assert_eq!((failed[0]["status"].as_str(), failed[0]["session_id"].as_str()), (Some("queued"), Some("s")));
    assert_eq!(scene.mainstay(&["attach", failed[0]["id"].as_str().unwrap()]).await.code, Some(1));
    assert_eq!(scene.mainstay(&["attach", "s"]).await.code, Some(1), "as its last run");

    // Busy, cancelled, closed.
    let hanging = scene.mainstay(&["send", "s", "/hang"]).await.printed();
    let (watching, mut lines) = scene.begin(&["attach", hanging.trim_end(), "--json"]);
    until(&mut lines, "text-delta").await;
    assert!(scene.mainstay(&["send", "s", "hi", "--when-busy", "reject"]).await.refused(1).contains("busy"));
    assert!(scene.mainstay(&["close", "s"]).await.refused(1).contains("busy"));
    let cancelled = scene.mainstay(&["cancel", "s", "--wait"]).await.printed();
    assert_eq!(cancelled, format!("{} cancelled\n", hanging.trim_end()));
    until(&mut lines, r#""abort""#).await;
    assert_eq!(ended(watching).await.code, Some(1), "whoever watched learns how it ended");
    assert_eq!(scene.mainstay(&["cancel", hanging.trim_end()]).await.printed(), cancelled, "again changes nothing");
    assert_eq!(scene.mainstay(&["cancel", "s"]).await.printed(), "nothing to cancel\n");
    assert_eq!(scene.mainstay(&["close", "s"]).await.printed(), "s closed\n");
    assert_eq!(scene.ask("SELECT group_concat(DISTINCT state) FROM v_slots"), "free");

    signal(&daemon, Signal::TERM);
    let stopped = ended(daemon).await;
    assert_eq!((stopped.code, stopped.stdout.as_str()), (Some(0), ""), "the ready line is all on stdout");
    let log = json_lines(&stopped.stderr);
    assert_eq!(log.iter().filter(|line| line["message"] == "run started").count(), 4, "the daemon executed them all");
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
async fn what_waits_for_a_daemon_says_so() {
    let scene = Scene::new();
    let sent = scene.mainstay(&["send", "s", "hi"]).await;
    assert_eq!(sent.code, Some(0));
    assert!(sent.stderr.contains("mainstay serve"), "{}", sent.stderr);
    scene.mainstay(&["send", "s", "hi", "-q"]).await.printed();
    // Only the next command executes what was sent before, in its turn.
    // On a machine under load it says that it waits for them.
    assert_eq!(scene.mainstay(&["run", "--session", "s", "hi"]).await.code, Some(0));
    assert_eq!(scene.ask("SELECT group_concat(DISTINCT status) FROM v_runs"), "completed");
}

/// Whether this process was started with SIGHUP ignored, as `nohup` does.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() & 1 != 0
}

#[tokio::test]
async fn run_under_nohup_outlives_the_terminal() {
    let scene = Scene::new();
    let mut command = Command::new("nohup");
    command.arg(env!("CARGO_BIN_EXE_mainstay")).args(["--json", "run", "--session", "mine", "/hang"]);
    command.current_dir(scene.dir.path()).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = command.spawn().unwrap();
    let mut lines = BufReader::new(running.stdout.take().unwrap()).lines();
    until(&mut lines, "text-delta").await;
    signal(&running, Signal::HUP);
    scene.mainstay(&["cancel", "mine", "--wait"]).await.printed();
    assert_eq!(ended(running).await.code, Some(1), "it saw the end of its run");
}

#[tokio::test]
async fn ctrl_c_cancels_what_was_started_and_leaves_what_was_watched() {
    let scene = Scene::new();
    // A terminal that is closed is as good as Ctrl-C: the agent is not left behind. Unless the tests run under `nohup`, which
    // the commands inherit: they go on then, as they should.
    let hangup = (!ignores_hangup()).then_some(Signal::HUP);
    for stop in [Signal::INT, Signal::TERM].into_iter().chain(hangup) {
        let (running, mut lines) = scene.begin(&["--json", "run", "--session", "mine", "/hang"]);
        until(&mut lines, "text-delta").await;
        signal(&running, stop);
        assert_eq!(ended(running).await.code, Some(130));
        assert_eq!(scene.ask("SELECT group_concat(DISTINCT status) FROM v_runs"), "cancelled");
    }

    let (mut daemon, _) = scene.serve(&[]).await;
    scene.mainstay(&["send", "theirs", "/hang"]).await.printed();
    for args in [&["attach", "theirs", "--json"] as &[&str], &["attach", "theirs", "--json", "--follow"]] {
        let (attached, mut lines) = scene.begin(args);
        until(&mut lines, "text-delta").await;
        signal(&attached, Signal::INT);
        assert_eq!(ended(attached).await.code, Some(130));
    }
    let status = "SELECT status FROM v_runs WHERE session_id = 'theirs'";
    assert_eq!(scene.ask(status), "running");

    // The default grace is half a minute: the first signal lets the turn go on, the second ends it.
    signal(&daemon, Signal::TERM);
    let mut log = BufReader::new(daemon.stderr.take().unwrap()).lines();
    until(&mut log, "a second signal").await;
    daemon.stderr = Some(log.into_inner().into_inner());
    signal(&daemon, Signal::TERM);
    assert_eq!(ended(daemon).await.code, Some(0));
    assert_eq!(scene.ask(status), "interrupted");
}

#[tokio::test]
async fn run_does_not_wait_for_a_daemon_that_was_killed() {
    let scene = Scene::new();
    let (daemon, _) = scene.serve(&[]).await;
    let (running, mut lines) = scene.begin(&["--json", "run", "/slow 150"]);
    until(&mut lines, "text-delta").await;
    signal(&daemon, Signal::KILL);
    until(&mut lines, r#""finish""#).await;
    assert_eq!(ended(running).await.code, Some(0), "its agent went on, and so does the run in this process");
    assert_eq!(scene.ask("SELECT status || attempts FROM v_runs"), "completed1");
}

#[tokio::test]
async fn a_flag_goes_before_a_variable_before_the_file() {
    let scene = Scene::new();
    scene.write("mainstay.toml", "[engine]\nworkers = 3");
    let capacity = async |with: &[&str], variable: Option<&str>| {
        let mut command = scene.command(&[&["serve", "--listen", "127.0.0.1:0"], with].concat());
        if let Some(workers) = variable {
            command.env("MAINSTAY_WORKERS", workers);
        }
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        until(&mut lines, "listening on").await;
        let capacity = scene.mainstay(&["workers", "--json"]).await.json()[0]["capacity"].as_i64();
        signal(&child, Signal::TERM);
        assert_eq!(ended(child).await.code, Some(0));
        capacity.unwrap()
    };
    assert_eq!(capacity(&[], None).await, 3);
    assert_eq!(capacity(&[], Some("4")).await, 4);
    assert_eq!(capacity(&["--workers", "5"], Some("4")).await, 5);
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

/// In a terminal that `script` makes.
#[tokio::test]
async fn whoever_sits_at_the_terminal_is_asked() {
    if Command::new("script").arg("--version").stdout(Stdio::null()).status().await.is_err() {
        println!("SKIPPED: whoever_sits_at_the_terminal_is_asked: script (util-linux) is not installed");
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

/// How many processes sleep for this long.
fn asleep(duration: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let arguments = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    arguments.filter(|arguments| arguments.starts_with(format!("sleep\0{duration}").as_bytes())).count()
}

#[tokio::test]
async fn interrupted_survey_leaves_no_program_running() {
    let scene = Scene::new();
    let slept = format!("7703.{}", std::process::id());
    scene.write("hangs", &format!("#!/bin/sh\nsleep {slept} & setsid sleep {slept} & exec sleep {slept}\n"));
    let program = scene.dir.path().join("hangs");
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    scene.write("mainstay.toml", &format!("[agents.hangs]\ndriver = \"acp\"\ncommand = [{program:?}]\n"));
    let survey = scene.command(&["agents"]).spawn().unwrap();
    let until = async |count: usize| {
        within(async {
            while asleep(&slept) != count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    };
    until(3).await;
    let pid = i32::try_from(survey.id().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::INT).unwrap();
    assert_eq!(ended(survey).await.code, Some(130));
    until(0).await;
}

#[tokio::test]
async fn agents_say_what_is_found_of_them_and_how_to_get_the_others() {
    let scene = Scene::new();
    let program = |name: &str, script: &str| {
        scene.write(name, &format!("#!/bin/sh\n{script}\n"));
        let path = scene.dir.path().join(name);
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    // One says its version and goes, one never ends and leaves something running, one fails.
    program("claude", "echo; echo 1.2.3 Claude; cat");
    // Its own number: the same test may run in another checkout on this machine.
    let slept = format!("7701.{}", std::process::id());
    let hangs = program("hangs", &format!("sleep {slept} & cat </dev/zero >/dev/null"));
    let fails = program("fails", "echo 'no version'; exit 3");
    let own = program("own", "touch started; echo 1.0");
    let agent = |name: &str, driver: &str, program: &str| {
        format!("[agents.{name}]\ndriver = {driver:?}\ncommand = [{program:?}]\n")
    };
    let config =
        [("hangs", "acp", &hangs), ("fails", "acp", &fails), ("words", "text", &own), ("lines", "openclaw", &own)];
    let config: String = config.iter().map(|(name, driver, program)| agent(name, driver, program)).collect();
    scene.write("mainstay.toml", &config);
    let path = format!("{}:/usr/bin:/bin", scene.dir.path().display());
    let agents = |arguments: &'static [&str]| ended(scene.command(arguments).env("PATH", &path).spawn().unwrap());
    let reports = agents(&["agents", "--json"]).await.json();
    assert!(!scene.dir.path().join("mainstay.db").exists(), "nothing is made");
    let named = |name: &str| reports.iter().find(|report| report["name"] == name).unwrap_or_else(|| panic!("{name}"));
    assert_eq!(named("claude")["found"]["version"], "1.2.3 Claude");
    assert_eq!(named("claude")["configured"], true);
    assert_eq!((&named("hangs")["found"]["version"], &named("hangs")["missing"]), (&Value::Null, &Value::Null));
    assert_eq!(named("fails")["found"]["at"], fails.as_str());
    for name in ["words", "lines"] {
        assert_eq!(named(name)["found"], json!({"at": own, "version": null}), "{name}");
    }
    assert!(!scene.dir.path().join("started").exists(), "a command of one's own is not started to ask its version");
    for (name, install) in [("codex", "npm install -g @openai/codex"), ("vibe", "pip install mistral-vibe")] {
        let report = named(name);
        assert_eq!((&report["found"], &report["install"]), (&Value::Null, &Value::from(install)), "{report}");
        assert!(report["missing"].as_str().unwrap().contains("not found"), "{report}");
    }
    // It was killed, but a killed process is there until the kernel has come to it.
    within(async {
        while asleep(&slept) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;

    std::fs::remove_file(scene.dir.path().join("mainstay.toml")).unwrap();
    std::fs::remove_file(scene.dir.path().join("claude")).unwrap();
    let text = agents(&["agents"]).await.printed();
    for expected in ["missing  claude", "npm install -g opencode-ai", "[agents.goose]", "driver = \"openclaw-gateway\""]
    {
        assert!(text.contains(expected), "{text}");
    }
    let failed = ended(scene.command(&["run", "--agent", "claude", "hi"]).env("PATH", &path).spawn().unwrap()).await;
    assert!(failed.stdout.contains("npm install -g @anthropic-ai/claude-code"), "{failed:?}");
    assert_eq!(failed.code, Some(1));
}

#[tokio::test]
async fn a_session_is_made_told_and_shown_with_what_works_for_it() {
    let scene = Scene::new();
    assert!(scene.mainstay(&["session", "a"]).await.refused(1).contains("there is no database"));
    let shown = scene.mainstay(&["session", "a", "--new", "--set", "model=x=y", "--set", "extra.k=v"]).await.printed();
    assert!(shown.contains("option model: ignored") && shown.contains("option extra.k: ignored"), "{shown}");
    let made = ["--json", "session", "b", "--new", "--spawned-by", "a", "--label", "tests", "--oneshot"];
    let told = scene.mainstay(&made).await.json().remove(0);
    assert_eq!((&told["session"]["spawned_by"], &told["session"]["mode"]), (&"a".into(), &"oneshot".into()));
    assert!(scene.mainstay(&["session", "c", "--new", "--spawned-by", "x"]).await.refused(1).contains("\"x\""));

    let set = ["--json", "session", "a", "--unset", "extra.k", "--set", "timeout_seconds=60", "--reset"];
    let told = scene.mainstay(&set).await.json().remove(0);
    assert_eq!(told["told"]["options"], serde_json::json!({"model": "x=y", "timeout_seconds": 60}));
    assert_eq!(told["children"][0]["id"], "b");
    let wrong = scene.mainstay(&["session", "a", "--set", "modle=x", "--set", "mode=plan"]).await.refused(1);
    assert!(wrong.contains("the nearest known one is model"), "{wrong}");
    assert!(!scene.mainstay(&["session", "a"]).await.printed().contains("plan"));
    assert!(scene.mainstay(&["session", "nobody"]).await.refused(1).contains("nobody"));

    let run = scene.mainstay(&["run", "--session", "b", "/exit 3"]).await;
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains("`mainstay show` prints what it wrote"), "{}", run.stderr);
    let tree = scene.mainstay(&["sessions", "--tree"]).await.printed();
    let rows: Vec<_> = tree.lines().skip(1).map(|line| line.split_whitespace().take(4).collect::<Vec<_>>()).collect();
    assert_eq!(rows, [["a", "-", "idle", "demo"], ["·", "b", "tests", "failed"]]);
    assert!(tree.contains("exit code 3"), "{tree}");
    let queued = scene.mainstay(&["-q", "--json", "send", "b", "later"]).await.json().remove(0);
    assert!(scene.mainstay(&["cancel", "a", "--children"]).await.printed().starts_with("1 runs below"));
    let run = scene.mainstay(&["--json", "show", queued["id"].as_str().unwrap()]).await.json().remove(0);
    assert_eq!((&run["status"], &run["usage"]), (&"cancelled".into(), &serde_json::json!({})));
}

#[tokio::test]
async fn a_live_agent_is_asked_to_end_also_while_no_daemon_is_there() {
    let scene = Scene::new();
    scene.mainstay(&["session", "a", "--new"]).await.printed();
    let ids = ["0192f0c1-2345-7000-8000-0123456789ab", "0192f0c1-2345-7000-8000-0123456789ac"];
    {
        let db = rusqlite::Connection::open(scene.dir.path().join("mainstay.db")).unwrap();
        let add = "INSERT INTO backends (id, agent, workspace, state, created_at, used_at, stopped_at)
                   VALUES (?1, ?2, 'default', ?3, 1, 1, ?4)";
        db.execute(add, (ids[0], "live", "running", None::<i64>)).unwrap();
        db.execute(add, (ids[1], "gone", "stopped", Some(2))).unwrap();
    }
    let stopped = scene.mainstay(&["backends", "stop", ids[0]]).await;
    assert_eq!((stopped.code, stopped.stdout), (Some(0), format!("{} ends as soon as no turn is on it\n", ids[0])));
    assert!(stopped.stderr.contains("no daemon"), "{}", stopped.stderr);
    assert_eq!(scene.ask("SELECT group_concat(close_when_idle, '') FROM backends ORDER BY id"), "10");
    let listed = scene.mainstay(&["--json", "backends"]).await.json();
    assert_eq!((listed.len(), &listed[0]["id"], &listed[0]["close_when_idle"]), (2, &ids[0].into(), &true.into()));
    assert_eq!(scene.mainstay(&["backends", "stop", ids[1]]).await.printed(), format!("{} has ended\n", ids[1]));
    let shown = scene.mainstay(&["--json", "backends", "stop", ids[1], "--force"]).await.json();
    assert_eq!(shown[0]["state"], "stopped");
    let unknown = scene.mainstay(&["backends", "stop", "0192f0c1-2345-7000-8000-0123456789ad"]).await.refused(1);
    assert!(unknown.contains("0123456789ad"), "{unknown}");
}

#[tokio::test]
async fn whoever_runs_an_agent_that_does_not_start_is_told_why_and_what_to_do() {
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
