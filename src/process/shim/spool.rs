//! The spool: everything that a shim reports about its agent, in a file, so that it is kept while no engine is connected.
//!
//! Always: frames are appended and never changed. If a write fails (a full disk), its bytes wait in memory, nothing
//! more is read from the agent, and the write is retried at the same position, so that a torn frame is overwritten.
//! Only what is in the file is sent to an engine. The file is locked as long as the shim lives.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::wire::FromShim;

/// Between two attempts to write.
const TRY_AGAIN: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct Spool {
    file: File,
    length: u64,
    waiting: Vec<u8>,
    try_at: Option<Instant>,
}

impl Spool {
    /// Creates the file and locks it.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        file.try_lock()?;
        Ok(Self { file, length: 0, waiting: Vec::new(), try_at: None })
    }

    /// Appends a message.
    pub(super) fn add(&mut self, said: &FromShim) {
        self.waiting.extend_from_slice(&said.to_frame());
        if self.try_at.is_none() {
            self.write();
        }
    }

    /// When to retry the write; none if everything is written.
    pub(super) fn try_at(&self) -> Option<Instant> {
        self.try_at
    }

    /// Retries the write if it is due.
    pub(super) fn try_again(&mut self, now: Instant) {
        if self.try_at.is_some_and(|at| now >= at) {
            self.write();
        }
    }

    fn write(&mut self) {
        match self.file.write_all_at(&self.waiting, self.length) {
            Ok(()) => {
                self.length += self.waiting.len() as u64;
                self.waiting.clear();
                self.try_at = None;
            }
            Err(_) => self.try_at = Some(Instant::now() + TRY_AGAIN),
        }
    }

    /// Whether the file was removed, so that no engine will ever read it.
    pub(super) fn is_removed(&self) -> bool {
        rustix::fs::fstat(&self.file).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// Bytes that are in the file.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Reads from a position on, at most as much as the buffer takes.
    pub(super) fn read_at(&self, position: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.length.saturating_sub(position)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        self.file.read_at(&mut buffer[..wanted], position)
    }
}
