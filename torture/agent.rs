//! The agent: writes the output that its seed determines, well or badly behaved, and keeps its own record of it.
//!
//! Always: a word is in the record before the engine can read it. While an agent lives it holds a lock on its session and
//! one on its slot, which the kernel releases when it dies, so an agent that finds one held has met another agent.
//! Only one thread: in a process with more, the first may look dead while another still holds the locks.

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

use super::protocol::{Claude, Codex, Encoder, Openclaw, Protocol};
use super::record::{Identity, Line, RecordWriter};
use super::voice::{self, Next, Voice};
use super::{AGENT, acp, gateway, opencode};

/// The longest life of a stray process, in case no engine ends it.
const MAX_STRAY: Duration = Duration::from_secs(300);

/// How an agent is started.
#[derive(Debug, Clone)]
pub(super) struct Agent {
    /// The path of its record.
    pub(super) record: PathBuf,
    /// The seed from its message. None if the message comes through its protocol.
    pub(super) seed: Option<u64>,
    /// Which protocol it speaks.
    pub(super) protocol: Protocol,
    /// Further arguments, as its driver passes them.
    pub(super) arguments: Vec<String>,
}

impl Agent {
    /// The message is a seed.
    fn seed(&self) -> anyhow::Result<u64> {
        let asked = match (self.seed, self.protocol) {
            (Some(seed), _) => return Ok(seed),
            (None, Protocol::Codex) => io::read_to_string(io::stdin().lock())?,
            (None, Protocol::Claude) => {
                let mut line = String::new();
                io::stdin().lock().read_line(&mut line)?;
                let line: Value = serde_json::from_str(&line)?;
                let content = &line["message"]["content"];
                content.as_str().or_else(|| content[0]["text"].as_str()).context("a text is needed")?.to_owned()
            }
            (None, _) => anyhow::bail!("a seed is needed"),
        };
        Ok(asked.trim().parse()?)
    }
}

/// How an agent ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Well,
    Code(u8),
    Crash,
    Hang,
}

/// What an agent does besides writing output.
pub(super) struct Behaviour {
    pub(super) words: u32,
    pub(super) end: End,
    /// Does not end on SIGTERM.
    pub(super) ignores_sigterm: bool,
    /// Continues after its stdout was closed.
    pub(super) ignores_broken_pipe: bool,
    /// Repeats all of its text with every word, so that the reader has to know what came before.
    retells: bool,
    /// Ends a cancelled turn late.
    pub(super) delays_cancel: bool,
    pub(super) stray: Option<Stray>,
}

/// A process that an agent leaves behind, in a process session of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stray {
    /// Ends on SIGTERM.
    EndsOnSigterm,
    /// Ignores SIGTERM.
    IgnoresSigterm,
}

impl Stray {
    const ALL: [Self; 2] = [Self::EndsOnSigterm, Self::IgnoresSigterm];

    /// The word for it on the command line.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::EndsOnSigterm => "ends-on-sigterm",
            Self::IgnoresSigterm => "ignores-sigterm",
        }
    }
}

impl std::str::FromStr for Stray {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|stray| stray.as_str() == text).ok_or("ends-on-sigterm or ignores-sigterm is needed")
    }
}

impl Behaviour {
    pub(super) fn choose(rng: &mut fastrand::Rng) -> Self {
        let words = if rng.u8(..10) == 0 { rng.u32(1..4) } else { rng.u32(4..80) };
        let end = match rng.u8(..100) {
            0..80 => End::Well,
            80..88 => End::Code(rng.u8(1..100)),
            88..98 => End::Crash,
            _ => End::Hang,
        };
        let stray = (rng.u8(..10) == 0).then(|| if rng.bool() { Stray::EndsOnSigterm } else { Stray::IgnoresSigterm });
        let (ignores_sigterm, ignores_broken_pipe, retells) = (rng.u8(..8) == 0, rng.bool(), rng.u8(..4) == 0);
        let delays_cancel = rng.u8(..4) == 0;
        Self { words, end, ignores_sigterm, ignores_broken_pipe, retells, delays_cancel, stray }
    }
}

