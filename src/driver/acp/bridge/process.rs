//! The agent's process: its pipes as lines, the last lines of its stderr, and its end.
//!
//! Always: it is ended by closing its stdin first, then by SIGTERM, then by SIGKILL: some agents end well only on the
//! first, some only on the second. The shim ends what it started.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{Sink, Stream, sink, stream};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use super::agent::Bridge;
use super::frames::{Frames, Heard};
use crate::process::lines::{Line, Splitter};
use crate::process::{last_words, reap};
use crate::worker::ProcessIdentity;

/// How long to wait after each step.
const AGENT_STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// How long an agent's stderr is read after its end.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// The last lines of stderr usually say what went wrong.
const STDERR_BYTES: usize = 2 * 1024;
/// One read takes a whole pipe of the default size.
const READ_BYTES: usize = 64 * 1024;

/// The pipes to an agent's stdin and stdout.
pub(super) struct Pipes {
    pub stdin: ChildStdin,
    pub stdout: ChildStdout,
}

/// A started process.
#[derive(Clone)]
pub(super) struct Process {
    identity: Option<ProcessIdentity>,
    stderr: Arc<Mutex<VecDeque<u8>>>,
    /// How it ended, once it did.
    ended: watch::Receiver<Option<String>>,
}

impl Process {
    /// Starts the agent.
    pub(super) fn start(command: &[OsString]) -> io::Result<(Self, Pipes)> {
        let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(io::Error::other("it has no pipes"));
        };
        let identity = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(reap::identity_of);
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let (sender, ended) = watch::channel(None);
        // The task ends when the agent does; only what it reports then is needed.
        tokio::spawn(watch_over(child, stderr, tail.clone(), sender));
        Ok((Self { identity, stderr: tail, ended }, Pipes { stdin, stdout }))
    }

    /// Which process it is.
    pub(super) fn identity(&self) -> Option<&ProcessIdentity> {
        self.identity.as_ref()
    }

    /// Waits for its end; returns how it ended, with the error in its last output.
    pub(super) async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        let status = ended.wait_for(Option::is_some).await.ok().and_then(|status| status.clone());
        let status = status.unwrap_or_else(|| "it is not known how the agent ended".to_owned());
        match last_words::cause(&self.stderr()) {
            Some(words) => format!("{status}; it wrote last: {words}"),
            None => status,
        }
    }

    fn stderr(&self) -> String {
        let tail = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = tail.iter().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Ends it. Its stdin is closed already.
    pub(super) async fn end(&self) {
        for signal in [None, Some(Signal::TERM), Some(Signal::KILL)] {
            if let (Some(signal), Some(identity)) = (signal, &self.identity) {
                reap::send(identity, signal);
            }
            if timeout(AGENT_STOP_TIMEOUT, self.ended()).await.is_ok() {
                return;
            }
        }
    }
}

/// Reads stderr, copies it to the shim, and waits for the end.
async fn watch_over(
    mut child: Child,
    mut stderr: ChildStderr,
    tail: Arc<Mutex<VecDeque<u8>>>,
    ended: watch::Sender<Option<String>>,
) {
    let status = {
        let read = read_stderr(&mut stderr, &tail);
        tokio::pin!(read);
        tokio::select! {
            () = &mut read => child.wait().await,
            status = child.wait() => {
                // Output written before the end counts. A process that it left may hold the pipe open.
                let _ = timeout(LAST_WORDS, read).await;
                status
            }
        }
    };
    let said = match status {
        Ok(status) => format!("the agent ended ({status})"),
        Err(error) => format!("the agent ended: {error}"),
    };
    // Waiters may still need the status.
    ended.send_replace(Some(said));
}

async fn read_stderr(stderr: &mut ChildStderr, tail: &Mutex<VecDeque<u8>>) {
    let mut piece = vec![0; READ_BYTES];
    while let Ok(read @ 1..) = stderr.read(&mut piece).await {
        // Fails if the shim is gone.
        let _ = io::stderr().write_all(&piece[..read]);
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(&piece[..read]);
        let excess = tail.len().saturating_sub(STDERR_BYTES);
        tail.drain(..excess);
    }
}

/// The agent's messages as a stream for the protocol library, without session updates.
pub(super) fn lines(
    stdout: ChildStdout,
    max_line_bytes: usize,
    bridge: Arc<Bridge>,
) -> impl Stream<Item = io::Result<String>> + Send {
    let (splitter, frames) = (Splitter::new(max_line_bytes), Frames::new(max_line_bytes));
    let reader = Reader { stdout, splitter, frames, piece: vec![0; READ_BYTES], at: 0, read: 0 };
    stream::unfold((reader, bridge), |(mut reader, bridge)| async move {
        loop {
            match reader.next().await {
                Some(Heard::Message(line)) if bridge.heard(&line).await => return Some((Ok(line), (reader, bridge))),
                Some(Heard::Message(_)) => {}
                Some(Heard::Noise(noise)) => bridge.heard_unreadable(&noise).await,
                None => {
                    bridge.heard_all.cancel();
                    return None;
                }
            }
        }
    })
}

struct Reader {
    stdout: ChildStdout,
    splitter: Splitter,
    frames: Frames,
    piece: Vec<u8>,
    at: usize,
    read: usize,
}

impl Reader {
    /// Reads more, unless the unfinished line already is a complete message.
    async fn read(&mut self) -> Option<()> {
        if self.frames.unfinished(self.splitter.unfinished()) {
            _ = self.splitter.last_line();
            return Some(());
        }
        self.read = self.stdout.read(&mut self.piece).await.ok().filter(|read| *read > 0)?;
        self.at = 0;
        Some(())
    }

    /// The next piece; none at the end. A message that the end cuts off is dropped.
    async fn next(&mut self) -> Option<Heard> {
        loop {
            if let Some(heard) = self.frames.pop() {
                return Some(heard);
            }
            let mut rest = &self.piece[self.at..self.read];
            let text = |line| String::from_utf8_lossy(line).into_owned();
            let line = self.splitter.next_line(&mut rest);
            self.at = self.read - rest.len();
            match line {
                Some(Line::Whole(line)) => self.frames.line(&text(line)),
                Some(Line::TooLong(beginning)) => self.frames.too_long(text(beginning)),
                None => self.read().await?,
            }
        }
    }
}

/// Writes messages to the agent, one a line.
pub(super) fn line_sink(stdin: ChildStdin) -> impl Sink<String, Error = io::Error> + Send {
    sink::unfold(stdin, |mut stdin, mut line: String| async move {
        line.push('\n');
        stdin.write_all(line.as_bytes()).await?;
        Ok(stdin)
    })
}
