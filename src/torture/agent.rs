//! The agent: says what its seed tells it to say, well or badly behaved, and keeps its own record of it.
//!
//! Always: a word is in the record before the engine can read it; while an agent lives it holds a lock on its session and
//! one on its slot, which the kernel lets go with its last breath, so that whoever finds one held has met another agent.
//! One thread only: of a process with more, the first may be seen dead while another still holds the locks.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::Context;
use procfs::process::Process;
use rustix::process::{Signal, getpid, kill_process, setsid};
use serde_json::Value;

use super::acp;
use super::dialect::{Dialect, Speech};
use super::record::{Identity, Line, MARK, Said, Writer};

/// The longest pause between two words.
const MAX_PAUSE_MS: u64 = 20;
/// A long word does not fit into a pipe.
const LONG_WORD_BYTES: usize = 100 * 1024;
/// Nothing that is left behind stays for longer, even if nobody ends it.
const MAX_STRAY: Duration = Duration::from_secs(300);

/// How an agent is started.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Where it writes its record.
    pub record: PathBuf,
    /// What it was sent: its seed. None when it is told in the way of its protocol.
    pub seed: Option<u64>,
    /// How it speaks.
    pub dialect: Dialect,
    /// Further arguments, as its driver gives them.
    pub arguments: Vec<String>,
}

impl Agent {
    /// What it is asked is a seed.
    fn seed(&self) -> anyhow::Result<u64> {
        let asked = match (self.seed, self.dialect) {
            (Some(seed), _) => return Ok(seed),
            (None, Dialect::Openclaw | Dialect::Acp) => anyhow::bail!("a seed is needed"),
            (None, Dialect::Codex) => self.arguments.last().cloned().context("a message is needed")?,
            (None, Dialect::Claude) => {
                let mut line = String::new();
                io::stdin().lock().read_line(&mut line)?;
                let line: Value = serde_json::from_str(&line)?;
                let content = &line["message"]["content"];
                content.as_str().or_else(|| content[0]["text"].as_str()).context("a text is needed")?.to_owned()
            }
        };
        Ok(asked.trim().parse()?)
    }
}

/// How an agent comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Well,
    Code(u8),
    Crash,
    Hang,
}

/// What an agent does beside talking.
pub(super) struct Manners {
    words: u32,
    pub(super) end: End,
    /// Does not end when it is asked to.
    ignores_sigterm: bool,
    /// Goes on working when nobody listens any more.
    ignores_broken_pipe: bool,
    /// Says all of its text again with every word, so that whoever listens has to know what was said.
    retells: bool,
    pub(super) stray: Option<Stray>,
}

/// A process that an agent leaves behind, in a session of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stray {
    /// Ends when it is asked to.
    Docile,
    /// Does not.
    Deaf,
}

impl Stray {
    const ALL: [Self; 2] = [Self::Docile, Self::Deaf];

    /// The word on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Docile => "docile",
            Self::Deaf => "deaf",
        }
    }
}

impl std::str::FromStr for Stray {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|stray| stray.as_str() == text).ok_or("docile or deaf is needed")
    }
}

impl Manners {
    pub(super) fn choose(rng: &mut fastrand::Rng) -> Self {
        let words = if rng.u8(..10) == 0 { rng.u32(1..4) } else { rng.u32(4..80) };
        let end = match rng.u8(..100) {
            0..80 => End::Well,
            80..88 => End::Code(rng.u8(1..100)),
            88..98 => End::Crash,
            _ => End::Hang,
        };
        let stray = (rng.u8(..10) == 0).then(|| if rng.bool() { Stray::Docile } else { Stray::Deaf });
        let (ignores_sigterm, ignores_broken_pipe, retells) = (rng.u8(..8) == 0, rng.bool(), rng.u8(..4) == 0);
        Self { words, end, ignores_sigterm, ignores_broken_pipe, retells, stray }
    }
}

/// Is an agent, to the end. Answers with its exit status.
///
/// # Errors
/// When it was not started by an engine, or cannot write its record.
pub fn run(agent: &Agent) -> anyhow::Result<u8> {
    if agent.dialect == Dialect::Acp {
        return acp::serve(&agent.record);
    }
    let mut rng = fastrand::Rng::with_seed(agent.seed()?);
    let manners = Manners::choose(&mut rng);
    // Before any lock is taken, so that it inherits none between its fork and its exec.
    if let Some(stray) = manners.stray {
        leave_behind(stray)?;
    }
    let _deaf = manners.ignores_sigterm.then(Deaf::new).transpose()?;
    let identity = identity()?;
    let mut record = Writer::create(&agent.record, &identity)?;
    let _places = [
        claim(&agent.record, &mut record, "session", &identity.session)?,
        claim(&agent.record, &mut record, "slot", &identity.slot)?,
    ];
    let speech = Speech::new(agent.dialect, manners.retells);
    let mut voice = Voice { rng, record, pid: identity.pid, words: 0, speech, stdout: Some(io::stdout()) };
    match voice.talk(&manners, || false) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(1),
        talked => talked?,
    }
    let code = match manners.end {
        End::Well => 0,
        End::Code(code) => code,
        End::Crash => {
            let _ = kill_process(getpid(), Signal::KILL);
            1
        }
        End::Hang => {
            sleep(MAX_STRAY);
            1
        }
    };
    voice.record.write(&Line::Ended(code))?;
    Ok(code)
}

