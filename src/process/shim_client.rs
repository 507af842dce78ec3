//! A process under a shim: the engine starts a shim, the shim starts the agent, and the agent's output is read from the
//! shim, or from its spool if the shim is gone. An engine that adopts the agent of a dead one reads in the same way.
//!
//! Always: a shim starts its agent only after the engine that started the shim says so; a turn is over only when no
//! process of it is left. Nothing here ends an agent that runs under another lease.
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

/// Records that may wait for the engine; a record may be as large as the longest line, so they are few.
const RECORDS_WAITING: usize = 8;

/// A shim that exceeds the time to stop its agent by this much is ended itself.
const SHIM_STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// No more input is taken from the engine while this much waits to be read by the shim.
const UNSAID_BYTES: usize = 64 * 1024;

/// How long to retry if a spool cannot be read: other turns free their file descriptors within seconds.
const SPOOL_READ_TIMEOUT: Duration = Duration::from_secs(10);
const SPOOL_RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// How a process is read and stopped.
pub(crate) struct Protocol {
    /// The format of its output, with the parser.
    pub format: OutputFormat,
    /// The line that stops a turn in the agent's own protocol, written before SIGTERM is sent.
    pub interrupt: Option<String>,
}

impl Protocol {
    /// Ignores all output.
    pub(crate) fn nothing() -> Self {
        Self { format: OutputFormat::Lines(Box::new(|_| Some(Vec::new()))), interrupt: None }
    }
}

/// Where reading an agent's output begins.
#[derive(Debug, Clone, Copy, Default)]
struct ReadFrom {
    /// Position in the output up to which records became events.
    offset: u64,
    /// Size of the spool when reading began.
    backlog: u64,
}

/// Settings shared by all processes under shims.
#[derive(Debug, Clone)]
pub(crate) struct ShimConfig {
    /// Starts and finds the shims.
    pub shims: Shims,
    /// Time between SIGTERM and SIGKILL when a process is stopped.
    pub kill_grace: Duration,
    /// A longer line of output is counted and skipped.
    pub max_line_bytes: usize,
}

impl ShimConfig {
    /// Starts a shim and prepares the launch; the shim starts the process at [`Control::begin`].
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

    /// Continues with a process that another worker started.
    pub(crate) async fn go_on(&self, adoption: Adoption, protocol: Protocol) -> Reply {
        let attempt = adoption.host.started_for(adoption.attempt.run);
        let link = self.shims.connect(attempt, &adoption.host.process).await;
        // Its future output may be as long as what is spooled now.
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

/// Sends an engine's commands to a shim.
struct Commands {
    control: Control,
    hello: Hello,
    /// The launch, until it is sent.
    launch: Option<Vec<u8>>,
    /// Closed when the receiver of the records is dropped.
    records: mpsc::Sender<Record>,
    kill_grace: Duration,
    /// The line that stops a turn in the agent's own protocol.
    interrupt: Option<String>,
}

/// Why sending to a shim ended.
enum SendEnd {
    /// The engine left the agent.
    Left,
    /// The shim did not end its agent in time.
    Unresponsive,
}

impl Commands {
    /// Sends what the engine requests, until the agent is left or the shim does not respond in time. A shim that does
    /// not read delays only what is sent to it.
    async fn pass_on(mut self, mut link: OwnedWriteHalf) -> SendEnd {
        // Always sent, and small enough for a new connection's buffer: a shim that already served an engine does not
        // wait for another one. A failed write needs no handling: the reading side notices a shim that is gone.
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
                    // 0 would mean SIGKILL at once.
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

/// The connection to one shim.
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
                    // The shim may have ended long ago while its output waits, because the engine takes no records.
                    if reap::is_alive(&self.process) == reap::Liveness::Alive {
                        tracing::warn!(run.id = %self.attempt.run, "the shim of an agent does not obey; it is ended");
                        end_all(self.attempt, self.process.clone(), None, Duration::ZERO).await;
                    }
                    if !is_dead(&self.process).await {
                        return End::Left;
                    }
                    // Finishes a piece that was received only in part.
                    hearing.await;
                }
                None => {}
            }
        } else {
            // No agent is connected to read the input.
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
            // The shim serves another engine now.
            None if !is_dead(&self.process).await => End::Left,
            None => {
                // SIGTERM first: a relay has to cancel its turn, which continues in the backend otherwise.
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

/// What the shim has reported so far.
struct Incoming {
    decoder: Decoder,
    /// Position in the spool behind what was received.
    position: u64,
    /// Size of the spool when reading began.
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

    /// Reads until the shim reports the end or closes the connection.
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

    /// Reads the spool as soon as that succeeds: its output must not be lost because file descriptors ran out, however
    /// long that lasts. `None` if it is left to the next worker, because this one leaves or has to stop.
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

    /// Reads the spool from the last received position. An incomplete frame was never sent to an engine, so it is skipped.
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
