//! The stdin of an agent: what is to be written waits here until the agent reads it.
//!
//! Always: what waits is bounded; an agent that does not want to read need not.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ChildStdin;

use rustix::event::{PollFd, PollFlags};

/// The most that may wait to be read: a message with its files, and answers, which are small.
const MAX_WAITING_BYTES: usize = 256 * 1024 * 1024;

/// A pipe that takes no more than the agent has read.
#[derive(Debug)]
pub(super) struct Stdin {
    pipe: ChildStdin,
    waiting: Vec<u8>,
    written: usize,
    stays_open: bool,
}

impl Stdin {
    /// `first` is written; then it is closed, unless it stays open for more.
    pub(super) fn new(pipe: ChildStdin, first: String, stays_open: bool) -> Self {
        Self { pipe, waiting: first.into_bytes(), written: 0, stays_open }
    }

    /// Adds more, while it is open. It is closed on an agent that lets too much wait.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        if !self.stays_open {
            return;
        }
        self.waiting.drain(..self.written);
        self.written = 0;
        self.stays_open = self.waiting.len() + bytes.len() <= MAX_WAITING_BYTES;
        if self.stays_open {
            self.waiting.extend_from_slice(bytes);
        }
    }

    /// Closes it behind what waits.
    pub(super) fn close(&mut self) {
        self.stays_open = false;
    }

    /// Writes as much as is taken. Whether it is over: all is written and nothing more will come, or nobody reads it.
    pub(super) fn write(&mut self) -> bool {
        while self.written < self.waiting.len() {
            match self.pipe.write(&self.waiting[self.written..]) {
                Ok(written) => self.written += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
        !self.stays_open
    }

    /// What to look at, when something waits.
    pub(super) fn poll_fd(&self) -> Option<PollFd<'_>> {
        (self.written < self.waiting.len()).then(|| PollFd::new(&self.pipe, PollFlags::OUT))
    }

    /// The pipe.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}
