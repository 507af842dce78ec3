//! Agent processes with real children: what a process gets, what is read from it, and that nothing of it is left.
//!
//! Always: tests wait for the agent's output or its end. If only `/proc` shows a condition, it is polled until it holds or a
//! generous deadline has passed.

mod demo;
mod ending;
mod output;
mod shim;
mod starting;

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use mainstay::agent::ProcessSpec;
use mainstay::agent_event::{AgentEvent, LineParser};
use mainstay::driver::Driver;
use mainstay::driver::per_turn::{Dialect, PerTurn};
use mainstay::id::RunId;
use mainstay::options::SessionOptions;
use mainstay::process::reap::{self, Liveness};
use mainstay::process::{Adoption, End, Prompt, Record, Reply, Shims, TurnPlace};
use mainstay::run::{Attempt, ExitReport};
use mainstay::worker::ProcessIdentity;
use testkit::{until, within};

/// Longer than any test may take: no test waits for it to pass.
const NEVER: Duration = Duration::from_secs(3600);

const MAX_LINE_BYTES: usize = 1024 * 1024;

/// A line is a text; one that begins with `?` is ignored.
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

/// The directory of this test program's shims.
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

/// A turn of an agent, and its output so far.
struct Turn {
    attempt: Attempt,
    reply: Reply,
    records: Vec<Record>,
    /// Output up to this offset was read before.
    known: u64,
}

impl Turn {
    async fn start(backend: &dyn Driver, prompt: Prompt) -> Self {
        let attempt = prompt.place.attempt;
        let reply = backend.prompt(prompt).await.unwrap();
        reply.control.begin();
        Self { attempt, reply, records: Vec::new(), known: 0 }
    }

    /// A shell script with a short grace when it is cancelled.
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
            let record = within(self.reply.records.recv()).await.expect("it ended before it said so much");
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
        while let Some(record) = within(self.reply.records.recv()).await {
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
        let end = within(&mut self.reply.end).await.unwrap();
        assert!(self.records.is_sorted_by(|a, b| a.offset < b.offset), "offsets grow");
        assert!(!temp_dir(self.attempt).exists());
        if let Some(host) = &self.reply.host {
            // The shim has sent everything, and exits.
            until(|| reap::is_alive(&host.process) == Liveness::Dead).await;
        }
        assert_eq!(reap::survivors(self.attempt.into(), None), []);
        end
    }
}

/// Adopts a turn that was left, under the next lease.
async fn adopt(backend: &PerTurn, left: &Turn, offset: u64) -> Turn {
    let attempt = Attempt { number: left.attempt.number + 1, ..left.attempt };
    let host = left.reply.host.clone().unwrap();
    let reply = backend.adopt(Adoption { attempt, host, offset }).await.unwrap();
    Turn { attempt: left.attempt, reply, records: Vec::new(), known: offset }
}
