//! The spool: everything that a shim has to say of its agent, in a file, so that it is there when nobody listens.
//!
//! Always: frames are written one behind the other and never changed. What cannot be written (a full disk) waits in
//! memory, nothing more is taken from the agent meanwhile, and writing is tried again where it failed; a torn frame is
//! written over. Nobody is told of what is not in the file. The file is locked as long as the shim lives.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::wire::FromShim;

/// Between two tries to write.
const TRY_AGAIN: Duration = Duration::from_millis(250);

/// The file of one agent.
#[derive(Debug)]
pub(super) struct Spool {
    file: File,
    length: u64,
    waiting: Vec<u8>,
    try_at: Option<Instant>,
}

impl Spool {
    /// Makes the file and locks it.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        file.try_lock()?;
        Ok(Self { file, length: 0, waiting: Vec::new(), try_at: None })
    }

    /// Adds what is said behind all else.
    pub(super) fn add(&mut self, said: &FromShim) {
        self.waiting.extend_from_slice(&said.to_frame());
        if self.try_at.is_none() {
            self.write();
        }
    }

    /// When writing has to be tried again; none when all is written.
    pub(super) fn try_at(&self) -> Option<Instant> {
        self.try_at
    }

    /// Tries again when it is time.
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

    /// Whether the file was removed, so that nobody will ever read it.
    pub(super) fn is_removed(&self) -> bool {
        rustix::fs::fstat(&self.file).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// Bytes that are in the file.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Reads what was written from a position on, at most as much as the buffer takes.
    pub(super) fn read_at(&self, position: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.length.saturating_sub(position)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        self.file.read_at(&mut buffer[..wanted], position)
    }
}
