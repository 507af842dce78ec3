//! The stdin and stdout of a relay, which are pipes to its host.
//!
//! Always: neither blocks the other, nor what else the relay has to do: SIGTERM is heard also while nobody reads.

use std::io;
use std::os::fd::AsFd;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

use crate::backend::lines::{Line, Splitter};

/// The first line holds the files of a message.
const MAX_INPUT_LINE_BYTES: usize = 256 * 1024 * 1024;
/// So much waits to be read by the host before more is taken from the server.
const UNSAID_BYTES: usize = 1024 * 1024;

/// Lines from the host.
pub(super) struct Input {
    pipe: pipe::Receiver,
    splitter: Splitter,
    read: BytesMut,
    is_open: bool,
}

impl Input {
    pub(super) fn of_stdin() -> io::Result<Self> {
        let pipe = pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)?;
        Ok(Self { pipe, splitter: Splitter::new(MAX_INPUT_LINE_BYTES), read: BytesMut::new(), is_open: true })
    }

    /// The next line; `None` when no more comes. Whoever stops waiting misses nothing.
    pub(super) async fn next(&mut self) -> Option<String> {
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

    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }
}

/// Lines to the host.
pub(super) struct Output {
    pipe: pipe::Sender,
    unsaid: BytesMut,
}

impl Output {
    pub(super) fn of_stdout() -> io::Result<Self> {
        let pipe = pipe::Sender::from_owned_fd(io::stdout().as_fd().try_clone_to_owned()?)?;
        Ok(Self { pipe, unsaid: BytesMut::new() })
    }

    /// Says a line, when [`Output::write`] gets to it.
    pub(super) fn say(&mut self, line: &str) {
        self.unsaid.extend_from_slice(line.as_bytes());
        self.unsaid.extend_from_slice(b"\n");
    }

    /// Writes some of what was said.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub(super) async fn write(&mut self) -> io::Result<()> {
        self.pipe.write_buf(&mut self.unsaid).await.map(|_| ())
    }

    /// Writes all that was said.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub(super) async fn write_all(&mut self) -> io::Result<()> {
        while !self.is_all_written() {
            self.write().await?;
        }
        Ok(())
    }

    pub(super) fn is_all_written(&self) -> bool {
        self.unsaid.is_empty()
    }

    /// Whether more should be said now.
    pub(super) fn has_room(&self) -> bool {
        self.unsaid.len() < UNSAID_BYTES
    }
}
