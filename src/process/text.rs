//! Decodes text from bytes as they arrive: characters that a read cut are joined, invalid UTF-8 becomes U+FFFD, and
//! what a terminal would obey (escape sequences, control characters) is left out.
//!
//! Always: the text depends only on the bytes, not on how reads cut them. A second reading from the beginning gets the
//! same text up to the same [`TextDecoder::offset`].

#[derive(Debug, Default)]
pub(super) struct TextDecoder {
    /// The beginning of a character whose rest was not read yet: three bytes at most.
    cut: Vec<u8>,
    filter: EscapeFilter,
    read_bytes: u64,
}

impl TextDecoder {
    /// How many bytes were read.
    pub(super) fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    /// The position behind the last complete character.
    pub(super) fn offset(&self) -> u64 {
        self.read_bytes - self.cut.len() as u64
    }

    /// Decodes the next piece and returns the new text.
    pub(super) fn push(&mut self, piece: &[u8]) -> String {
        self.read_bytes += piece.len() as u64;
        let joined;
        let mut rest = piece;
        if !self.cut.is_empty() {
            self.cut.extend_from_slice(piece);
            joined = std::mem::take(&mut self.cut);
            rest = &joined;
        }
        let mut text = String::new();
        loop {
            match str::from_utf8(rest) {
                Ok(valid) => {
                    self.filter.push(valid, &mut text);
                    return text;
                }
                Err(error) => {
                    let (valid, invalid) = rest.split_at(error.valid_up_to());
                    self.filter.push(&String::from_utf8_lossy(valid), &mut text);
                    let Some(length) = error.error_len() else {
                        self.cut = invalid.to_vec();
                        return text;
                    };
                    self.filter.push("\u{fffd}", &mut text);
                    rest = &invalid[length..];
                }
            }
        }
    }

    /// Ends the output, or its known part: an incomplete character becomes U+FFFD.
    pub(super) fn finish(&mut self) -> String {
        let mut text = String::new();
        if !std::mem::take(&mut self.cut).is_empty() {
            self.filter.push("\u{fffd}", &mut text);
        }
        text
    }
}

/// Drops escape sequences (ECMA-48) and control characters. A line end ends any sequence, so an unfinished one costs at
/// most the rest of its line.
#[derive(Debug, Default)]
enum EscapeFilter {
    #[default]
    Text,
    /// Behind an ESC.
    Escape,
    /// In a control sequence: `ESC [ … letter`.
    Control,
    /// In a control string, such as a window title: `ESC ] … BEL`, `ESC P … ESC \`.
    String,
}

impl EscapeFilter {
    fn push(&mut self, piece: &str, text: &mut String) {
        for c in piece.chars() {
            *self = match (&*self, c) {
                (_, '\u{1b}') => Self::Escape,
                (_, '\u{9b}') => Self::Control,
                (_, '\n' | '\r') | (Self::Text, '\t') => {
                    text.push(c);
                    Self::Text
                }
                (_, '\u{18}' | '\u{1a}') => Self::Text,
                (Self::Escape, '[') => Self::Control,
                (Self::Escape, ']' | 'P' | 'X' | '^' | '_') => Self::String,
                // Intermediate bytes, as in `ESC ( B`.
                (Self::Escape, ' '..='/') => Self::Escape,
                (Self::Control, ' '..='?') => Self::Control,
                (Self::Escape | Self::Control, ' '..='~') => Self::Text,
                (Self::String, '\u{7}') => Self::Text,
                (Self::String, _) => Self::String,
                (_, c) if c.is_control() => Self::Text,
                (_, c) => {
                    text.push(c);
                    Self::Text
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_text_as_they_come() {
        for (pieces, expected) in [
            (&[&b"a"[..], b"b\n", b""][..], &["a", "b\n", ""][..]),
            (&[b"\xe2\x82", b"\xac!"], &["", "€!"]),
            (&[b"\xf0", b"\x9f", b"\x98", b"\x80"], &["", "", "", "😀"]),
            (&[b"a\xff\xfeb", b"\xe2\x82a"], &["a\u{fffd}\u{fffd}b", "\u{fffd}a"]),
            (&[b"a\xe2\x82"], &["a", "\u{fffd}"]),
            (&[b"\xef\xbb\xbfx\0y\tz\r\n"], &["\u{feff}xy\tz\r\n"]),
        ] {
            let mut decoder = TextDecoder::default();
            let mut texts: Vec<_> = pieces.iter().map(|piece| decoder.push(piece)).collect();
            let end = decoder.finish();
            texts.extend((!end.is_empty()).then_some(end));
            assert_eq!(texts, expected, "{pieces:?}");
            assert_eq!(decoder.offset(), pieces.concat().len() as u64);
        }
    }

    #[test]
    fn what_a_terminal_obeys_is_left_out() {
        for (output, expected) in [
            ("\u{1b}[1;31mred\u{1b}[0m!", "red!"),
            ("\u{1b}]0;title\u{7}a\u{1b}]8;;http://x\u{1b}\\b", "ab"),
            ("\u{1b}(Ba\u{1b}=b\u{1b}7c", "abc"),
            ("a\u{7}b\u{8}c\u{9b}31m", "abc"),
            ("\u{1b}]never ended\nnext", "\nnext"),
            ("\u{1b}[12\nnext\u{1b}", "\nnext"),
            ("\u{1b}[é \u{1b}é", "é é"),
        ] {
            assert_eq!(TextDecoder::default().push(output.as_bytes()), expected, "{output:?}");
        }
    }
}
