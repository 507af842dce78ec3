//! What an agent writes to stdout: pieces in, records out.
//!
//! Always: output is charged to the memory account before it is kept or parsed ([`crate::memory`]). Noise around the
//! objects in a line loses none of them (`frames`); a line without meaning is counted and skipped. After an adoption,
//! output that already became events is parsed again to rebuild the state of the parser and of the turn. Its records
//! end exactly at the known position, never beyond it.

use std::sync::Arc;

use memchr::memchr2_iter;
use tokio::sync::mpsc;

use super::Record;
use super::clean::clean;
use super::frames::take_objects;
use super::lines::{Line, Splitter};
use super::text::TextDecoder;
use crate::agent_event::{AgentEvent, LineParser};
use crate::busy::off_executor;
use crate::memory::{Account, Held, Permit, Unsettled};

/// Lines that arrived in one piece become one record, so that a fast agent does not cost a wake-up per token. This
/// limit makes the position stored often enough.
const LINES_PER_RECORD: usize = 64;

/// Memory that a line takes on its way to a row, as a multiple of its bytes: the parsed value, the stored JSON,
/// SQLite's copies of that. Measured: `tests/limits`.
const COST_OF_BYTE: usize = 3;
/// Bytes that an event takes beside its texts.
const COST_OF_LINE: usize = 512;

/// How much of the first malformed line is kept as a sample.
const SAMPLE_CHARS: usize = 200;

/// Lines that were no event.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Malformed {
    pub(crate) lines: i64,
    pub(crate) sample: Option<String>,
}

/// What an agent's stdout contains.
pub(crate) enum OutputFormat {
    /// Lines of a protocol, with their parser.
    Lines(LineParser),
    /// Plain text for the user.
    Text,
}

/// Parses an agent's stdout and sends records until the receiver is dropped.
pub(crate) struct Output {
    reader: Reader,
    records: mpsc::Sender<Record>,
    /// Output before this position already became events.
    known: u64,
    /// The position of the last record sent.
    told: u64,
    account: Account,
    /// Memory of what was read and is not yet in a record.
    unsettled: Unsettled,
    /// Memory for the current piece on its way to a row.
    permit: Option<Arc<Permit>>,
}

enum Reader {
    Lines(Splitter, Meaning),
    Text(TextDecoder),
}

impl Output {
    /// An output read from its beginning; everything before the position `known` already became events.
    pub(crate) fn new(
        max_line_bytes: usize,
        format: OutputFormat,
        records: mpsc::Sender<Record>,
        known: u64,
        account: Account,
    ) -> Self {
        let reader = match format {
            OutputFormat::Lines(parser) => Reader::Lines(Splitter::new(max_line_bytes), Meaning::new(parser)),
            OutputFormat::Text => Reader::Text(TextDecoder::default()),
        };
        let unsettled = account.nothing_read();
        Self { reader, records, known, told: 0, account, unsettled, permit: None }
    }

    /// Parses the next piece.
    pub(crate) async fn push(&mut self, piece: &[u8]) {
        if self.pay_for(piece).await.is_none() {
            return;
        }
        match &self.reader {
            Reader::Lines(..) => self.push_lines(piece).await,
            Reader::Text(_) => self.push_text(piece).await,
        }
        self.permit = None;
        drop(self.unsettled.split_off(self.kept()));
    }

    /// Waits for the memory that a piece and the lines ending in it take; `None` when the receiver of the records is gone.
    async fn pay_for(&mut self, piece: &[u8]) -> Option<()> {
        let records = &self.records;
        let read = tokio::select! {
            biased;
            read = self.account.read(piece.len()) => read,
            () = records.closed() => return None,
        };
        self.unsettled.add(read);
        let ends = match self.reader {
            Reader::Lines(..) => memchr2_iter(b'\n', b'\r', piece).count(),
            Reader::Text(_) => 1,
        };
        if ends > 0 { self.pay_for_lines(ends, piece.len()).await } else { Some(()) }
    }

    /// Waits for the memory of `lines` lines, made of the unfinished line and `more` bytes.
    async fn pay_for_lines(&mut self, lines: usize, more: usize) -> Option<()> {
        let cost = self.kept().saturating_add(more).saturating_mul(COST_OF_BYTE) + lines * COST_OF_LINE;
        let permit = tokio::select! {
            biased;
            permit = self.account.output(cost) => permit,
            () = self.records.closed() => return None,
        };
        self.permit = Some(Arc::new(permit));
        Some(())
    }

    /// Bytes of the unfinished line.
    fn kept(&self) -> usize {
        match &self.reader {
            Reader::Lines(splitter, _) => splitter.unfinished().len(),
            Reader::Text(_) => 0,
        }
    }

