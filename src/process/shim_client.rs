//! A process under a shim: a shim is started for it, the shim starts the agent, and what that says is read from the shim,
//! or from its spool when the shim is gone. Who comes after a dead engine goes on in the same way.
//!
//! Always: an agent is started only after whoever started its shim said so; a turn is over only when nothing of it is
//! left. Nothing here ends an agent that goes on under another lease.
//!
//! Deliberately absent: what a line means (the drivers), and why a turn is stopped (the engine).
//! Proof: `tests/it/process/`.

mod ending;

use std::io;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::future::OptionFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use self::ending::{end_all, is_dead};
use super::Shims;
use super::control::{Control, Input};
use super::launch::Launch;
use super::output::{Output, OutputFormat};
use super::shim::frame::{Corrupt, Decoder};
use super::shim::wire::{
    Began, Ended, FromEngine, FromShim, Hello, MAX_FROM_ENGINE_BYTES, MAX_FROM_SHIM_BYTES, NotStarted, Stop, VERSION,
};
use super::shim::{CLOSING, CONFIRM};
use super::stderr::Excerpt;
use super::{Adoption, End, Record, Reply, StartError, reap};
use crate::failure::is_shortage;
use crate::run::{Attempt, Cause, ExitReport};
use crate::worker::{ProcessIdentity, Shim};

/// Records that wait for the engine; a record may be as large as the longest line, so they are few.
const RECORDS_WAITING: usize = 8;

/// A shim that was told to end its agent and is not through with it so much later than it should be is ended itself.
const SHIM_STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// So much waits to be read by a shim before more is taken from the engine.
const UNSAID_BYTES: usize = 64 * 1024;

/// A spool that cannot be read is tried again for this long: other turns give their file descriptors back within seconds.
const SPOOL_READ_TIMEOUT: Duration = Duration::from_secs(10);
const SPOOL_RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// How a process is understood.
pub(crate) struct Protocol {
    /// What its output is, and how it is read.
    pub format: OutputFormat,
    /// The line that stops a turn in its own protocol, before it is sent SIGTERM.
    pub interrupt: Option<String>,
}

impl Protocol {
    /// Nothing is read.
    pub(crate) fn nothing() -> Self {
        Self { format: OutputFormat::Lines(Box::new(|_| Some(Vec::new()))), interrupt: None }
    }
}

/// Where listening to a process begins.
#[derive(Debug, Clone, Copy, Default)]
struct ReadFrom {
    /// Position in its output up to which records became events.
    offset: u64,
    /// Bytes of the spool that were there before.
    backlog: u64,
}

/// How processes are held: under which shims, and how patiently.
#[derive(Debug, Clone)]
pub(crate) struct ShimConfig {
    /// Where the shims live.
    pub shims: Shims,
    /// Time between SIGTERM and SIGKILL of one that is asked to stop.
    pub kill_grace: Duration,
    /// A longer line of output is counted and skipped.
    pub max_line_bytes: usize,
}

impl ShimConfig {
    /// Starts a shim for a process, and makes ready to start that; what it says is read as `protocol` says.
    pub(crate) async fn start(&self, launch: Launch, protocol: Protocol) -> Result<Reply, StartError> {
        let attempt = launch.attempt;
        let launch = FromEngine::Start(Box::new(launch)).to_frame();
        if launch.len() > MAX_FROM_ENGINE_BYTES {
            let megabytes = MAX_FROM_ENGINE_BYTES / (1024 * 1024);
            return Err(StartError::from(format!(
                "the message is too long to be handed over: {megabytes} MiB with all else"
            )));
        }
        let (process, link) = self.shims.start(attempt).await?;
        let host = Shim { process, attempt: attempt.number, secret: uuid::Uuid::new_v4().to_string() };
        Ok(self.talk(attempt, host, Some(link), Some(launch), ReadFrom::default(), protocol))
    }

