//! What an agent writes to stdout: pieces in, records out.
//!
//! Always: what stands around the objects in a line costs none of them (`frames`); a line that means nothing is counted and reading goes on; memory is bounded by the longest line allowed. Lines
//! that became events before are read again, so that the parser and whoever listens know what was known: their records
//! end at the position up to which they are known, and not beyond.

use tokio::sync::mpsc;

use super::frames::take_objects;
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
    told: u64,
}

impl Output {
    /// An output from its beginning on, of which what stands before the position `known` became events already.
    pub(super) fn new(max_line_bytes: usize, parser: LineParser, records: mpsc::Sender<Record>, known: u64) -> Self {
        let meaning = Meaning { parser, first: true, malformed: Malformed::default() };
        Self { splitter: Splitter::new(max_line_bytes), meaning, records, known, told: 0 }
    }

    /// Takes the next piece.
    pub(super) async fn push(&mut self, piece: &[u8]) {
        let mut rest = piece;
        let mut events = Vec::new();
        let mut lines = 0;
        loop {
            if self.told < self.known && self.splitter.next_begin(rest) >= self.known {
                lines = 0;
                // All of them are known, and the next line is not.
                self.tell(self.known, std::mem::take(&mut events)).await;
            }
            let Some(line) = self.splitter.next_line(&mut rest) else { break };
            self.meaning.add(line, &mut events);
            lines += 1;
            if lines == LINES_PER_RECORD {
                lines = 0;
                self.tell(self.splitter.offset(), std::mem::take(&mut events)).await;
            }
        }
        // Lines without events need no record of their own.
        if !events.is_empty() {
            self.tell(self.splitter.offset(), events).await;
        }
    }

    /// The output is at its end: the last line may have none, and its position is told in any case.
    pub(super) async fn finish(&mut self) {
        let mut events = Vec::new();
        if let Some(line) = self.splitter.last_line() {
            self.meaning.add(line, &mut events);
        }
        if !events.is_empty() || self.splitter.offset() > self.told {
            self.tell(self.splitter.offset(), events).await;
        }
    }

    /// The lines that meant nothing.
    pub(super) fn malformed(&self) -> Malformed {
        self.meaning.malformed.clone()
    }

    async fn tell(&mut self, offset: u64, events: Vec<AgentEvent>) {
        // A line end that was cut when it was first read is longer now; what was known is still no news.
        let offset = if self.told < self.known { offset.min(self.known) } else { offset };
        // When nobody takes them any more, there is nothing to tell.
        if self.records.send(Record { offset, events }).await.is_ok() {
            self.told = offset;
        }
    }
}

/// What an output means that was read in these pieces: a record for each line that says something, and one at the end.
pub fn decode<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    max_line_bytes: usize,
    parser: LineParser,
) -> Vec<Record> {
    let mut splitter = Splitter::new(max_line_bytes);
    let mut meaning = Meaning { parser, first: true, malformed: Malformed::default() };
    let (mut records, mut events) = (Vec::new(), Vec::new());
    for mut piece in pieces {
        while let Some(line) = splitter.next_line(&mut piece) {
            meaning.add(line, &mut events);
            if !events.is_empty() {
                records.push(Record { offset: splitter.offset(), events: std::mem::take(&mut events) });
            }
        }
    }
    if let Some(line) = splitter.last_line() {
        meaning.add(line, &mut events);
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
    fn add(&mut self, line: Line<'_>, events: &mut Vec<AgentEvent>) {
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
        if let Some(meant) = (self.parser)(text) {
            return events.extend(meant);
        }
        let mut is_understood = true;
        let noise = take_objects(text, |object| match (self.parser)(object) {
            Some(meant) => events.extend(meant),
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

    /// The records of an output that is read in pieces of a size, as somebody takes them who knew it up to a position.
    fn records(output: &[u8], piece: usize, known: u64) -> Vec<Record> {
        let (sender, mut receiver) = mpsc::channel(1000);
        let parser: LineParser = Box::new(|line| Some(vec![AgentEvent::Text(line.to_owned())]));
        let mut reading = Output::new(100, parser, sender, known);
        for piece in output.chunks(piece) {
            reading.push(piece).now_or_never().unwrap();
        }
        reading.finish().now_or_never().unwrap();
        drop(reading);
        std::iter::from_fn(|| receiver.try_recv().ok()).collect()
    }

    fn said(records: &[Record]) -> Vec<AgentEvent> {
        records.iter().flat_map(|record| record.events.clone()).collect()
    }

    proptest! {
        /// However it was cut when it was read first, and is cut now.
        #[test]
        fn what_is_read_again_is_told_apart_from_news(
            output in "([ab]{0,2}(\n|\r|\r\n)){0,9}[ab]{0,2}",
            (first, second) in (1..4_usize, 1..4_usize),
            stop in any::<prop::sample::Index>(),
        ) {
            let whole = records(output.as_bytes(), first, 0);
            prop_assume!(!whole.is_empty());
            let (before, after) = whole.split_at(stop.index(whole.len()) + 1);
            let known = before.last().map_or(0, |record| record.offset);
            let again = records(output.as_bytes(), second, known);
            prop_assert!(again.iter().any(|record| record.offset == known), "{again:?}");
            let (old, news): (Vec<_>, Vec<_>) = again.into_iter().partition(|record| record.offset <= known);
            prop_assert_eq!(said(&old), said(before));
            prop_assert_eq!(said(&news), said(after));
        }
    }
}
