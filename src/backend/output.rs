//! What an agent writes to stdout: pieces in, records out.
//!
//! Always: a line that means nothing is counted and reading goes on; memory is bounded by the longest line allowed. Lines
//! that became events before are read again, so that the parser knows what it knew, and not said again.

use tokio::sync::mpsc;

use super::lines::{Line, Splitter};
use super::{AgentEvent, LineParser, Record};

/// Lines that came in one piece go out as one record, so that a fast agent does not cost a wake-up per token; cut here, so
/// that the position is stored often enough.
const LINES_PER_RECORD: usize = 64;

/// So much of the first line that means nothing is kept.
const SAMPLE_CHARS: usize = 200;

/// Lines that were no event.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Malformed {
    pub(super) lines: i64,
    pub(super) sample: Option<String>,
}

/// Reads a stdout and sends what it means, as long as anybody wants it.
pub(super) struct Output {
    splitter: Splitter,
    meaning: Meaning,
    records: mpsc::Sender<Record>,
    /// Lines that begin before this position became events already.
    known: u64,
    /// The position that was told last.
    sent: u64,
}

impl Output {
    /// An output from its beginning on, of which what stands before the position `known` became events already.
    pub(super) fn new(max_line_bytes: usize, parser: LineParser, records: mpsc::Sender<Record>, known: u64) -> Self {
        let meaning = Meaning { parser, first: true, malformed: Malformed::default() };
        Self { splitter: Splitter::new(max_line_bytes), meaning, records, known, sent: known }
    }

    /// Takes the next piece.
    pub(super) async fn push(&mut self, piece: &[u8]) {
        let mut rest = piece;
        let mut events = Vec::new();
        let mut lines = 0;
        loop {
            let is_known = self.splitter.next_begin(rest) < self.known;
            let Some(line) = self.splitter.next_line(&mut rest) else { break };
            self.meaning.add(line, is_known, &mut events);
            lines += 1;
            if lines == LINES_PER_RECORD {
                lines = 0;
                self.send(std::mem::take(&mut events)).await;
            }
        }
        // Lines without events need no record of their own.
        if !events.is_empty() {
            self.send(events).await;
        }
    }

    /// The output is at its end: the last line may have none, and its position is told in any case.
    pub(super) async fn finish(&mut self) {
        let mut events = Vec::new();
        let is_known = self.splitter.next_begin(&[]) < self.known;
        if let Some(line) = self.splitter.last_line() {
            self.meaning.add(line, is_known, &mut events);
        }
        if !events.is_empty() || self.splitter.offset() > self.sent {
            self.send(events).await;
        }
    }

    /// The lines that meant nothing.
    pub(super) fn malformed(&self) -> Malformed {
        self.meaning.malformed.clone()
    }

    async fn send(&mut self, events: Vec<AgentEvent>) {
        let offset = self.splitter.offset();
        // When nobody takes them any more, there is nothing to tell.
        if self.records.send(Record { offset, events }).await.is_ok() {
            self.sent = offset;
        }
    }
}

/// What an output means that was read in these pieces, of which what stands before the position `known` became events
/// already: a record for each line that says something, and one at the end.
pub fn decode<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    max_line_bytes: usize,
    parser: LineParser,
    known: u64,
) -> Vec<Record> {
    let mut splitter = Splitter::new(max_line_bytes);
    let mut meaning = Meaning { parser, first: true, malformed: Malformed::default() };
    let (mut records, mut events) = (Vec::new(), Vec::new());
    for mut piece in pieces {
        loop {
            let is_known = splitter.next_begin(piece) < known;
            let Some(line) = splitter.next_line(&mut piece) else { break };
            meaning.add(line, is_known, &mut events);
            if !events.is_empty() {
                records.push(Record { offset: splitter.offset(), events: std::mem::take(&mut events) });
            }
        }
    }
    let is_known = splitter.next_begin(&[]) < known;
    if let Some(line) = splitter.last_line() {
        meaning.add(line, is_known, &mut events);
    }
    records.push(Record { offset: splitter.offset(), events });
    records
}

/// Turns lines into events.
struct Meaning {
    parser: LineParser,
    /// No line was read so far.
    first: bool,
    malformed: Malformed,
}

impl Meaning {
    /// Of a line that was known before only the end of the turn is news: nothing that is stored says it.
    fn add(&mut self, line: Line<'_>, is_known: bool, events: &mut Vec<AgentEvent>) {
        let first = std::mem::take(&mut self.first);
        let bytes = match line {
            Line::Whole(bytes) => bytes,
            Line::TooLong(beginning) => return self.count_malformed(&String::from_utf8_lossy(beginning)),
        };
        let text = String::from_utf8_lossy(bytes);
        let text = if first { text.strip_prefix('\u{feff}').unwrap_or(&text) } else { &text };
        if text.chars().all(|c| c.is_whitespace() || c == '\u{feff}') {
            return;
        }
        match (self.parser)(text) {
            Some(meant) => events.extend(meant.into_iter().filter(|event| !is_known || *event == AgentEvent::Ended)),
            None => self.count_malformed(text),
        }
    }

    fn count_malformed(&mut self, text: &str) {
        self.malformed.lines += 1;
        self.malformed.sample.get_or_insert_with(|| text.chars().take(SAMPLE_CHARS).collect());
    }
}