    /// Goes on with a process that another worker started.
    pub(crate) async fn go_on(&self, adoption: Adoption, protocol: Protocol) -> Reply {
        let attempt = adoption.host.started_for(adoption.attempt.run);
        let link = self.shims.connect(attempt, &adoption.host.process).await;
        // What it says from now on may be as much again.
        let backlog = tokio::fs::metadata(self.shims.spool_of(attempt)).await.map_or(0, |spool| spool.len());
        let from = ReadFrom { offset: adoption.offset, backlog };
        self.talk(adoption.attempt, adoption.host, link, None, from, protocol)
    }

    fn talk(
        &self,
        lease: Attempt,
        host: Shim,
        link: Option<UnixStream>,
        launch: Option<Vec<u8>>,
        from: ReadFrom,
        protocol: Protocol,
    ) -> Reply {
        let (sender, records) = mpsc::channel(RECORDS_WAITING);
        let control = Control::default();
        let attempt = host.started_for(lease.run);
        let memory = self.shims.memory().open_account();
        let output = Output::new(self.max_line_bytes, protocol.format, sender.clone(), from.offset, memory.clone());
        let hello = Hello { version: VERSION, secret: host.secret.clone(), token: lease.number };
        let commands = Commands {
            control: control.clone(),
            hello,
            launch,
            records: sender,
            kill_grace: self.kill_grace,
            interrupt: protocol.interrupt,
        };
        let talk = ShimClient {
            attempt,
            process: host.process.clone(),
            shims: self.shims.clone(),
            incoming: Incoming::new(output, from.backlog, control.clone()),
        };
        let end = tokio::spawn(talk.run(link, commands));
        Reply { host: Some(host), records, control, memory, end }
    }
}

/// What is said to a shim.
struct Commands {
    control: Control,
    hello: Hello,
    /// What says what to start, as long as it was not said.
    launch: Option<Vec<u8>>,
    /// Closed when nobody takes the records any more.
    records: mpsc::Sender<Record>,
    kill_grace: Duration,
    /// What stops a turn in the agent's own protocol.
    interrupt: Option<String>,
}

/// Why no more is said to a shim.
enum SendEnd {
    /// Nobody wants to know more.
    Left,
    /// The shim did not end its agent in time.
    Unresponsive,
}

impl Commands {
    /// Passes on what the engine wants, until the shim is to be left or does not obey. A shim that does not read holds up
    /// only what is said to it.
    async fn pass_on(mut self, mut link: OwnedWriteHalf) -> SendEnd {
        // Said in any case, and never too much for a new connection: a shim that knew somebody once does not wait for others.
        // That it is gone shows where it is listened to.
        let _ = link.write_all(&FromEngine::Hello(self.hello).to_frame()).await;
        let mut unsaid = BytesMut::new();
        let (mut asked, mut killed, mut force_at) = (false, false, None);
        let mut inputs = self.control.inputs();
        loop {
            tokio::select! {
                biased;
                () = self.control.left() => return SendEnd::Left,
                () = self.records.closed() => return SendEnd::Left,
                () = self.control.killed(), if !killed => {
                    (asked, killed) = (true, true);
                    force_at = Some(Instant::now() + CONFIRM + SHIM_STOP_TIMEOUT);
                    let cause = self.control.cause().unwrap_or(Cause::Internal);
                    unsaid.extend_from_slice(&FromEngine::Stop(Stop { cause, grace_ms: 0, interrupt: None }).to_frame());
                }
                () = self.control.asked(), if !asked => {
                    asked = true;
                    force_at = Some(Instant::now() + self.kill_grace + CLOSING + CONFIRM + SHIM_STOP_TIMEOUT);
                    let cause = self.control.cause().unwrap_or(Cause::Internal);
                    // None would be SIGKILL at once.
                    let grace_ms = u64::try_from(self.kill_grace.as_millis()).unwrap_or(u64::MAX).max(1);
                    unsaid.extend_from_slice(&FromEngine::Stop(Stop { cause, grace_ms, interrupt: self.interrupt.take() }).to_frame());
                }
                () = self.control.begun(), if self.launch.is_some() => {
                    unsaid.extend(self.launch.take().into_iter().flatten());
                }
                Some(Some(input)) = OptionFuture::from(inputs.as_mut().map(|inputs| inputs.recv())),
                    if self.launch.is_none() && unsaid.len() < UNSAID_BYTES => {
                    unsaid.extend_from_slice(&match input {
                        Input::Line(line) => FromEngine::Input(line).to_frame(),
                        Input::Close => FromEngine::CloseInput.to_frame(),
                    });
                }
                written = link.write_buf(&mut unsaid), if !unsaid.is_empty() => {
                    if written.is_err() {
                        // As above.
                        unsaid.clear();
                    }
                }
                Some(()) = OptionFuture::from(force_at.map(sleep_until)) => return SendEnd::Unresponsive,
            }
        }
    }
}

