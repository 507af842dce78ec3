//! The reading end of a pipe into which a run writes.
//!
//! Always: reading ends, even when something that could not be found or ended still holds the other end. Once the run is
//! over, exactly the bytes that are already in the pipe are read: nobody who counts can add to them.

use std::os::fd::AsFd;

use rustix::io::ioctl_fionread;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::sync::CancellationToken;

/// A child's stdout or stderr.
#[derive(Debug)]
pub(super) struct Pipe<R> {
    end: R,
    /// Everything of the run is gone.
    over: CancellationToken,
    /// Bytes still to read, once the run is over.
    left: Option<usize>,
}

impl<R: AsyncRead + AsFd + Unpin> Pipe<R> {
    /// Reads `end` until it is closed, or until the run is `over`.
    pub(super) fn new(end: R, over: CancellationToken) -> Self {
        Self { end, over, left: None }
    }

    /// Reads what there is, at least a byte; 0 at the end. Dropping the future loses nothing.
    pub(super) async fn read(&mut self, buffer: &mut [u8]) -> usize {
        let left = match self.left {
            Some(left) => left,
            None => tokio::select! {
                biased;
                () = self.over.cancelled() => {
                    let left = ioctl_fionread(&self.end).ok().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0);
                    *self.left.insert(left)
                }
                // A pipe that cannot be read has ended.
                read = self.end.read(buffer) => return read.unwrap_or(0),
            },
        };
        if left == 0 {
            return 0;
        }
        let wanted = buffer.len().min(left);
        let read = self.end.read(&mut buffer[..wanted]).await.unwrap_or(0);
        self.left = Some(left - read);
        read
    }
}