    async fn push_lines(&mut self, piece: &[u8]) {
        let mut rest = piece;
        let mut events = Vec::new();
        let mut lines = 0;
        loop {
            let Reader::Lines(splitter, _) = &self.reader else { return };
            if self.told < self.known && splitter.next_begin(rest) >= self.known {
                lines = 0;
                // All lines so far are known, and the next one is not.
                self.tell(self.known, std::mem::take(&mut events)).await;
            }
            let Reader::Lines(splitter, meaning) = &mut self.reader else { return };
            let Some(line) = splitter.next_line(&mut rest) else { break };
            meaning.add(line, &mut events);
            lines += 1;
            if lines == LINES_PER_RECORD {
                lines = 0;
                let offset = splitter.offset();
                self.tell(offset, std::mem::take(&mut events)).await;
            }
        }
        // Lines without events need no record of their own.
        if !events.is_empty() {
            self.tell(self.offset(), events).await;
        }
    }

    /// Text is sent as it arrives, without waiting for the end of a line.
    async fn push_text(&mut self, piece: &[u8]) {
        let Reader::Text(decoder) = &mut self.reader else { return };
        let unknown_from = self.known.saturating_sub(decoder.read_bytes());
        let (known, news) = piece.split_at(usize::try_from(unknown_from).unwrap_or(usize::MAX).min(piece.len()));
        if self.told < self.known {
            let mut again = decoder.push(known);
            if known.len() as u64 == unknown_from {
                // A stored position never splits a character, so the bytes cut here were already found to be invalid.
                again += &decoder.finish();
            }
            let offset = decoder.offset();
            self.tell(offset, said(again)).await;
        }
        let Reader::Text(decoder) = &mut self.reader else { return };
        let (events, offset) = (said(decoder.push(news)), decoder.offset());
        if !events.is_empty() {
            self.tell(offset, events).await;
        }
    }

    /// End of the output: parses a last line without a line end, and always sends the last position.
    pub(crate) async fn finish(&mut self) {
        if self.pay_for_lines(1, 0).await.is_none() {
            return;
        }
        let mut events = Vec::new();
        match &mut self.reader {
            Reader::Lines(splitter, meaning) => {
                if let Some(line) = splitter.last_line() {
                    meaning.add(line, &mut events);
                }
            }
            Reader::Text(decoder) => events = said(decoder.finish()),
        }
        if !events.is_empty() || self.offset() > self.told {
            self.tell(self.offset(), events).await;
        }
        self.permit = None;
    }

    fn offset(&self) -> u64 {
        match &self.reader {
            Reader::Lines(splitter, _) => splitter.offset(),
            Reader::Text(decoder) => decoder.offset(),
        }
    }

    /// The lines that could not be parsed.
    pub(crate) fn malformed(&self) -> Malformed {
        match &self.reader {
            Reader::Lines(_, meaning) => meaning.malformed.clone(),
            Reader::Text(_) => Malformed::default(),
        }
    }

    async fn tell(&mut self, offset: u64, events: Vec<AgentEvent>) {
        // A CRLF cut by the first read may be whole this time and end later; the known record still ends at `known`.
        let offset = if self.told < self.known { offset.min(self.known) } else { offset };
        let held = Held::new(self.permit.clone(), self.unsettled.split_off(self.kept()));
        // A failed send means that the receiver is gone.
        if self.records.send(Record { offset, events, held }).await.is_ok() {
            self.told = offset;
        }
    }
}

fn said(text: String) -> Vec<AgentEvent> {
    if text.is_empty() { Vec::new() } else { vec![AgentEvent::Text(text)] }
}

/// Parses output that was read in these pieces: a record for each line with events, and one at the end.
pub fn decode<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    max_line_bytes: usize,
    parser: LineParser,
) -> Vec<Record> {
    let mut splitter = Splitter::new(max_line_bytes);
    let mut meaning = Meaning::new(parser);
    let (mut records, mut events) = (Vec::new(), Vec::new());
    for mut piece in pieces {
        while let Some(line) = splitter.next_line(&mut piece) {
            meaning.add(line, &mut events);
            if !events.is_empty() {
                records.push(Record {
                    offset: splitter.offset(),
                    events: std::mem::take(&mut events),
                    held: Held::default(),
                });
            }
        }
    }
    if let Some(line) = splitter.last_line() {
        meaning.add(line, &mut events);
    }
    records.push(Record { offset: splitter.offset(), events, held: Held::default() });
    records
}

struct Meaning {
    parser: LineParser,
    /// Whether no line was read yet.
    first: bool,
    malformed: Malformed,
}

