//! What scripts and people rely on: exit codes, what goes to stdout and what to stderr, and valid JSON. Real processes on a
//! database of their own.

mod agents;
mod daemon;
mod lists;
mod run;
mod usage;

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testkit::within;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// A working directory, in which the database is created.
struct Scene {
    dir: tempfile::TempDir,
}

/// The result of a command.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ended {
    /// Its stdout; it must have succeeded with an empty stderr.
    #[track_caller]
    fn printed(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{}", self.stdout);
        self.stdout
    }

    /// Its stderr; it must have exited with this code and an empty stdout.
    #[track_caller]
    fn refused(self, code: i32) -> String {
        assert_eq!((self.code, self.stdout.as_str()), (Some(code), ""), "{}", self.stderr);
        assert!(!self.stderr.is_empty(), "it failed without a word");
        self.stderr
    }

    /// Its output as one JSON value per line; it must have succeeded.
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
        let mut command = Command::from(testkit::command(env!("CARGO_BIN_EXE_mainstay")));
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

    /// A running command, and the lines that it prints.
    fn begin(&self, args: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
        let mut child = self.command(args).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        (child, BufReader::new(stdout).lines())
    }

    /// A daemon that is ready, and its address.
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

/// Reads up to a line that contains this.
async fn until(lines: &mut Lines<BufReader<impl AsyncRead + Unpin>>, what: &str) {
    loop {
        match within(lines.next_line()).await.unwrap() {
            Some(line) if line.contains(what) => return,
            Some(_) => {}
            None => panic!("it ended without {what}"),
        }
    }
}

/// The first cell of each row of a table.
fn first_cells(table: &str) -> Vec<String> {
    table.lines().skip(1).map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}
