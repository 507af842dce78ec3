//! Backends with real children: what an agent's process is given, what is read of it, and that nothing of it is left.
//!
//! Always: waiting is done on what the agent says or on its end. Where `/proc` is the only witness, it is looked at until
//! the condition holds or a generous deadline has passed.

use std::future::Future;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use mainstay::agent::ProcessSpec;
use mainstay::agent_event::{AgentEvent, LineParser};
use mainstay::driver::Driver;
use mainstay::driver::demo::Demo;
use mainstay::driver::per_turn::{Dialect, PerTurn, Stdin};
use mainstay::id::RunId;
use mainstay::options::SessionOptions;
use mainstay::process::Shims;
use mainstay::process::reap::{self, Liveness};
use mainstay::process::temp_dir::remove_temp_dir;
use mainstay::process::{Adoption, End, Prompt, Record, Reply, TurnPlace};
use mainstay::run::{Attempt, Cause, ExitReport};
use mainstay::worker::{ProcessIdentity, Shim};

const DEADLINE: Duration = Duration::from_secs(30);

/// Longer than any test may take: nothing waits for it to pass.
const NEVER: Duration = Duration::from_secs(3600);

const MAX_LINE_BYTES: usize = 1024 * 1024;

/// A line is a text, one that begins with `?` means nothing.
fn lines() -> LineParser {
    Box::new(|line| (!line.starts_with('?')).then(|| vec![AgentEvent::Text(line.to_owned())]))
}

fn spec(command: &[&str]) -> ProcessSpec {
    ProcessSpec {
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        env: Default::default(),
        max_line_bytes: MAX_LINE_BYTES,
    }
}

fn prompt(message: &str) -> Prompt {
    Prompt {
        place: TurnPlace {
            attempt: attempt(),
            session: "s-1".parse().unwrap(),
            slot: "chat-slot-w-1".to_owned(),
            workspace: "w".parse().unwrap(),
            dir: std::env::temp_dir(),
            agent_session: None,
            endpoint: None,
        },
        start_by: Instant::now() + NEVER,
        limit: NEVER,
        message: message.to_owned(),
        attachments: Vec::new(),
        options: SessionOptions::default(),
        rules: Default::default(),
        oneshot: false,
    }
}

/// A prompt in another directory.
fn at(dir: PathBuf, prompt: Prompt) -> Prompt {
    let place = TurnPlace { dir, ..prompt.place };
    Prompt { place, ..prompt }
}

/// Where the shims of this test program live.
fn shims() -> Shims {
    static DIR: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().unwrap());
    Shims::new(env!("CARGO_BIN_EXE_mainstay").into(), DIR.path().join("agents"))
}

fn per_turn(spec: ProcessSpec, kill_grace: Duration) -> PerTurn {
    PerTurn::new(spec, kill_grace, Dialect::of_lines(lines), shims())
}

fn attempt() -> Attempt {
    Attempt { run: RunId::generate(), number: 2 }
}

fn temp_dir(attempt: Attempt) -> PathBuf {
    std::env::temp_dir().join(format!("mainstay-{}-{}", attempt.run, attempt.number))
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("the deadline passed")
}

