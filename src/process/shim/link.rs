//! A connection between a shim and an engine, seen from the shim: frames coming in, and the spool going out.
//!
//! Always: nothing blocks; memory is bounded by one frame in and one piece of the spool out.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use super::frame::Decoder;
use super::spool::Spool;
use super::wire::{FromEngine, FromShim, MAX_FROM_ENGINE_BYTES};

/// Bytes of one read and of one write.
const PIECE_BYTES: usize = 64 * 1024;

/// The other side is gone, or violates the protocol.
#[derive(Debug)]
pub(super) struct Broken;

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self
    }
}

#[derive(Debug)]
pub(super) struct Link {
    stream: UnixStream,
    decoder: Decoder,
    /// Bytes to send before more of the spool.
    outbox: Vec<u8>,
    written: usize,
    /// Position in the spool behind what was copied into the outbox.
    position: u64,
    /// Deadline for the engine's hello.
    pub(super) hello_by: Instant,
}

impl Link {
    pub(super) fn new(stream: UnixStream, hello_by: Instant) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let decoder = Decoder::new(MAX_FROM_ENGINE_BYTES);
        Ok(Self { stream, decoder, outbox: Vec::new(), written: 0, position: 0, hello_by })
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The engine's next message; `None` if there is none yet.
    pub(super) fn hear(&mut self) -> Result<Option<FromEngine>, Broken> {
        let mut piece = [0; PIECE_BYTES];
        loop {
            while let Some(frame) = self.decoder.next_frame().map_err(|_| Broken)? {
                if let Some(said) = FromEngine::of(&frame) {
                    return Ok(Some(said));
                }
            }
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(Broken),
                Ok(read) => self.decoder.push(&piece[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Queues a message that is not in the spool.
    pub(super) fn say(&mut self, said: &FromShim) {
        self.outbox.extend_from_slice(&said.to_frame());
    }

    /// Sends as much of the spool as the socket takes.
    pub(super) fn send(&mut self, spool: &Spool) -> Result<(), Broken> {
        loop {
            if self.written == self.outbox.len() {
                self.written = 0;
                self.outbox.resize(PIECE_BYTES, 0);
                let read = spool.read_at(self.position, &mut self.outbox)?;
                self.outbox.truncate(read);
                self.position += read as u64;
                if read == 0 {
                    return Ok(());
                }
            }
            match self.stream.write(&self.outbox[self.written..]) {
                Ok(0) => return Err(Broken),
                Ok(written) => self.written += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether bytes wait until the engine reads again.
    pub(super) fn is_waiting(&self) -> bool {
        self.written < self.outbox.len()
    }

    /// Position in the spool up to which it was sent to the engine.
    pub(super) fn position(&self) -> u64 {
        self.position
    }
}
