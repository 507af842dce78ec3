//! What a process gets before it runs: stdin, arguments, environment, a directory.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use mainstay::driver::Driver;
use mainstay::driver::per_turn::{Dialect, PerTurn, Stdin};
use mainstay::process::reap::{self, Liveness};
use mainstay::process::temp_dir::remove_temp_dir;
use mainstay::process::{End, Prompt, Reply};
use mainstay::run::{Cause, ExitReport};

use testkit::{until, within};

use super::{NEVER, Turn, adopt, at, lines, per_turn, prompt, shims, spec, temp_dir};

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
async fn agent_starts_after_its_shim_is_known_and_was_told_to_begin() {
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
    assert_eq!(within(end).await.unwrap(), End::Left);
    until(|| reap::is_alive(&host.as_ref().unwrap().process) == Liveness::Dead).await;
    assert!(!dir.path().join("started").exists(), "it was not told to begin");
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
async fn message_without_placeholder_goes_to_stdin_at_any_size() {
    // More than two pipes hold: writing and reading have to overlap.
    let message = "a line of some length, with a nul \0 in it\n".repeat(100_000);
    let mut turn = Turn::start(&per_turn(spec(&["cat"]), NEVER), prompt(&message)).await;
    assert_eq!(turn.end().await.code, Some(0));
    assert_eq!(turn.texts().join("\n") + "\n", message);
    assert_eq!(turn.records.last().unwrap().offset, message.len() as u64);
}

/// Repeats each line of its stdin, until that is closed.
fn echo(interrupt: Option<fn() -> String>) -> PerTurn {
    let stdin = |_: &Prompt| Stdin::Open("first\n".to_owned());
    let dialect = Dialect { stdin, interrupt, ..Dialect::of_lines(lines) };
    let script = "while read line; do echo \"got $line\"; done; echo closed";
    PerTurn::new(spec(&["sh", "-c", script]), Duration::from_secs(20), dialect, shims())
}

#[tokio::test]
async fn open_stdin_takes_lines_also_from_the_next_engine() {
    let backend = echo(None);
    let mut turn = Turn::start(&backend, prompt("")).await;
    assert_eq!(turn.hear(1).await, ["got first"]);
    assert!(turn.reply.control.write("second").await);
    assert_eq!(turn.hear(2).await, ["got first", "got second"]);
    turn.reply.control.leave();
    assert_eq!(within(&mut turn.reply.end).await.unwrap(), End::Left);
    let offset = turn.records.last().unwrap().offset;
    let mut adopted = adopt(&backend, &turn, offset).await;
    assert!(adopted.reply.control.write("third").await && adopted.reply.control.close_input().await);
    assert_eq!(adopted.hear(2).await, ["got third", "closed"]);
    let End::Exited(exit) = within(&mut adopted.reply.end).await.unwrap() else { panic!("it did not end") };
    assert_eq!((exit.code, exit.stopped), (Some(0), None));
}

#[tokio::test]
async fn turn_is_stopped_in_its_protocol_before_a_signal_is_sent() {
    let mut turn = Turn::start(&echo(Some(|| "stop".to_owned())), prompt("")).await;
    assert_eq!(turn.hear(1).await, ["got first"]);
    turn.reply.control.stop(Cause::TurnTimeout);
    assert_eq!(turn.hear(3).await, ["got first", "got stop", "closed"]);
    let End::Exited(exit) = within(&mut turn.reply.end).await.unwrap() else { panic!("it did not end") };
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
async fn temporary_directory_is_private_fresh_and_removed() {
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
