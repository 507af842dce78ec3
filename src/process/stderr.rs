//! What an agent writes to stderr: always read, so that the agent never blocks on it, and kept as a head and a tail.
//!
//! Always: memory is bounded; text is decoded once at the end, so a character cut by a read stays whole.

use std::collections::VecDeque;

/// The first lines usually say what was attempted.
const HEAD_BYTES: usize = 4 * 1024;

/// The last lines usually say what went wrong.
const TAIL_BYTES: usize = 12 * 1024;

/// The beginning and the end of a text.
#[derive(Debug, Default)]
pub(super) struct Excerpt {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    left_out: usize,
}

impl Excerpt {
    /// Appends what was read.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let room = HEAD_BYTES - self.head.len();
        let (head, rest) = bytes.split_at(bytes.len().min(room));
        self.head.extend_from_slice(head);
        self.tail.extend(rest);
        let excess = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..excess);
        self.left_out += excess;
    }

    /// The text; none if nothing was written.
    pub(super) fn into_text(self) -> Option<String> {
        let Self { head, tail, left_out } = self;
        let tail = Vec::from(tail);
        if left_out == 0 {
            let whole = [head, tail].concat();
            return (!whole.is_empty()).then(|| String::from_utf8_lossy(&whole).into_owned());
        }
        // A character that a cut splits is left out as a whole.
        let head_end = whole_characters(&head);
        let tail_start = tail.iter().take(3).take_while(|byte| *byte & 0b1100_0000 == 0b1000_0000).count();
        let left_out = left_out + (head.len() - head_end) + tail_start;
        Some(format!(
            "{}\n… {left_out} bytes left out …\n{}",
            String::from_utf8_lossy(&head[..head_end]),
            String::from_utf8_lossy(&tail[tail_start..])
        ))
    }
}

/// Length of the text without an incomplete character at its end.
fn whole_characters(bytes: &[u8]) -> usize {
    let last_start = bytes.iter().rev().take(4).position(|byte| byte & 0b1100_0000 != 0b1000_0000);
    let Some(from_end) = last_start else { return bytes.len() };
    let start = bytes.len() - 1 - from_end;
    match std::str::from_utf8(&bytes[start..]) {
        Err(cut) if cut.error_len().is_none() => start,
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excerpt(pieces: &[&[u8]]) -> Option<String> {
        let mut excerpt = Excerpt::default();
        for piece in pieces {
            excerpt.push(piece);
        }
        excerpt.into_text()
    }

    #[test]
    fn a_short_text_is_kept_whole_wherever_it_was_cut() {
        let text = "Fehler: für ✂ nichts\n";
        for cut in 0..=text.len() {
            let (a, b) = text.as_bytes().split_at(cut);
            assert_eq!(excerpt(&[a, b]).as_deref(), Some(text));
        }
        assert_eq!(excerpt(&[]), None);
        assert_eq!(excerpt(&[b"a\xff"]).as_deref(), Some("a\u{fffd}"));
    }

    #[test]
    fn a_text_that_just_fits_is_kept_whole() {
        let text = "x".repeat(HEAD_BYTES + TAIL_BYTES);
        assert_eq!(excerpt(&[text.as_bytes()]), Some(text));
    }

    #[test]
    fn a_long_text_keeps_its_head_and_its_tail_and_says_how_much_is_missing() {
        let text = [vec![b'h'; HEAD_BYTES], vec![b'm'; 1234], vec![b't'; TAIL_BYTES]].concat();
        let expected = format!("{}\n… 1234 bytes left out …\n{}", "h".repeat(HEAD_BYTES), "t".repeat(TAIL_BYTES));
        assert_eq!(excerpt(&[&text]), Some(expected.clone()));
        let pieces: Vec<&[u8]> = text.chunks(7).collect();
        assert_eq!(excerpt(&pieces), Some(expected));
    }

    #[test]
    fn no_character_is_torn_at_a_cut() {
        for lead in 0..4 {
            let text = "x".repeat(lead) + &"✂".repeat(10_000);
            let kept = excerpt(&[text.as_bytes()]).unwrap();
            assert!(!kept.contains('\u{fffd}'), "{lead}");
            let said: usize = kept.split("… ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
            let mark = format!("\n… {said} bytes left out …\n");
            assert_eq!(kept.len() - mark.len() + said, text.len());
        }
    }
}