/// A conversation with one shim.
struct ShimClient {
    attempt: Attempt,
    process: ProcessIdentity,
    shims: Shims,
    incoming: Incoming,
}

impl ShimClient {
    async fn run(mut self, link: Option<UnixStream>, commands: Commands) -> End {
        let control = commands.control.clone();
        if let Some(link) = link {
            let (reader, writer) = link.into_split();
            let mut hearing = pin!(self.incoming.hear(reader));
            let over = tokio::select! {
                biased;
                () = &mut hearing => None,
                over = commands.pass_on(writer) => Some(over),
            };
            match over {
                Some(SendEnd::Left) => return End::Left,
                Some(SendEnd::Unresponsive) => {
                    // It may have ended long ago, and it is us who do not listen: nobody takes the records.
                    if reap::is_alive(&self.process) == reap::Liveness::Alive {
                        tracing::warn!(run.id = %self.attempt.run, "the shim of an agent does not obey; it is ended");
                        end_all(self.attempt, self.process.clone(), None, Duration::ZERO).await;
                    }
                    if !is_dead(&self.process).await {
                        return End::Left;
                    }
                    // A piece that was heard in part is heard to its end.
                    hearing.await;
                }
                None => {}
            }
        } else {
            // Nobody is there to read what is written.
            drop(commands.control.inputs());
        }
        let spool = self.shims.spool_of(self.attempt);
        let unread = match self.incoming.end {
            None => match self.incoming.retry_spool(&spool, &control).await {
                Some(read) => read.err().filter(|error| error.kind() != io::ErrorKind::NotFound),
                None => return End::Left,
            },
            Some(_) => None,
        };
        if let Some(error) = &unread {
            tracing::warn!(run.id = %self.attempt.run, %error, spool = %spool.display(), "spool unreadable");
        }
        match self.incoming.end.take() {
            Some(HowItEnded::Ended(ended)) => {
                if ended.remaining > 0 {
                    let remaining = ended.remaining;
                    tracing::warn!(run.id = %self.attempt.run, remaining, "processes of a run survive SIGKILL");
                }
                self.incoming.output.finish().await;
                End::Exited(ExitReport {
                    code: ended.code,
                    signal: ended.signal,
                    stderr: ended.stderr,
                    remaining: ended.remaining,
                    ..self.report()
                })
            }
            Some(HowItEnded::NotStarted(error)) => End::NotStarted(error),
            // It serves somebody else now.
            None if !is_dead(&self.process).await => End::Left,
            None => {
                // Asked first: a relay has to cancel its turn where that goes on without it.
                let (process, began) = (self.process.clone(), self.incoming.began.clone());
                let remaining = end_all(self.attempt, process, began, CLOSING).await;
                self.incoming.output.finish().await;
                let stderr = std::mem::take(&mut self.incoming.stderr).into_text();
                let log = self.shims.log_of(self.attempt).await;
                let unread = unread
                    .map(|error| format!("{}, with what the agent said, is unreadable: {error}", spool.display()));
                let stderr =
                    [stderr, log, unread].into_iter().flatten().reduce(|stderr, log| format!("{stderr}\n{log}"));
                End::ShimLost(ExitReport { stderr, remaining, ..self.report() })
            }
        }
    }

    fn report(&self) -> ExitReport {
        let malformed = self.incoming.output.malformed();
        ExitReport {
            stopped: self.incoming.stopped,
            malformed_lines: malformed.lines,
            malformed_sample: malformed.sample,
            ..ExitReport::default()
        }
    }
}

