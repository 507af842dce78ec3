//! The stdin of an agent: input waits here until the agent reads it.
//!
//! Always: what waits is bounded; the shim does not block on an agent that does not read.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ChildStdin;

use rustix::event::{PollFd, PollFlags};

/// Maximum input that waits: a message with its files, and answers, which are small.
const MAX_WAITING_BYTES: usize = 256 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Stdin {
    pipe: ChildStdin,
    waiting: Vec<u8>,
    written: usize,
    stays_open: bool,
}

impl Stdin {
    /// Writes `first`, then closes the pipe unless `stays_open`.
    pub(super) fn new(pipe: ChildStdin, first: String, stays_open: bool) -> Self {
        Self { pipe, waiting: first.into_bytes(), written: 0, stays_open }
    }

    /// Queues more input, while it is open. If too much waits, it closes after what was queued before.
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

    /// Closes it after what is queued.
    pub(super) fn close(&mut self) {
        self.stays_open = false;
    }

    /// Writes as much as the pipe takes. Returns whether it is over: everything is written and no more will come, or
    /// the agent has closed it.
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

    /// The descriptor to poll, if input waits.
    pub(super) fn poll_fd(&self) -> Option<PollFd<'_>> {
        (self.written < self.waiting.len()).then(|| PollFd::new(&self.pipe, PollFlags::OUT))
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}
