//! Splits bytes into lines, with the position behind each. LF, CRLF and a lone CR end a line, and so does the end of
//! the output.
//!
//! Always: memory is bounded by the longest line allowed; a longer line is skipped without being kept, and the position
//! still counts it. How reads cut the bytes changes no line. Only when a CRLF was cut, its LF may count to what
//! follows; a reader that continues at such a position finds an empty line.

use memchr::memchr2;

/// How much of a line that is too long is kept as a sample: 200 characters of up to four bytes.
const BEGINNING_BYTES: usize = 800;

/// Buffer that the splitter keeps between lines; capacity beyond it, taken for a rare long line, is freed.
const KEPT_CAPACITY: usize = 64 * 1024;

/// Stands for a line that cannot be read: its beginning, cut off with `…`, so that the engine counts it as malformed
/// and never takes it for a valid line.
pub(crate) fn unreadable(line: &str) -> String {
    format!("{}…", &line[..line.floor_char_boundary(BEGINNING_BYTES)])
}

/// A line without its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// The beginning of a line that exceeds the limit.
    TooLong(&'a [u8]),
}

/// Splits an output that is read piece by piece.
#[derive(Debug)]
pub(crate) struct Splitter {
    max_line_bytes: usize,
    /// The current line's bytes from earlier pieces, or only its beginning once it is too long.
    held: Vec<u8>,
    /// How many bytes of the current line were in earlier pieces.
    held_bytes: u64,
    too_long: bool,
    /// The line in `held` was returned.
    given: bool,
    /// The last line ended in a CR; an LF right behind it belongs to that line end.
    after_cr: bool,
    offset: u64,
}

impl Splitter {
    /// A splitter at the beginning of an output.
    pub(crate) fn new(max_line_bytes: usize) -> Self {
        Self {
            max_line_bytes,
            held: Vec::new(),
            held_bytes: 0,
            too_long: false,
            given: false,
            after_cr: false,
            offset: 0,
        }
    }

    /// The position behind the last line that was returned.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The position at which the next line begins, given the bytes read next.
    pub(crate) fn next_begin(&self, read: &[u8]) -> u64 {
        self.offset + u64::from(self.after_cr && read.starts_with(b"\n"))
    }

    /// Takes the next line off the front of what was read; `None` if the rest is only the beginning of a line.
    pub(crate) fn next_line<'s, 'r: 's>(&'s mut self, read: &mut &'r [u8]) -> Option<Line<'s>> {
        self.let_go();
        if self.after_cr && !read.is_empty() {
            self.after_cr = false;
            if let Some(rest) = read.strip_prefix(b"\n") {
                *read = rest;
                self.offset += 1;
            }
        }
        let Some(end) = memchr2(b'\n', b'\r', read) else {
            self.hold(read);
            self.held_bytes += read.len() as u64;
            *read = &[];
            return None;
        };
        let (line, rest) = read.split_at(end);
        let end_bytes = if rest.starts_with(b"\r\n") { 2 } else { 1 };
        self.after_cr = rest == b"\r";
        *read = &rest[end_bytes..];
        self.offset += self.held_bytes + (end + end_bytes) as u64;
        if self.held_bytes == 0 && line.len() <= self.max_line_bytes {
            return Some(Line::Whole(line));
        }
        self.hold(line);
        Some(self.give())
    }

    /// The bytes of the unfinished line; empty if it is too long.
    pub(crate) fn unfinished(&self) -> &[u8] {
        if self.given || self.too_long { &[] } else { &self.held }
    }

