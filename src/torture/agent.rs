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
use crate::clock::{Clock, SystemClock};

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
    pub(super) ignores_sigterm: bool,
    /// Goes on working when nobody listens any more.
    ignores_broken_pipe: bool,
    /// Says all of its text again with every word, so that whoever listens has to know what was said.
    retells: bool,
    /// Takes its time to end a turn that is cancelled.
    pub(super) dawdles: bool,
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
        let dawdles = rng.u8(..4) == 0;
        Self { words, end, ignores_sigterm, ignores_broken_pipe, retells, dawdles, stray }
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
    let mut voice = Voice::new(rng, record, 0, speech);
    match voice.talk(&manners) {
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

/// Takes a place for as long as the file is open; meeting somebody there is what the record is for. Who has it is in it.
pub(super) fn claim(dir: &Path, record: &mut Writer, kind: &str, name: &str) -> anyhow::Result<File> {
    let path = dir.join(format!("{kind}-{name}"));
    let mut lock = OpenOptions::new().create(true).append(true).open(&path)?;
    if lock.try_lock().is_err() {
        let holder = std::fs::read_to_string(path)?;
        record.write(&Line::Met(format!("{kind} {name}: {holder}")))?;
    } else {
        lock.set_len(0)?;
        write!(lock, "{}", record.agent())?;
    }
    Ok(lock)
}

/// What an agent talks with.
pub(super) struct Voice {
    rng: fastrand::Rng,
    pub(super) record: Writer,
    pid: u32,
    /// The number of the next word, and of the next thing.
    words: u32,
    things: u32,
    speech: Speech,
    /// A tool that is in use, whose end comes next.
    tool: Option<String>,
    /// The question that waits for an answer.
    question: Option<String>,
    /// None when nobody listens any more.
    stdout: Option<io::Stdout>,
}

/// What comes behind a step of a talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Pause(Duration),
    /// Nothing, until the question is answered.
    Answer,
    /// All is said.
    End,
}

impl Voice {
    /// The words of an agent are numbered from `words`.
    pub(super) fn new(rng: fastrand::Rng, record: Writer, words: u32, speech: Speech) -> Self {
        let (pid, stdout) = (std::process::id(), Some(io::stdout()));
        Self { rng, record, pid, words, things: 0, speech, tool: None, question: None, stdout }
    }

    /// Talks until all is said. Whoever nobody answers goes on when nobody can any more.
    fn talk(&mut self, manners: &Manners) -> io::Result<()> {
        loop {
            match self.step(manners)? {
                Next::Pause(pause) => sleep(pause),
                Next::Answer => self.listen()?,
                Next::End => return Ok(()),
            }
        }
    }

    /// Says one thing.
    pub(super) fn step(&mut self, manners: &Manners) -> io::Result<Next> {
        match self.next(manners) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe && manners.ignores_broken_pipe => {
                (self.stdout, self.question) = (None, None);
                Ok(Next::Pause(Duration::ZERO))
            }
            next => next,
        }
    }

    fn next(&mut self, manners: &Manners) -> io::Result<Next> {
        if let Some(tool) = self.tool.take() {
            self.finish_tool(tool)?;
        } else if self.things == manners.words {
            if manners.end == End::Well && self.rng.bool() {
                self.speech.end().iter().try_for_each(|line| self.print(&line.to_string()))?;
            }
            return Ok(Next::End);
        } else {
            if self.things == 0 {
                self.speech.begin().iter().try_for_each(|line| self.print(&line.to_string()))?;
            }
            self.things += 1;
            self.one_thing()?;
        }
        if self.question.is_some() {
            return Ok(Next::Answer);
        }
        let pause = if self.rng.bool() { self.rng.u64(..=MAX_PAUSE_MS) } else { 0 };
        Ok(Next::Pause(Duration::from_millis(pause)))
    }

    /// Whether a line is the answer that was waited for.
    pub(super) fn hear(&mut self, line: &Value) -> io::Result<bool> {
        let is_answer = self.question.as_deref().is_some_and(|question| self.speech.answers(line, question));
        if is_answer {
            self.question = None;
            self.record.write(&Line::Answered)?;
        }
        Ok(is_answer)
    }

    /// Whether to do what is to be done now and then only.
    pub(super) fn is_in_the_mood(&mut self) -> bool {
        self.rng.u8(..4) == 0
    }

    /// Waits for the answer.
    fn listen(&mut self) -> io::Result<()> {
        while self.question.is_some() {
            let mut line = String::new();
            if io::stdin().lock().read_line(&mut line)? == 0 {
                self.question = None;
            }
            self.hear(&serde_json::from_str(&line).unwrap_or_default())?;
        }
        Ok(())
    }

    fn one_thing(&mut self) -> io::Result<()> {
        match self.rng.u8(..100) {
            0..60 => {
                let word = self.word();
                self.say(Said::Text(word))
            }
            60..80 => {
                let word = self.word();
                self.say(Said::Reasoning(word))
            }
            80..90 => self.use_tool(format!("tool-{}", self.things)),
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

    /// Begins to use a tool, perhaps after a question. Its end comes next, or is left open.
    fn use_tool(&mut self, id: String) -> io::Result<()> {
        let input = self.word().trim_end().to_owned();
        self.say(Said::ToolStarted { id: id.clone(), input: input.clone() })?;
        if self.rng.bool() {
            let question = format!("question-{}.{}", self.pid, self.words);
            if let Some(line) = self.speech.ask(&question, &id, &input).filter(|_| self.stdout.is_some()) {
                self.question = Some(question);
                self.record.write(&Line::Asked(SystemClock.now().as_millis()))?;
                self.print(&line.to_string())?;
            }
        }
        self.tool = (self.rng.u8(..10) > 0).then_some(id);
        Ok(())
    }

    fn finish_tool(&mut self, id: String) -> io::Result<()> {
        let word = self.word().trim_end().to_owned();
        if self.rng.u8(..10) == 0 {
            return self.say(Said::ToolFailed { id, error: word });
        }
        self.say(Said::ToolFinished { id, output: word })
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