/// Is a process that an agent left behind.
///
/// # Errors
/// When it gets no session of its own, or cannot listen for signals.
pub fn stray(stray: Stray) -> anyhow::Result<()> {
    setsid()?;
    let _deaf = (stray == Stray::Deaf).then(Deaf::new).transpose()?;
    sleep(MAX_STRAY);
    Ok(())
}

pub(super) fn leave_behind(stray: Stray) -> anyhow::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["torture-agent", "--stray", stray.as_str()]);
    // Nobody waits for it: that is what it is for.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    Ok(())
}

/// As long as it is there, SIGTERM is taken and nothing comes of it.
struct Deaf {
    _listening: (tokio::runtime::Runtime, tokio::signal::unix::Signal),
}

impl Deaf {
    fn new() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let entered = runtime.enter();
        let signal = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        drop(entered);
        Ok(Self { _listening: (runtime, signal) })
    }
}

fn identity() -> anyhow::Result<Identity> {
    let variable =
        |name: &str| std::env::var(name).with_context(|| format!("an engine sets {name}: none started this"));
    Ok(Identity {
        run: variable("MAINSTAY_RUN")?,
        attempt: variable("MAINSTAY_ATTEMPT")?.parse()?,
        session: variable("MAINSTAY_SESSION")?,
        slot: variable("MAINSTAY_SLOT")?,
        pid: std::process::id(),
        started_at_ticks: Process::myself()?.stat()?.starttime,
    })
}

/// Takes a place for as long as the file is open; meeting somebody there is what the record is for.
pub(super) fn claim(dir: &Path, record: &mut Writer, kind: &str, name: &str) -> anyhow::Result<File> {
    let lock = OpenOptions::new().create(true).append(true).open(dir.join(format!("{kind}-{name}")))?;
    if lock.try_lock().is_err() {
        record.write(&Line::Met(format!("{kind} {name}")))?;
    }
    Ok(lock)
}

/// What an agent talks with.
pub(super) struct Voice {
    pub(super) rng: fastrand::Rng,
    pub(super) record: Writer,
    pub(super) pid: u32,
    pub(super) words: u32,
    pub(super) speech: Speech,
    /// None when nobody listens any more.
    pub(super) stdout: Option<io::Stdout>,
}

impl Voice {
    /// Talks until all is said, or until it is cancelled, which is asked before each thing.
    pub(super) fn talk(&mut self, manners: &Manners, mut is_cancelled: impl FnMut() -> bool) -> io::Result<()> {
        for line in self.speech.begin() {
            self.print(&line.to_string())?;
        }
        for number in 0..manners.words {
            if is_cancelled() {
                return Ok(());
            }
            match self.one_thing(number) {
                Err(error) if error.kind() == ErrorKind::BrokenPipe && manners.ignores_broken_pipe => {
                    self.stdout = None
                }
                done => done?,
            }
            if self.rng.bool() {
                sleep(Duration::from_millis(self.rng.u64(..=MAX_PAUSE_MS)));
            }
        }
        if manners.end == End::Well && self.rng.bool() {
            for line in self.speech.end() {
                self.print(&line.to_string())?;
            }
        }
        Ok(())
    }

    fn one_thing(&mut self, number: u32) -> io::Result<()> {
        match self.rng.u8(..100) {
            0..60 => {
                let word = self.word();
                self.say(Said::Text(word))
            }
            60..80 => {
                let word = self.word();
                self.say(Said::Reasoning(word))
            }
            80..90 => self.use_tool(format!("tool-{number}")),
            90..94 => self.print("this is no event of any protocol"),
            94..99 => {
                // Nobody has to listen to it.
                let _ = writeln!(io::stderr(), "some noise");
                Ok(())
            }
            // Too long to be said again and again.
            _ if self.speech.retells() => Ok(()),
            _ => {
                let mut word = self.word();
                word.extend(std::iter::repeat_n('x', LONG_WORD_BYTES));
                self.say(Said::Text(word))
            }
        }
    }

    fn use_tool(&mut self, id: String) -> io::Result<()> {
        let input = self.word().trim_end().to_owned();
        self.say(Said::ToolStarted { id: id.clone(), input })?;
        sleep(Duration::from_millis(self.rng.u64(..=MAX_PAUSE_MS)));
        match self.rng.u8(..10) {
            // Its end is left open.
            0 => Ok(()),
            1 => {
                let error = self.word().trim_end().to_owned();
                self.say(Said::ToolFailed { id, error })
            }
            _ => {
                let output = self.word().trim_end().to_owned();
                self.say(Said::ToolFinished { id, output })
            }
        }
    }

    fn word(&mut self) -> String {
        let word = format!("{MARK}{}.{} ", self.pid, self.words);
        self.words += 1;
        word
    }

    fn say(&mut self, said: Said) -> io::Result<()> {
        let lines = self.speech.say(&said);
        self.record.write(&Line::Said(said))?;
        lines.iter().try_for_each(|line| self.print(&line.to_string()))
    }

    fn print(&mut self, line: &str) -> io::Result<()> {
        let Some(stdout) = &mut self.stdout else { return Ok(()) };
        stdout.write_all(format!("{line}\n").as_bytes())?;
        stdout.flush()
    }
}