/// Runs as an agent, until its end. Returns its exit status.
///
/// # Errors
/// If no engine started it, or it cannot write its record.
pub(super) fn run(agent: &Agent) -> anyhow::Result<u8> {
    match agent.protocol {
        Protocol::Acp => acp::serve(&agent.record),
        Protocol::Opencode => opencode::serve(&agent.record, &agent.arguments),
        Protocol::Gateway => gateway::serve(&agent.record, &agent.arguments),
        Protocol::Openclaw => take_a_turn(agent, |behaviour| Box::new(Openclaw::new(behaviour.retells))),
        Protocol::Claude => take_a_turn(agent, |_| Box::new(Claude::default())),
        Protocol::Codex => take_a_turn(agent, |_| Box::new(Codex::default())),
    }
}

/// Runs as the agent of one turn.
fn take_a_turn(agent: &Agent, encoder: impl Fn(&Behaviour) -> Box<dyn Encoder>) -> anyhow::Result<u8> {
    let mut rng = fastrand::Rng::with_seed(agent.seed()?);
    let behaviour = Behaviour::choose(&mut rng);
    // Before any lock is taken, so that the stray inherits none between fork and exec.
    if let Some(stray) = behaviour.stray {
        leave_behind(stray)?;
    }
    let _ignores_sigterm = behaviour.ignores_sigterm.then(IgnoresSigterm::new).transpose()?;
    let identity = identity()?;
    let mut record = RecordWriter::create(&agent.record, &identity)?;
    let _places = [
        claim(&agent.record, &mut record, "session", &identity.session)?,
        claim(&agent.record, &mut record, "slot", &identity.slot)?,
    ];
    let mut voice = Voice::new(rng, record, 0, encoder(&behaviour), voice::stdout());
    match talk(&mut voice, &behaviour) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(1),
        talked => talked?,
    }
    let code = match behaviour.end {
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

/// Writes everything. If stdin is closed, it continues without an answer to its question.
fn talk(voice: &mut Voice, behaviour: &Behaviour) -> io::Result<()> {
    loop {
        match voice.step(behaviour)? {
            Next::Pause(pause) => sleep(pause),
            Next::Answer => listen(voice)?,
            Next::End => return voice.may_say_the_end(behaviour),
        }
    }
}

/// Waits for the answer to its question.
fn listen(voice: &mut Voice) -> io::Result<()> {
    while voice.question().is_some() {
        let mut line = String::new();
        if io::stdin().lock().read_line(&mut line)? == 0 {
            voice.forget_question();
        }
        voice.hear(&serde_json::from_str(&line).unwrap_or_default())?;
    }
    Ok(())
}

/// The number after `--port` on a command line.
pub(super) fn port_in(arguments: &[String]) -> anyhow::Result<u16> {
    let at = arguments.iter().position(|word| word == "--port").context("--port is needed")?;
    Ok(arguments.get(at + 1).context("a port is needed")?.parse()?)
}

/// Runs as a process that an agent left behind.
///
/// # Errors
/// If it gets no session of its own, or cannot handle signals.
pub(super) fn stray(stray: Stray) -> anyhow::Result<()> {
    setsid()?;
    let _ignores_sigterm = (stray == Stray::IgnoresSigterm).then(IgnoresSigterm::new).transpose()?;
    sleep(MAX_STRAY);
    Ok(())
}

pub(super) fn leave_behind(stray: Stray) -> anyhow::Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([AGENT, "--stray", stray.as_str()]);
    // Deliberately not waited for: it is to outlive its parent.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    Ok(())
}

/// While it exists, SIGTERM is caught and has no effect.
struct IgnoresSigterm {
    _listening: (tokio::runtime::Runtime, tokio::signal::unix::Signal),
}

impl IgnoresSigterm {
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

/// Locks a session or a slot for as long as the file is open; the record notes an agent that holds it already. The file names
/// its holder.
pub(super) fn claim(dir: &Path, record: &mut RecordWriter, kind: &str, name: &str) -> anyhow::Result<File> {
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