/// What a shim has said so far.
struct Incoming {
    decoder: Decoder,
    /// Position in the spool behind what was heard.
    position: u64,
    /// Bytes that were in the spool when it began to listen.
    backlog: u64,
    control: Control,
    output: Output,
    began: Option<Began>,
    stopped: Option<Cause>,
    stderr: Excerpt,
    end: Option<HowItEnded>,
}

enum HowItEnded {
    NotStarted(Option<StartError>),
    Ended(Ended),
}

impl Incoming {
    fn new(output: Output, backlog: u64, control: Control) -> Self {
        Self {
            backlog,
            control,
            decoder: Decoder::new(MAX_FROM_SHIM_BYTES),
            position: 0,
            output,
            began: None,
            stopped: None,
            stderr: Excerpt::default(),
            end: None,
        }
    }

    /// Listens until the shim has said the end, or says nothing more.
    async fn hear(&mut self, mut link: OwnedReadHalf) {
        loop {
            match self.take().await {
                Ok(()) if self.end.is_none() => {}
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(%error, "the shim of an agent speaks something else");
                    return;
                }
            }
            match link.read_buf(self.decoder.buffer()).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    /// Reads the spool once it can be read: what was said must not be lost because file descriptors ran out, however long
    /// that lasts. `None` when it is left to the next worker: this one leaves it, or has to come to an end.
    async fn retry_spool(&mut self, path: &Path, control: &Control) -> Option<io::Result<()>> {
        let give_up = Instant::now() + SPOOL_READ_TIMEOUT;
        loop {
            match self.read_spool(path).await {
                Err(error)
                    if is_shortage(&error) || (error.kind() != io::ErrorKind::NotFound && Instant::now() < give_up) =>
                {
                    if control.cause().is_some() && Instant::now() >= give_up {
                        return None;
                    }
                    tokio::select! {
                        () = control.left() => return None,
                        () = tokio::time::sleep(SPOOL_RETRY_INTERVAL) => {}
                    }
                }
                read => return Some(read),
            }
        }
    }

    /// Reads what is in the spool beyond what was heard. A frame that is not whole was never told to anybody.
    async fn read_spool(&mut self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let path = path.to_owned();
        let file = tokio::task::spawn_blocking(move || std::fs::File::open(path)).await??;
        self.decoder = Decoder::new(MAX_FROM_SHIM_BYTES);
        let mut at = self.position;
        loop {
            let protocol = file.try_clone()?;
            let piece = tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; 256 * 1024];
                let read = protocol.read_at(&mut piece, at)?;
                piece.truncate(read);
                io::Result::Ok(piece)
            });
            let piece = piece.await??;
            at += piece.len() as u64;
            self.decoder.push(&piece);
            if self.take().await.is_err() || self.end.is_some() || piece.is_empty() {
                return Ok(());
            }
        }
    }

    async fn take(&mut self) -> Result<(), Corrupt> {
        while self.end.is_none() {
            let before = self.decoder.taken();
            let Some(frame) = self.decoder.next_frame()? else { break };
            let said = FromShim::of(&frame);
            if !matches!(said, Some(FromShim::Welcome(_))) {
                self.position += self.decoder.taken() - before;
            }
            match said {
                Some(FromShim::Stdout(piece)) => self.output.push(&piece).await,
                Some(FromShim::Stderr(piece)) => self.stderr.push(&piece),
                Some(FromShim::Began(began)) => self.began = Some(began),
                Some(FromShim::Stopping(stopping)) => self.stopped = self.stopped.or(Some(stopping.cause)),
                Some(FromShim::NotStarted(NotStarted { error, class, is_shortage })) => {
                    let error = error.map(|message| StartError { message, class, is_shortage });
                    self.end = Some(HowItEnded::NotStarted(error));
                }
                Some(FromShim::Ended(ended)) => self.end = Some(HowItEnded::Ended(ended)),
                Some(FromShim::Welcome(_)) | None => {}
            }
        }
        if self.position >= self.backlog {
            self.control.has_caught_up();
        }
        Ok(())
    }
}
