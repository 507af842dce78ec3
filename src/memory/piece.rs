//! Pieces of what is sent to clients: each counts until it is sent.

use bytes::Bytes;

use super::{Permit, Pool};

/// A piece: reading it takes about a millisecond.
pub const PIECE_BYTES: usize = 256 * 1024;
/// The same when memory is short. It is not counted: all readers that there may be take one.
const SMALL_PIECE_BYTES: usize = 16 * 1024;

/// How much may be read at once.
#[derive(Debug)]
pub struct Allowed {
    bytes: usize,
    permit: Option<Permit>,
}

/// A piece and the memory that it takes.
struct Text<T> {
    text: T,
    _permit: Option<Permit>,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Text<T> {
    fn as_ref(&self) -> &[u8] {
        self.text.as_ref()
    }
}

impl Pool {
    /// How much may be read at once of what is to be sent. No reader waits for it.
    pub fn allow_piece(&self, wanted: usize) -> Allowed {
        match self.try_acquire(wanted) {
            Some(permit) => Allowed { bytes: wanted, permit: Some(permit) },
            None => Allowed { bytes: SMALL_PIECE_BYTES.min(wanted), permit: None },
        }
    }
}

impl Allowed {
    /// So many bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What was read, which counts until it is dropped.
    pub fn hold(self, text: impl AsRef<[u8]> + Send + 'static) -> Bytes {
        Bytes::from_owner(Text { text, _permit: self.permit })
    }
}