impl Meaning {
    fn new(parser: LineParser) -> Self {
        Self { parser, first: true, malformed: Malformed::default() }
    }

    fn add(&mut self, line: Line<'_>, events: &mut Vec<AgentEvent>) {
        let first = std::mem::take(&mut self.first);
        let bytes = match line {
            Line::Whole(bytes) => bytes,
            Line::TooLong(beginning) => return self.count_malformed(&String::from_utf8_lossy(beginning)),
        };
        off_executor(bytes.len(), || self.add_whole(first, bytes, events));
    }

    fn add_whole(&mut self, first: bool, bytes: &[u8], events: &mut Vec<AgentEvent>) {
        let text = String::from_utf8_lossy(bytes);
        let text = if first { text.strip_prefix('\u{feff}').unwrap_or(&text) } else { &text };
        if text.chars().all(|c| c.is_whitespace() || c == '\u{feff}') {
            return;
        }
        if let Some(meant) = (self.parser)(text) {
            return events.extend(meant.into_iter().filter_map(clean));
        }
        let mut is_understood = true;
        let noise = take_objects(text, |object| match (self.parser)(object) {
            Some(meant) => events.extend(meant.into_iter().filter_map(clean)),
            None => is_understood = false,
        });
        if !is_understood || !noise.is_empty() {
            self.count_malformed(if is_understood { &noise } else { text });
        }
    }

    fn count_malformed(&mut self, text: &str) {
        self.malformed.lines += 1;
        self.malformed.sample.get_or_insert_with(|| text.chars().take(SAMPLE_CHARS).collect());
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;
    use crate::memory::Memory;

    /// The records of an output that is read in pieces of `piece` bytes and known up to `known`.
    fn records(output: &[u8], piece: usize, known: u64, format: OutputFormat) -> Vec<Record> {
        let (sender, mut receiver) = mpsc::channel(1000);
        let mut reading = Output::new(100, format, sender, known, Memory::default().open_account());
        for piece in output.chunks(piece) {
            reading.push(piece).now_or_never().unwrap();
        }
        reading.finish().now_or_never().unwrap();
        drop(reading);
        std::iter::from_fn(|| receiver.try_recv().ok()).collect()
    }

    fn lines() -> OutputFormat {
        OutputFormat::Lines(Box::new(|line| Some(vec![AgentEvent::Text(format!("{line}\n"))])))
    }

    /// Pieces of a text output: characters and escape sequences that may be cut.
    const PIECES: [&[u8]; 6] = [b"a", "é😀".as_bytes(), b"\xff\xe2\x82", b"\n", b"\x1b[3", b"1m\x1b]0;t\x07"];

    /// Reads an output up to the end of some record, then again from its beginning.
    fn read_again(output: &[u8], pieces: (usize, usize), stop: prop::sample::Index, format: fn() -> OutputFormat) {
        let whole = records(output, pieces.0, 0, format());
        if whole.is_empty() {
            return;
        }
        let (before, after) = whole.split_at(stop.index(whole.len()) + 1);
        let known = before.last().map_or(0, |record| record.offset);
        let again = records(output, pieces.1, known, format());
        assert!(again.iter().any(|record| record.offset == known), "{again:?}");
        let (old, news): (Vec<_>, Vec<_>) = again.into_iter().partition(|record| record.offset <= known);
        assert_eq!(text(&old), text(before));
        assert_eq!(text(&news), text(after));
    }

    fn text(records: &[Record]) -> String {
        let events = records.iter().flat_map(|record| &record.events);
        events.map(|event| if let AgentEvent::Text(text) = event { text.clone() } else { String::new() }).collect()
    }

    proptest! {
        /// Wherever the first and the second reading cut the output.
        #[test]
        fn what_is_read_again_is_told_apart_from_news(
            output in "([ab]{0,2}(\n|\r|\r\n)){0,9}[ab]{0,2}",
            pieces in (1..4_usize, 1..4_usize),
            stop in any::<prop::sample::Index>(),
        ) {
            read_again(output.as_bytes(), pieces, stop, lines);
        }

        #[test]
        fn text_read_again_continues_where_it_stopped(
            output in prop::collection::vec(prop::sample::select(PIECES.to_vec()), 0..9),
            pieces in (1..4_usize, 1..4_usize),
            stop in any::<prop::sample::Index>(),
        ) {
            let output = output.concat();
            read_again(&output, pieces, stop, || OutputFormat::Text);
            let whole = text(&records(&output, 1, 0, OutputFormat::Text));
            prop_assert_eq!(whole, text(&records(&output, 99, 0, OutputFormat::Text)));
        }
    }
}