    /// The last line of an output that does not end in a line end.
    pub(crate) fn last_line(&mut self) -> Option<Line<'_>> {
        self.let_go();
        if self.held_bytes == 0 {
            return None;
        }
        self.offset += self.held_bytes;
        Some(self.give())
    }

    fn hold(&mut self, piece: &[u8]) {
        if !self.too_long && self.held.len() + piece.len() <= self.max_line_bytes {
            self.held.extend_from_slice(piece);
            return;
        }
        self.too_long = true;
        let room = BEGINNING_BYTES.saturating_sub(self.held.len());
        self.held.extend_from_slice(&piece[..piece.len().min(room)]);
        self.held.truncate(BEGINNING_BYTES);
        self.held.shrink_to(KEPT_CAPACITY);
    }

    fn give(&mut self) -> Line<'_> {
        self.given = true;
        self.held_bytes = 0;
        if self.too_long { Line::TooLong(&self.held) } else { Line::Whole(&self.held) }
    }

    /// Clears a line that was returned.
    fn let_go(&mut self) {
        if self.given {
            self.given = false;
            self.too_long = false;
            self.held.clear();
            self.held.shrink_to(KEPT_CAPACITY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines as text with the position behind each; a line that is too long is marked with `!`.
    fn split(pieces: &[&[u8]], max_line_bytes: usize) -> (Vec<(u64, String)>, u64) {
        let mut splitter = Splitter::new(max_line_bytes);
        let mut lines = Vec::new();
        let show = |line: Line<'_>| match line {
            Line::Whole(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Line::TooLong(bytes) => format!("!{}", String::from_utf8_lossy(bytes)),
        };
        for piece in pieces {
            let mut rest = *piece;
            while let Some(line) = splitter.next_line(&mut rest) {
                let text = show(line);
                lines.push((splitter.offset(), text));
            }
        }
        if let Some(line) = splitter.last_line() {
            let text = show(line);
            lines.push((splitter.offset(), text));
        }
        (lines, splitter.offset())
    }

    fn texts(lines: &[(u64, String)]) -> Vec<&str> {
        lines.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn every_line_end_counts_wherever_the_reads_were_cut() {
        let cases: [(&[u8], &[&str]); 12] = [
            (b"", &[]),
            (b"a", &["a"]),
            (b"a\n", &["a"]),
            (b"a\r\n", &["a"]),
            (b"a\r", &["a"]),
            (b"a\nb\r\nc\rd", &["a", "b", "c", "d"]),
            (b"\n\n", &["", ""]),
            (b"\r\r", &["", ""]),
            (b"\r\n\r\n", &["", ""]),
            (b"\n\r", &["", ""]),
            (b"toolong\nb\n", &["!toolong", "b"]),
            (b"b\r\ntoolong", &["b", "!toolong"]),
        ];
        for (input, expected) in cases {
            let (whole, end) = split(&[input], 4);
            assert_eq!(texts(&whole), expected, "{input:?}");
            assert_eq!(end, input.len() as u64, "{input:?}");
            for cut in 0..=input.len() {
                let (lines, end) = split(&[&input[..cut], &[], &input[cut..]], 4);
                assert_eq!(texts(&lines), expected, "{input:?} cut at {cut}");
                assert_eq!(end, input.len() as u64, "{input:?} cut at {cut}");
                assert!(lines.is_sorted_by(|a, b| a.0 < b.0), "{lines:?}");
            }
            let bytes: Vec<&[u8]> = input.chunks(1).collect();
            assert_eq!(texts(&split(&bytes, 4).0), expected, "{input:?} byte by byte");
        }
    }

    #[test]
    fn a_characters_bytes_may_come_in_two_reads() {
        let input = "grüße\n".as_bytes();
        for cut in 0..=input.len() {
            assert_eq!(texts(&split(&[&input[..cut], &input[cut..]], 100).0), ["grüße"]);
        }
    }

    #[test]
    fn a_line_as_long_as_allowed_is_whole_and_one_byte_more_is_not() {
        for cut in 0..=5 {
            assert_eq!(texts(&split(&[&b"12345\n"[..cut], &b"12345\n"[cut..]], 5).0), ["12345"]);
            assert_eq!(texts(&split(&[&b"123456\n"[..cut], &b"123456\n"[cut..]], 5).0), ["!123456"]);
        }
    }

    #[test]
    fn memory_stays_small_over_a_huge_line_and_after_a_long_one() {
        let mut splitter = Splitter::new(1024 * 1024);
        let piece = vec![b'x'; 64 * 1024];
        for _ in 0..1000 {
            let mut rest = &piece[..];
            assert_eq!(splitter.next_line(&mut rest), None);
            assert!(splitter.held.capacity() <= 2 * 1024 * 1024);
        }
        let mut rest = &b"\nshort\n"[..];
        assert_eq!(splitter.next_line(&mut rest), Some(Line::TooLong(&[b'x'; BEGINNING_BYTES])));
        assert_eq!(splitter.next_line(&mut rest), Some(Line::Whole(b"short")));
        assert!(splitter.held.capacity() <= KEPT_CAPACITY);
        assert_eq!(splitter.offset(), 64_000 * 1024 + 7);
    }
}
