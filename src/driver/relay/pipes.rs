//! The stdin and stdout of a relay, which are pipes to its shim.
//!
//! Always: neither blocks the other or the rest of the relay: SIGTERM is handled even if the output is not read.

use std::io;
use std::os::fd::AsFd;
use std::pin::pin;

use bytes::{Buf, BytesMut};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

use crate::process::lines::{Line, Splitter};

/// Maximum input line; the first one holds the files of a message.
const MAX_INPUT_LINE_BYTES: usize = 256 * 1024 * 1024;
/// No more is taken from the backend while this much waits to be read by the shim.
const UNSAID_BYTES: usize = 1024 * 1024;

/// Lines from the shim.
pub struct Input {
    pipe: pipe::Receiver,
    splitter: Splitter,
    read: BytesMut,
    is_open: bool,
}

impl Input {
    pub fn of_stdin() -> io::Result<Self> {
        let pipe = pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)?;
        Ok(Self { pipe, splitter: Splitter::new(MAX_INPUT_LINE_BYTES), read: BytesMut::new(), is_open: true })
    }

    /// The turn in the first line.
    ///
    /// # Errors
    /// There is no valid turn.
    pub async fn turn<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        let line = self.next().await.unwrap_or_default();
        serde_json::from_str(&line)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("no turn: {error}")))
    }

    /// The next line; `None` at the end. Cancel-safe: no input is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            let mut rest = &self.read[..];
            let line = match self.splitter.next_line(&mut rest) {
                Some(Line::Whole(line)) => Some(String::from_utf8_lossy(line).into_owned()),
                Some(Line::TooLong(_)) => Some(String::new()),
                None => None,
            };
            let taken = self.read.len() - rest.len();
            self.read.advance(taken);
            if line.is_some() {
                return line;
            }
            match self.pipe.read_buf(&mut self.read).await {
                Ok(0) | Err(_) => {
                    self.is_open = false;
                    return None;
                }
                Ok(_) => {}
            }
        }
    }

    /// Whether more input may come.
    pub fn is_open(&self) -> bool {
        self.is_open
    }
}

/// Lines to the shim.
pub struct Output {
    pipe: pipe::Sender,
    unsaid: BytesMut,
}

impl Output {
    pub fn of_stdout() -> io::Result<Self> {
        let pipe = pipe::Sender::from_owned_fd(io::stdout().as_fd().try_clone_to_owned()?)?;
        Ok(Self { pipe, unsaid: BytesMut::new() })
    }

    /// Queues a JSON text as a line; [`Output::write`] writes it.
    pub fn say(&mut self, json: &str) {
        // Line breaks in JSON are only white space.
        self.unsaid.extend(json.bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }));
        self.unsaid.extend_from_slice(b"\n");
    }

    /// Queues a piece of text that consists of lines already.
    pub fn pass_on(&mut self, piece: &[u8]) {
        self.unsaid.extend_from_slice(piece);
    }

    /// Writes what is queued while waiting for `other`.
    ///
    /// # Errors
    /// The reader is gone.
    pub async fn write_during<T>(&mut self, other: impl Future<Output = T>) -> io::Result<T> {
        let mut other = pin!(other);
        loop {
            tokio::select! {
                biased;
                done = &mut other => return Ok(done),
                written = self.write(), if !self.is_all_written() => written?,
            }
        }
    }

    /// Writes some of what is queued.
    ///
    /// # Errors
    /// The reader is gone.
    pub async fn write(&mut self) -> io::Result<()> {
        self.pipe.write_buf(&mut self.unsaid).await.map(|_| ())
    }

    /// Writes everything that is queued.
    ///
    /// # Errors
    /// The reader is gone.
    pub async fn write_all(&mut self) -> io::Result<()> {
        while !self.is_all_written() {
            self.write().await?;
        }
        Ok(())
    }

    /// Whether nothing is queued.
    pub fn is_all_written(&self) -> bool {
        self.unsaid.is_empty()
    }

    /// Whether more should be queued now.
    pub fn has_room(&self) -> bool {
        self.unsaid.len() < UNSAID_BYTES
    }
}
