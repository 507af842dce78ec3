//! Frames: the format of the connection between a shim and an engine, and of the spool. A frame is a head of twelve
//! bytes (length of the payload, kind, check sum) and the payload.
//!
//! Always: memory is bounded by the longest frame allowed, whatever the bytes; a frame whose check sum is wrong is
//! never returned, and nothing behind it is. How reads cut the bytes changes nothing.

use bytes::{Buf, Bytes, BytesMut};

/// Length (4 bytes, little endian), kind (1 byte), padding (3 bytes), CRC-32 of all that and the payload (4 bytes).
pub const HEAD_BYTES: usize = 12;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The kind of message; each side skips kinds that it does not know.
    pub kind: u8,
    /// Its content; JSON or raw bytes, depending on the kind.
    pub payload: Bytes,
}

/// Bytes that are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// The head announces more than a frame may hold.
    #[error("a frame of {0} bytes is longer than allowed")]
    TooLong(usize),
    /// The bytes differ from those that were written.
    #[error("the check sum of a frame is wrong")]
    CheckSum,
}

/// Appends a frame. A payload never exceeds `u32::MAX` bytes: the kinds that may grow are cut before.
pub fn encode(kind: u8, payload: &[u8], into: &mut Vec<u8>) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut head = [0; HEAD_BYTES - 4];
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[4] = kind;
    into.reserve(HEAD_BYTES + payload.len());
    into.extend_from_slice(&head);
    into.extend_from_slice(&check_sum(&head, payload).to_le_bytes());
    into.extend_from_slice(payload);
}

fn check_sum(head: &[u8], payload: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(head);
    sum.update(payload);
    sum.finalize()
}

/// Decodes frames from what is read, piece by piece.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    max_payload_bytes: usize,
    taken: u64,
}

impl Decoder {
    /// A decoder at the beginning of a stream whose frames hold at most `max_payload_bytes`.
    pub fn new(max_payload_bytes: usize) -> Self {
        Self { buffer: BytesMut::new(), max_payload_bytes, taken: 0 }
    }

    /// Appends bytes that were read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The buffer, to read into it directly.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Bytes of the frames that were returned.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// The next frame; `None` while it is incomplete.
    ///
    /// # Errors
    /// [`Corrupt`], and from then on always.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Corrupt> {
        let Some(head) = self.buffer.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let [a, b, c, d, kind, .., e, f, g, h] = *head;
        let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length > self.max_payload_bytes {
            return Err(Corrupt::TooLong(length));
        }
        if self.buffer.len() < HEAD_BYTES + length {
            return Ok(None);
        }
        let (head, payload) = self.buffer.split_at(HEAD_BYTES);
        if check_sum(&head[..HEAD_BYTES - 4], &payload[..length]) != u32::from_le_bytes([e, f, g, h]) {
            return Err(Corrupt::CheckSum);
        }
        let mut whole = self.buffer.split_to(HEAD_BYTES + length);
        whole.advance(HEAD_BYTES);
        self.taken += (HEAD_BYTES + length) as u64;
        Ok(Some(Frame { kind, payload: whole.freeze() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(pieces: &[&[u8]]) -> (Vec<(u8, Vec<u8>)>, Option<Corrupt>) {
        let mut decoder = Decoder::new(100);
        let mut found = Vec::new();
        for piece in pieces {
            decoder.push(piece);
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => found.push((frame.kind, frame.payload.to_vec())),
                    Ok(None) => break,
                    Err(error) => return (found, Some(error)),
                }
            }
        }
        (found, None)
    }

    fn two() -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(b'a', b"hello", &mut bytes);
        encode(b'b', b"", &mut bytes);
        bytes
    }

    #[test]
    fn frames_come_out_as_they_went_in_wherever_they_were_cut() {
        let (bytes, expected) = (two(), vec![(b'a', b"hello".to_vec()), (b'b', Vec::new())]);
        for cut in 0..=bytes.len() {
            assert_eq!(frames(&[&bytes[..cut], &bytes[cut..]]), (expected.clone(), None), "{cut}");
        }
    }

    #[test]
    fn no_changed_bit_goes_unseen() {
        let bytes = two();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let (found, error) = frames(&[&changed]);
            // A length that grew waits for bytes that never come.
            assert!(found.len() < 2 || error.is_some(), "{bit}");
            assert!(found.iter().all(|frame| [(b'a', b"hello".to_vec()), (b'b', vec![])].contains(frame)), "{bit}");
        }
    }

    #[test]
    fn a_frame_may_not_be_longer_than_allowed() {
        let mut bytes = Vec::new();
        encode(b'a', &[0; 101], &mut bytes);
        assert_eq!(frames(&[&bytes]), (vec![], Some(Corrupt::TooLong(101))));
    }
}