async fn until(condition: impl Fn() -> bool) {
    in_time(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A turn of an agent, and what it said so far.
struct Turn {
    attempt: Attempt,
    reply: Reply,
    records: Vec<Record>,
    /// Up to here it was heard before.
    known: u64,
}

impl Turn {
    async fn start(backend: &dyn Driver, prompt: Prompt) -> Self {
        let attempt = prompt.place.attempt;
        let reply = backend.prompt(prompt).await.unwrap();
        reply.control.begin();
        Self { attempt, reply, records: Vec::new(), known: 0 }
    }

    /// A shell script that is not patient when it is cancelled.
    async fn script(script: &str) -> Self {
        Self::script_with_grace(script, Duration::from_millis(200)).await
    }

    async fn script_with_grace(script: &str, grace: Duration) -> Self {
        Self::start(&per_turn(spec(&["sh", "-c", script]), grace), prompt("")).await
    }

    fn events(&self) -> Vec<AgentEvent> {
        let news = self.records.iter().filter(|record| record.offset > self.known);
        news.flat_map(|record| record.events.clone()).collect()
    }

    fn texts(&self) -> Vec<String> {
        let text = |event| match event {
            AgentEvent::Text(text) => Some(text),
            _ => None,
        };
        self.events().into_iter().filter_map(text).collect()
    }

    /// Reads until the agent has said this many lines.
    async fn hear(&mut self, lines: usize) -> Vec<String> {
        while self.texts().len() < lines {
            let record = in_time(self.reply.records.recv()).await.expect("it ended before it said so much");
            self.records.push(record);
        }
        self.texts()
    }

    /// Reads the first line, which is a pid.
    async fn hear_of_process(&mut self) -> ProcessIdentity {
        let pid = self.hear(1).await[0].parse().unwrap();
        reap::identity_of(pid).unwrap()
    }

    /// Reads everything, waits for the end, and checks what holds at every end.
    async fn end(&mut self) -> ExitReport {
        while let Some(record) = in_time(self.reply.records.recv()).await {
            self.records.push(record);
        }
        self.end_unread().await
    }

    async fn end_unread(&mut self) -> ExitReport {
        match self.how_it_ended().await {
            End::Exited(report) => report,
            other => panic!("{other:?}"),
        }
    }

    async fn how_it_ended(&mut self) -> End {
        let end = in_time(&mut self.reply.end).await.unwrap();
        assert!(self.records.is_sorted_by(|a, b| a.offset < b.offset), "offsets grow");
        assert!(!temp_dir(self.attempt).exists());
        if let Some(host) = &self.reply.host {
            // It has said all, and goes.
            until(|| reap::is_alive(&host.process) == Liveness::Dead).await;
        }
        assert_eq!(reap::survivors(self.attempt.into(), None), []);
        end
    }
}

#[tokio::test]
async fn a_process_is_read_to_its_end() {
    let mut turn = Turn::script("echo one; echo two; printf three; exit 3").await;
    let report = turn.end().await;
    assert_eq!(report, ExitReport { code: Some(3), ..ExitReport::default() });
    assert_eq!(turn.texts(), ["one", "two", "three"]);
    assert_eq!(turn.records.last().unwrap().offset, 13);
}

#[tokio::test]
async fn an_end_by_a_signal_is_told_from_an_end_with_a_code() {
    let report = Turn::script("kill -SEGV $$").await.end().await;
    assert_eq!((report.code, report.signal), (None, Some(11)));
}

#[tokio::test]
async fn nothing_is_started_before_its_host_is_known_and_it_was_said_to_begin() {
    let dir = tempfile::tempdir().unwrap();
    let prompt = at(dir.path().to_owned(), prompt(""));
    let backend = per_turn(spec(&["sh", "-c", ": >started; echo $PPID; read forever </dev/zero"]), NEVER);
    let attempt = prompt.place.attempt;
    let mut turn = Turn { attempt, reply: backend.prompt(prompt).await.unwrap(), records: Vec::new(), known: 0 };
    let host = turn.reply.host.clone().unwrap();
    assert_eq!(reap::is_alive(&host.process), Liveness::Alive);
    assert_eq!((host.attempt, dir.path().join("started").exists()), (attempt.number, false));
    turn.reply.control.begin();
    assert_eq!(turn.hear_of_process().await, host.process);
    turn.reply.control.kill(Cause::Cancelled);
    assert_eq!(turn.end().await.signal, Some(9));

    let dir = tempfile::tempdir().unwrap();
    let prompt = at(dir.path().to_owned(), self::prompt(""));
    let Reply { host, records, end, .. } = backend.prompt(prompt).await.unwrap();
    drop(records);
    assert_eq!(in_time(end).await.unwrap(), End::Left);
    until(|| reap::is_alive(&host.as_ref().unwrap().process) == Liveness::Dead).await;
    assert!(!dir.path().join("started").exists(), "nobody said that it may begin");
}

#[tokio::test]
async fn what_cannot_be_started_says_what_to_do_and_leaves_nothing() {
    let here = std::env::temp_dir();
    let plain = tempfile::NamedTempFile::new().unwrap();
    let no_interpreter = tempfile::tempdir().unwrap();
    let script = no_interpreter.path().join("agent");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let cases: [(&[&str], &Path, &str, &str); 6] = [
        (&["no-such-agent"], &here, "", "the program no-such-agent was not found"),
        (&["/no/such/agent"], &here, "", "the program /no/such/agent was not found"),
        (&[script.to_str().unwrap()], &here, "", "the interpreter in its first line"),
        (&[plain.path().to_str().unwrap()], &here, "", "must not be executed"),
        (&["true"], Path::new("/no/such/dir"), "", "the directory /no/such/dir is not there"),
        (&["true", "{message}"], &here, &"x".repeat(3_000_000), "leave `{message}` out"),
    ];
    for (command, dir, message, advice) in cases {
        let prompt = at(dir.to_owned(), prompt(message));
        let attempt = prompt.place.attempt;
        let end = Turn::start(&per_turn(spec(command), NEVER), prompt).await.how_it_ended().await;
        let End::NotStarted(Some(error)) = end else { panic!("{end:?}") };
        let error = error.to_string();
        assert!(error.starts_with("failed to start agent: ") && error.contains(advice), "{error}");
        assert!(!temp_dir(attempt).exists());
    }
}

#[tokio::test]
async fn a_message_without_a_placeholder_goes_to_stdin_whatever_its_size() {
    // More than two pipes hold: writing and reading have to go on side by side.
    let message = "a line of some length, with a nul \0 in it\n".repeat(100_000);
    let mut turn = Turn::start(&per_turn(spec(&["cat"]), NEVER), prompt(&message)).await;
    assert_eq!(turn.end().await.code, Some(0));
    assert_eq!(turn.texts().join("\n") + "\n", message);
    assert_eq!(turn.records.last().unwrap().offset, message.len() as u64);
}

/// Reads its stdin line by line and says each, until that is closed.
fn echo(interrupt: Option<fn() -> String>) -> PerTurn {
    let stdin = |_: &Prompt| Stdin::Open("first\n".to_owned());
    let dialect = Dialect { stdin, interrupt, ..Dialect::of_lines(lines) };
    let script = "while read line; do echo \"got $line\"; done; echo closed";
    PerTurn::new(spec(&["sh", "-c", script]), Duration::from_secs(20), dialect, shims())
}

#[tokio::test]
async fn an_open_stdin_takes_lines_until_it_is_closed_also_from_whoever_comes_next() {
    let backend = echo(None);
    let mut turn = Turn::start(&backend, prompt("")).await;
    assert_eq!(turn.hear(1).await, ["got first"]);
    assert!(turn.reply.control.write("second").await);
    assert_eq!(turn.hear(2).await, ["got first", "got second"]);
    turn.reply.control.leave();
    assert_eq!(in_time(&mut turn.reply.end).await.unwrap(), End::Left);
    let offset = turn.records.last().unwrap().offset;
    let mut adopted = adopt(&backend, &turn, offset).await;
    assert!(adopted.reply.control.write("third").await && adopted.reply.control.close_input().await);
    assert_eq!(adopted.hear(2).await, ["got third", "closed"]);
    let End::Exited(exit) = in_time(&mut adopted.reply.end).await.unwrap() else { panic!("it did not end") };
    assert_eq!((exit.code, exit.stopped), (Some(0), None));
}

#[tokio::test]
async fn a_turn_is_stopped_in_the_protocol_of_its_agent_before_it_is_asked_with_a_signal() {
    let mut turn = Turn::start(&echo(Some(|| "stop".to_owned())), prompt("")).await;
    assert_eq!(turn.hear(1).await, ["got first"]);
    turn.reply.control.stop(Cause::TurnTimeout);
    assert_eq!(turn.hear(3).await, ["got first", "got stop", "closed"]);
    let End::Exited(exit) = in_time(&mut turn.reply.end).await.unwrap() else { panic!("it did not end") };
    assert_eq!((exit.code, exit.signal, exit.stopped), (Some(0), None, Some(Cause::TurnTimeout)));
}

#[tokio::test]
async fn an_agent_may_leave_its_stdin_unread() {
    let message = "x".repeat(1_000_000);
    for script in ["echo done", "exec <&-; echo done"] {
        let mut turn = Turn::start(&per_turn(spec(&["sh", "-c", script]), NEVER), prompt(&message)).await;
        assert_eq!(turn.end().await.code, Some(0));
        assert_eq!(turn.texts(), ["done"]);
    }
}

#[tokio::test]
async fn a_placeholder_stays_one_argument_and_stdin_is_empty_then() {
    let message = "it's \"$(echo bad)\" `id` {run} {session}\nsecond\\ line; rm *";
    let command = ["sh", "-c", "cat; echo $#; printf '%s\\n' \"$@\"", "agent", "{message}", "-s", "a:{slot}:{session}"];
    let mut turn = Turn::start(&per_turn(spec(&command), NEVER), prompt(message)).await;
    assert_eq!(turn.end().await.code, Some(0));
    let expected = format!("3\n{message}\n-s\na:chat-slot-w-1:s-1");
    assert_eq!(turn.texts().join("\n"), expected);
}

#[tokio::test]
async fn the_environment_fits_the_directory_and_names_the_run() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("link");
    symlink(base.path(), &dir).unwrap();
    let names = ["PWD", "TMPDIR", "MAINSTAY_SESSION", "MAINSTAY_RUN", "MAINSTAY_SLOT", "OWN"];
    let mut spec = spec(&[&["printenv"], &names[..]].concat());
    for name in ["MAINSTAY_SESSION", "MAINSTAY_RUN", "MAINSTAY_SLOT"] {
        spec.env.insert(name.to_owned(), "overridden".to_owned());
    }
    spec.env.insert("OWN".to_owned(), "{workspace} {dir} $HOME".to_owned());
    let prompt = at(dir.clone(), prompt("hello"));
    let attempt = prompt.place.attempt;
    let mut turn = Turn::start(&per_turn(spec, NEVER), prompt).await;
    assert_eq!(turn.end().await.code, Some(0));
    let (dir, temp_dir) = (dir.display().to_string(), temp_dir(attempt).display().to_string());
    let own = format!("w {dir} $HOME");
    assert_eq!(
        turn.texts(),
        [dir, temp_dir, "s-1".to_owned(), attempt.run.to_string(), "chat-slot-w-1".to_owned(), own]
    );
}

#[tokio::test]
async fn what_was_to_be_started_earlier_is_not_started() {
    let dir = tempfile::tempdir().unwrap();
    let prompt = Prompt { start_by: Instant::now(), ..at(dir.path().to_owned(), prompt("")) };
    let attempt = prompt.place.attempt;
    let mut turn = Turn::start(&per_turn(spec(&["touch", "started"]), NEVER), prompt).await;
    assert_eq!(turn.how_it_ended().await, End::NotStarted(None));
    assert!(!dir.path().join("started").exists());
    assert!(!temp_dir(attempt).exists());
}

#[tokio::test]
async fn the_temporary_directory_is_private_fresh_and_goes_with_the_run() {
    let prompt = prompt("");
    let former = temp_dir(prompt.place.attempt);
    std::fs::create_dir(&former).unwrap();
    std::fs::write(former.join("left"), "by a former attempt").unwrap();
    let script = "stat -c %a \"$TMPDIR\"; ls -A \"$TMPDIR\"; mkdir -p \"$TMPDIR/deep\"; echo x >\"$TMPDIR/deep/file\"";
    let mut turn = Turn::start(&per_turn(spec(&["sh", "-c", script]), NEVER), prompt).await;
    assert_eq!(turn.end().await.code, Some(0));
    assert_eq!(turn.texts(), ["700"]);
    remove_temp_dir(turn.attempt);
}

#[tokio::test]
async fn a_huge_line_is_counted_and_skipped_in_little_memory() {
    let most = || procfs::process::Process::myself().unwrap().status().unwrap().vmhwm.unwrap();
    let before = most();
    // Other tests allocate in the same process meanwhile, but nothing like this line.
    let mut turn = Turn::script("head -c 400000000 /dev/zero | tr '\\0' x; echo; echo after").await;
    let report = turn.end().await;
    assert_eq!((report.code, report.malformed_lines), (Some(0), 1));
    assert_eq!(report.malformed_sample, Some("x".repeat(200)));
    assert_eq!(turn.texts(), ["after"]);
    assert_eq!(turn.records.last().unwrap().offset, 400_000_007);
    let grown = most() - before;
    assert!(grown < 200 * 1024, "{grown} KiB");
}

#[tokio::test]
async fn lines_that_mean_nothing_never_end_anything() {
    let script = r"printf '\357\273\277first\r\n\n  \302\240\357\273\277\n?bad\nin\377valid\r?worse\n'";
    let mut turn = Turn::script(script).await;
    let report = turn.end().await;
    assert_eq!((report.malformed_lines, report.malformed_sample.as_deref()), (2, Some("?bad")));
    assert_eq!(turn.texts(), ["first", "in\u{fffd}valid"]);
    // The last line meant nothing; that it was read is told all the same.
    assert_eq!(turn.records.last().unwrap().offset, 40);
}

#[tokio::test]
async fn lines_that_come_together_go_together() {
    let mut turn = Turn::script("seq 10000").await;
    assert_eq!(turn.end().await.code, Some(0));
    assert_eq!(turn.texts(), (1..=10_000).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(turn.records.iter().all(|record| record.events.len() <= 64));
    assert!(turn.records.len() < 2_000, "{} records", turn.records.len());
}

#[tokio::test]
async fn stderr_is_always_read_and_kept_at_both_ends() {
    let script = "echo beginning >&2; head -c 10000000 /dev/zero | tr '\\0' x >&2; echo ending >&2; echo done";
    let mut turn = Turn::script(script).await;
    let report = turn.end().await;
    let stderr = report.stderr.unwrap();
    assert!(stderr.starts_with("beginning\nxxx") && stderr.ends_with("xxxending\n"));
    assert!(stderr.contains(&format!("\n… {} bytes left out …\n", 10_000_017 - 16 * 1024)));
    assert!(stderr.len() < 17 * 1024);
    assert_eq!(turn.texts(), ["done"]);
}

#[tokio::test]
async fn a_cancelled_agent_may_end_in_its_own_way() {
    let mut turn =
        Turn::script_with_grace("trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.02; done", NEVER).await;
    turn.hear(1).await;
    turn.reply.control.stop(Cause::Cancelled);
    assert_eq!(turn.end().await.code, Some(7));
    assert_eq!(turn.texts(), ["ready", "bye"]);
}

#[tokio::test]
async fn an_agent_that_ignores_sigterm_is_killed_with_its_tools() {
    let mut turn =
        Turn::script("trap '' TERM; setsid sleep 1000 & echo $!; echo ready; while :; do sleep 0.02; done").await;
    let tool = turn.hear_of_process().await;
    turn.hear(2).await;
    assert!(reap::survivors(turn.attempt.into(), None).contains(&tool));
    turn.reply.control.stop(Cause::Cancelled);
    assert_eq!(turn.end().await.signal, Some(9));
    assert_eq!(reap::is_alive(&tool), Liveness::Dead);
}

#[tokio::test]
async fn a_tool_that_hides_from_the_marker_and_the_group_ends_with_a_cancelled_agent() {
    let script = "setsid env -i sleep 1000 & echo $!
        until [ \"$(tr '\\0' ' ' </proc/$!/cmdline)\" = 'sleep 1000 ' ]; do :; done; echo ready; wait";
    let mut turn = Turn::script_with_grace(script, NEVER).await;
    let tool = turn.hear_of_process().await;
    turn.hear(2).await;
    turn.reply.control.stop(Cause::Cancelled);
    assert_eq!(turn.end().await.signal, Some(15));
    assert_eq!(reap::is_alive(&tool), Liveness::Dead);
}

#[tokio::test]
async fn a_killed_agent_gets_no_grace() {
    for when in ["before it was cancelled", "after it was cancelled"] {
        let mut turn = Turn::script_with_grace("trap '' TERM; echo ready; while :; do sleep 0.02; done", NEVER).await;
        turn.hear(1).await;
        if when == "after it was cancelled" {
            turn.reply.control.stop(Cause::Cancelled);
        }
        turn.reply.control.kill(Cause::Cancelled);
        assert_eq!(turn.end().await.signal, Some(9), "{when}");
    }
}

#[tokio::test]
async fn what_a_finished_agent_left_running_is_asked_before_it_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let script = "
        (trap 'echo cleaned up >result; exit' TERM; : >ready; while :; do sleep 0.02; done) >/dev/null 2>&1 &
        (trap '' TERM; : >deaf; while :; do sleep 0.02; done) >/dev/null 2>&1 &
        until [ -e ready ] && [ -e deaf ]; do :; done
        echo done";
    let backend = per_turn(spec(&["sh", "-c", script]), Duration::from_millis(500));
    let mut turn = Turn::start(&backend, at(dir.path().to_owned(), prompt(""))).await;
    assert_eq!(turn.end().await.code, Some(0));
    assert_eq!(std::fs::read_to_string(dir.path().join("result")).unwrap(), "cleaned up\n");
}

/// A script that does not go on before the file `go` is there, so that its tool can be looked at.
async fn leaves_a_tool(script: &str) -> ProcessIdentity {
    let dir = tempfile::tempdir().unwrap();
    let script = format!("{script}; until [ -e go ]; do sleep 0.01; done; echo last");
    let backend = per_turn(spec(&["sh", "-c", &script]), Duration::from_millis(200));
    let mut turn = Turn::start(&backend, at(dir.path().to_owned(), prompt(""))).await;
    let tool = turn.hear_of_process().await;
    std::fs::write(dir.path().join("go"), "").unwrap();
    assert_eq!(turn.end().await.code, Some(0));
    assert_eq!(turn.texts().last().unwrap(), "last");
    tool
}

#[tokio::test]
async fn a_grandchild_that_holds_stdout_does_not_hold_the_end() {
    let tool = leaves_a_tool("setsid sleep 1000 & echo $!").await;
    assert_eq!(reap::is_alive(&tool), Liveness::Dead);
}

#[tokio::test]
async fn a_tool_that_starts_in_the_last_moment_is_found() {
    let mut runs = Vec::new();
    for _ in 0..20 {
        // It may be on its way to another program, with no environment at all, while its parent is already gone.
        let mut turn = Turn::script("setsid sleep 1000 & exit 0").await;
        assert_eq!(turn.end().await.code, Some(0));
        runs.push(turn.attempt);
    }
    for run in runs {
        assert_eq!(reap::survivors(run.into(), None), []);
    }
}

#[tokio::test]
async fn a_process_that_hides_in_every_way_is_ended_too() {
    let script = "setsid env -i sleep 1000 & echo $!
        until [ \"$(tr '\\0' ' ' </proc/$!/cmdline)\" = 'sleep 1000 ' ]; do :; done";
    let hidden = leaves_a_tool(script).await;
    // No group, no marker and no parent led to it: it fell to the host when its parent ended.
    assert_eq!(reap::is_alive(&hidden), Liveness::Dead);
}

#[tokio::test]
async fn output_written_before_the_end_is_read_however_slow_the_reader() {
    let mut turn = Turn::script("seq 200000").await;
    let first = in_time(turn.reply.records.recv()).await.unwrap();
    turn.records.push(first);
    until(|| turn.reply.records.len() == turn.reply.records.max_capacity()).await;
    assert_eq!(turn.end().await.code, Some(0));
    assert_eq!(turn.texts().len(), 200_000);
}

#[tokio::test]
async fn a_cancelled_agent_ends_also_while_nobody_reads() {
    let mut turn = Turn::script("exec yes $(head -c 10000 /dev/zero | tr '\\0' y)").await;
    until(|| turn.reply.records.len() == turn.reply.records.max_capacity()).await;
    turn.reply.control.stop(Cause::Cancelled);
    let host = turn.reply.host.clone().unwrap().process;
    until(|| reap::is_alive(&host) == Liveness::Dead).await;
    // What it said before is there for whoever reads on.
    assert_eq!(turn.end().await.signal, Some(15));
}

/// Goes on with a turn that was left, under the next lease.
async fn adopt(backend: &PerTurn, left: &Turn, offset: u64) -> Turn {
    let attempt = Attempt { number: left.attempt.number + 1, ..left.attempt };
    let host = left.reply.host.clone().unwrap();
    let reply = backend.adopt(Adoption { attempt, host, offset }).await.unwrap();
    Turn { attempt: left.attempt, reply, records: Vec::new(), known: offset }
}

#[tokio::test]
async fn an_agent_that_was_left_goes_on_and_is_gone_on_with_where_it_was_left() {
    let dir = tempfile::tempdir().unwrap();
    let script = "echo one; echo two; until [ -e go ]; do sleep 0.01; done; echo three; exit 4";
    let backend = per_turn(spec(&["sh", "-c", script]), NEVER);
    let mut left = Turn::start(&backend, at(dir.path().to_owned(), prompt(""))).await;
    left.hear(2).await;
    let offset = left.records.last().unwrap().offset;
    left.reply.records.close();
    assert_eq!(in_time(&mut left.reply.end).await.unwrap(), End::Left);

    let mut next = adopt(&backend, &left, offset).await;
    std::fs::write(dir.path().join("go"), "").unwrap();
    assert_eq!(next.end().await.code, Some(4));
    assert_eq!(next.texts(), ["three"]);

    // Its host has gone; what it said is still there, from any position on.
    for (offset, texts) in [(0, vec!["one", "two", "three"]), (4, vec!["two", "three"]), (14, vec![])] {
        let mut late = adopt(&backend, &left, offset).await;
        assert_eq!(late.end().await.code, Some(4));
        assert_eq!(late.texts(), texts);
    }
}

#[tokio::test]
async fn only_the_newest_lease_is_served() {
    let backend = per_turn(spec(&["sh", "-c", "echo ready; exec sleep 1000"]), NEVER);
    let mut old = Turn::start(&backend, prompt("")).await;
    old.hear(1).await;
    let mut new = adopt(&backend, &old, 0).await;
    new.hear(1).await;
    assert_eq!(in_time(&mut old.reply.end).await.unwrap(), End::Left, "the older one is let go");
    let host = old.reply.host.clone().unwrap();
    for (number, secret) in [(old.attempt.number, host.secret.clone()), (9, "guessed".to_owned())] {
        let host = Shim { secret, ..host.clone() };
        let attempt = Attempt { number, ..old.attempt };
        let refused = backend.adopt(Adoption { attempt, host, offset: 0 }).await.unwrap();
        assert_eq!(in_time(refused.end).await.unwrap(), End::Left, "{number}");
    }
    new.reply.control.stop(Cause::Cancelled);
    let report = new.end().await;
    assert_eq!((report.signal, report.stopped), (Some(15), Some(Cause::Cancelled)));
}

#[tokio::test]
async fn why_an_agent_was_stopped_is_known_to_whoever_comes_next() {
    let script =
        "trap 'until [ -e go ]; do sleep 0.01; done; echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done";
    let dir = tempfile::tempdir().unwrap();
    let backend = per_turn(spec(&["sh", "-c", script]), NEVER);
    let mut left = Turn::start(&backend, at(dir.path().to_owned(), prompt(""))).await;
    left.hear(1).await;
    left.reply.control.stop(Cause::IdleTimeout);
    let spool = shims().dir_of(left.attempt).join("spool");
    until(|| std::fs::read(&spool).is_ok_and(|spool| spool.windows(12).any(|w| w == b"idle_timeout"))).await;
    left.reply.control.leave();
    assert_eq!(in_time(&mut left.reply.end).await.unwrap(), End::Left);
    let mut next = adopt(&backend, &left, 6).await;
    next.reply.control.stop(Cause::Cancelled);
    std::fs::write(dir.path().join("go"), "").unwrap();
    let report = next.end().await;
    assert_eq!((report.code, report.stopped), (Some(0), Some(Cause::IdleTimeout)));
    assert_eq!(next.texts(), ["bye"]);
}

#[tokio::test]
async fn when_a_host_is_lost_its_agent_is_ended_and_what_it_said_is_kept() {
    for adopted in [false, true] {
        let script =
            "trap '' TERM HUP; echo oops >&2; setsid sleep 1000 & echo $!; echo ready; while :; do sleep 0.02; done";
        let backend = per_turn(spec(&["sh", "-c", script]), NEVER);
        let mut turn = Turn::start(&backend, prompt("")).await;
        let tool = turn.hear_of_process().await;
        turn.hear(2).await;
        let said = turn.texts();
        let host = turn.reply.host.clone().unwrap().process;
        if adopted {
            turn.reply.control.leave();
            assert_eq!(in_time(&mut turn.reply.end).await.unwrap(), End::Left);
        }
        rustix::process::kill_process(rustix::process::Pid::from_raw(host.pid).unwrap(), rustix::process::Signal::KILL)
            .unwrap();
        if adopted {
            until(|| reap::is_alive(&host) == Liveness::Dead).await;
            turn = adopt(&backend, &turn, 0).await;
            assert_eq!(turn.hear(2).await, said);
        }
        let end = turn.how_it_ended().await;
        let End::ShimLost(report) = end else { panic!("{end:?}") };
        assert_eq!((report.code, report.stderr.as_deref()), (None, Some("oops\n")));
        assert_eq!(reap::is_alive(&tool), Liveness::Dead);
    }
}

#[tokio::test]
async fn a_host_that_does_not_obey_is_ended_with_its_agent() {
    let mut turn = Turn::script("setsid sleep 1000 & echo $!; echo ready; wait").await;
    let tool = turn.hear_of_process().await;
    turn.hear(2).await;
    let host = turn.reply.host.clone().unwrap().process;
    rustix::process::kill_process(rustix::process::Pid::from_raw(host.pid).unwrap(), rustix::process::Signal::STOP)
        .unwrap();
    turn.reply.control.kill(Cause::Cancelled);
    let end = turn.how_it_ended().await;
    assert!(matches!(end, End::ShimLost(_)), "{end:?}");
    assert_eq!(reap::is_alive(&tool), Liveness::Dead);
}

#[tokio::test]
async fn what_nobody_reads_while_its_agent_is_ended_is_there_to_the_last_line() {
    let mut turn = Turn::script("seq 1 50000; while :; do sleep 0.02; done").await;
    let spool = shims().dir_of(turn.attempt).join("spool");
    until(|| std::fs::read(&spool).is_ok_and(|spool| spool.ends_with(b"\n50000\n"))).await;
    turn.reply.control.kill(Cause::IdleTimeout);
    // Longer than a host may take to obey. This one does at once; it is us who do not listen.
    tokio::time::sleep(Duration::from_secs(11)).await;
    let report = turn.end().await;
    assert_eq!((report.signal, report.stopped), (Some(9), Some(Cause::IdleTimeout)));
    let said: Vec<_> = (1..=50_000).map(|number| number.to_string()).collect();
    assert!(turn.texts() == said, "{} lines", turn.texts().len());
}

#[tokio::test]
async fn a_host_that_does_not_take_what_it_is_told_is_ended_too() {
    let message = "x".repeat(4_000_000);
    let prompt = prompt(&message);
    let attempt = prompt.place.attempt;
    let backend = per_turn(spec(&["cat"]), NEVER);
    let mut turn = Turn { attempt, reply: backend.prompt(prompt).await.unwrap(), records: Vec::new(), known: 0 };
    let host = turn.reply.host.clone().unwrap().process;
    rustix::process::kill_process(rustix::process::Pid::from_raw(host.pid).unwrap(), rustix::process::Signal::STOP)
        .unwrap();
    turn.reply.control.begin();
    // The launch is on its way, and does not get through.
    let _ = tokio::time::timeout(Duration::from_millis(100), turn.reply.records.recv()).await;
    turn.reply.control.kill(Cause::Cancelled);
    let end = turn.how_it_ended().await;
    assert!(matches!(end, End::ShimLost(_)), "{end:?}");
}

#[tokio::test]
async fn a_turn_that_takes_too_long_is_ended_also_when_no_engine_is_there() {
    let backend = per_turn(spec(&["sh", "-c", "echo ready; exec sleep 1000"]), NEVER);
    let mut left = Turn::start(&backend, Prompt { limit: Duration::ZERO, ..prompt("") }).await;
    left.hear(1).await;
    left.reply.control.leave();
    let host = left.reply.host.clone().unwrap().process;
    until(|| reap::is_alive(&host) == Liveness::Dead).await;
    let mut next = adopt(&backend, &left, 6).await;
    let report = next.end().await;
    assert_eq!((report.signal, report.stopped), (Some(15), Some(Cause::TurnTimeout)));
}

#[tokio::test]
async fn what_a_dead_engine_left_is_found_and_ended_by_another() {
    let lost = attempt();
    let next = Attempt { number: lost.number + 1, ..lost };
    let mut left = std::process::Command::new("sh")
        .args(["-c", "trap '' TERM; setsid sleep 1000 & while :; do sleep 0.02; done"])
        .env(reap::MARKER, lost.run.to_string())
        .env(reap::ATTEMPT_MARKER, lost.number.to_string())
        .spawn()
        .unwrap();
    let identity = reap::identity_of(i32::try_from(left.id()).unwrap()).unwrap();
    until(|| reap::survivors(lost.into(), None).len() >= 2).await;
    assert_eq!(reap::survivors(next.into(), None), [], "the next try does not own them");
    assert_eq!(reap::survivors(reap::Mark::before(lost), None), [], "nor did one before");
    let ended = in_time(reap::end(reap::Mark::before(next), None, Duration::from_millis(50))).await;
    assert!(ended.ended >= 2 && ended.is_certain, "{ended:?}");
    assert_eq!(reap::is_alive(&identity), Liveness::Dead, "a zombie is gone");
    left.wait().unwrap();
    assert_eq!(in_time(reap::end(lost.into(), None, NEVER)).await.ended, 0);
}

#[tokio::test]
async fn a_group_whose_pid_was_given_to_another_process_is_left_alone() {
    use std::os::unix::process::CommandExt;
    let mut other = std::process::Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
    let now = reap::identity_of(i32::try_from(other.id()).unwrap()).unwrap();
    let before = ProcessIdentity { started_at_ticks: now.started_at_ticks - 1, ..now.clone() };
    let elsewhere = ProcessIdentity { host: "another".to_owned(), ..now.clone() };
    let mark = reap::Mark::from(attempt());
    for stranger in [before, elsewhere] {
        assert_eq!(reap::survivors(mark, Some(&stranger)), []);
        assert_ne!(reap::is_alive(&stranger), Liveness::Alive);
    }
    assert_eq!(reap::survivors(mark, Some(&now)), [now]);
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn a_process_knows_itself_and_not_those_of_other_hosts() {
    let own = reap::own_identity().unwrap();
    assert_eq!(reap::identity_of(own.pid), Some(own.clone()));
    assert_eq!(reap::is_alive(&own), Liveness::Alive);
    let former = ProcessIdentity { started_at_ticks: own.started_at_ticks - 1, ..own.clone() };
    assert_eq!(reap::is_alive(&former), Liveness::Dead);
    assert_eq!(reap::is_alive(&ProcessIdentity { host: "another boot".to_owned(), ..own }), Liveness::Unknown);
}

#[tokio::test]
async fn the_demo_thinks_uses_a_tool_and_answers() {
    let mut turn = Turn::start(&Demo, prompt("how are you today")).await;
    assert_eq!(turn.end().await, ExitReport { code: Some(0), ..ExitReport::default() });
    let events = turn.events();
    let kind = |event: &AgentEvent| match event {
        AgentEvent::Reasoning(_) => "reasoning",
        AgentEvent::Text(_) => "text",
        AgentEvent::ToolStarted { .. } => "tool started",
        AgentEvent::ToolFinished { .. } => "tool finished",
        AgentEvent::Ended => "ended",
        other => panic!("{other:?}"),
    };
    let mut kinds: Vec<&str> = events.iter().map(kind).collect();
    kinds.dedup();
    assert_eq!(kinds, ["reasoning", "tool started", "tool finished", "text", "ended"]);
    assert!(turn.texts().len() > 5 && turn.texts().concat().contains("how are you today"));
    let counted = events.iter().find_map(|event| match event {
        AgentEvent::ToolFinished { result, .. } => result.clone().ok(),
        _ => None,
    });
    assert_eq!(counted.unwrap()["words"], 4);
}

#[tokio::test]
async fn the_demo_follows_directives() {
    let mut slow = Turn::start(&Demo, prompt("/slow 5")).await;
    let began = std::time::Instant::now();
    assert_eq!(slow.end().await.code, Some(0));
    assert_eq!(slow.texts().len(), 5);
    assert!(began.elapsed() >= Duration::from_millis(80));

    let mut tool = Turn::start(&Demo, prompt("/tool")).await;
    assert_eq!(tool.end().await.code, Some(0));
    assert!(tool.events().iter().any(|event| matches!(event, AgentEvent::ToolProgress { .. })));

    let mut fail = Turn::start(&Demo, prompt("/fail the disk is full")).await;
    assert_eq!(fail.end().await.code, Some(1));
    assert_eq!(fail.events(), [AgentEvent::Error("the disk is full".into())]);

    let mut exit = Turn::start(&Demo, prompt("/exit 3")).await;
    assert_eq!(exit.end().await.code, Some(3));
    assert!(!exit.texts().is_empty());

    let mut unknown = Turn::start(&Demo, prompt("/dance")).await;
    assert_eq!(unknown.end().await.code, Some(0));
    assert!(unknown.texts().concat().contains("/slow N"));
}

#[tokio::test]
async fn the_demo_stops_when_it_is_told_to() {
    let long = "word ".repeat(1000);
    for message in ["/hang", "/slow 100000", long.as_str()] {
        let mut cancelled = Turn::start(&Demo, prompt(message)).await;
        in_time(cancelled.reply.records.recv()).await.unwrap();
        if message == long {
            until(|| cancelled.reply.records.len() == cancelled.reply.records.max_capacity()).await;
        }
        cancelled.reply.control.stop(Cause::Cancelled);
        assert_eq!(cancelled.end_unread().await.signal, Some(15));

        let mut killed = Turn::start(&Demo, prompt(message)).await;
        killed.reply.control.kill(Cause::Cancelled);
        assert_eq!(killed.end_unread().await.signal, Some(9));

        let mut left = Turn::start(&Demo, prompt(message)).await;
        left.reply.records.close();
        assert_eq!(left.end_unread().await.signal, Some(9));
    }
}
