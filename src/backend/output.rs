//! What an agent writes to stdout: lines in, records out.
//!
//! Always: a line that means nothing is counted and reading goes on; memory is bounded by the longest line allowed; an
//! agent that is faster than its reader waits in its own `write`.

use tokio::process::ChildStdout;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::lines::{Line, Splitter};
use super::pipe::Pipe;
use super::process::{CLOSING, Stop};
use super::{AgentEvent, LineParser, Record};

/// A read takes all that a pipe holds by default.
const READ_BYTES: usize = 64 * 1024;

/// Lines that came in one read go out as one record, so that a fast agent does not cost a wake-up per token; cut here, so
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

/// Reads a stdout to its end and sends what it means; gives up when nobody wants it any more.
pub(super) async fn read(
    mut pipe: Pipe<ChildStdout>,
    max_line_bytes: usize,
    parser: LineParser,
    records: mpsc::Sender<Record>,
    stop: Stop,
    over: CancellationToken,
) -> Malformed {
    let mut splitter = Splitter::new(max_line_bytes);
    let mut meaning = Meaning { parser, first: true, malformed: Malformed::default() };
    let mut sender = Sender { records, stop, over, sent: 0 };
    let mut buffer = vec![0; READ_BYTES];
    'output: loop {
        let read = tokio::select! {
            read = pipe.read(&mut buffer) => read,
            () = sender.records.closed() => 0,
        };
        let mut rest = &buffer[..read];
        let mut events = Vec::new();
        let mut lines = 0;
        while let Some(line) = splitter.next_line(&mut rest) {
            meaning.add(line, &mut events);
            lines += 1;
            if lines == LINES_PER_RECORD {
                lines = 0;
                if sender.send(splitter.offset(), std::mem::take(&mut events)).await.is_err() {
                    break 'output;
                }
            }
        }
        if read == 0
            && let Some(line) = splitter.last_line()
        {
            meaning.add(line, &mut events);
        }
        // Lines without events need no record of their own, but at the end the position is told in any case.
        let position_is_due = read == 0 && splitter.offset() > sender.sent;
        if (!events.is_empty() || position_is_due) && sender.send(splitter.offset(), events).await.is_err() {
            break;
        }
        if read == 0 {
            break;
        }
    }
    // Until then the pipe stays open: an agent that is being killed must not be seen to die of a broken pipe.
    sender.over.cancelled().await;
    meaning.malformed
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
        match (self.parser)(text) {
            Some(meant) => events.extend(meant),
            None => self.count_malformed(text),
        }
    }

    fn count_malformed(&mut self, text: &str) {
        self.malformed.lines += 1;
        self.malformed.sample.get_or_insert_with(|| text.chars().take(SAMPLE_CHARS).collect());
    }
}

/// Nobody takes the records any more.
struct GaveUp;

/// Sends records, as long as somebody may want them.
struct Sender {
    records: mpsc::Sender<Record>,
    stop: Stop,
    over: CancellationToken,
    /// The position that was told last.
    sent: u64,
}

impl Sender {
    async fn send(&mut self, offset: u64, events: Vec<AgentEvent>) -> Result<(), GaveUp> {
        let record = Record { offset, events };
        tokio::select! {
            biased;
            sent = self.records.send(record) => {
                self.sent = offset;
                sent.map_err(|_| GaveUp)
            }
            () = self.stop.kill.cancelled() => Err(GaveUp),
            () = self.nobody_reads() => Err(GaveUp),
        }
    }

    /// The agent was cancelled and is gone, and its last words were not taken for a while: whoever cancelled it waits
    /// for its end alone.
    async fn nobody_reads(&self) {
        self.stop.cancel.cancelled().await;
        self.over.cancelled().await;
        tokio::time::sleep(CLOSING).await;
    }
}
