//! The readers: each follows sessions and runs in turn, from the beginning, from anywhere or from its last position, and
//! reconnects with its cursor to any engine when the connection breaks.
//!
//! Always: within a connection nothing is skipped, nothing comes twice, and an event that was read once never changes.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::client::{Frame, follow, get};
use super::fleet::Addresses;
use super::journal::{Count, Journal};
use mainstay::event::Seq;

/// Pause before a reader tries another engine.
const RETRY_INTERVAL: Duration = Duration::from_millis(25);

/// What was read of each session: a digest of the event at every position in the log.
pub(super) type EventsRead = BTreeMap<String, BTreeMap<Seq, u64>>;

/// The digest of an event: only that is kept, because megabytes are read.
pub(super) fn digest(event: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    event.hash(&mut hasher);
    hasher.finish()
}

pub(super) struct Reader {
    pub(super) sessions: Vec<String>,
    pub(super) rng: fastrand::Rng,
    pub(super) addresses: Addresses,
    pub(super) journal: Arc<Journal>,
}

/// What is followed.
#[derive(Debug, Clone)]
struct Target {
    session: String,
    path: String,
    is_run: bool,
}

impl Reader {
    /// Reads until it is asked to stop.
    pub(super) async fn run(mut self, stop: CancellationToken) -> EventsRead {
        let mut read = EventsRead::new();
        while !stop.is_cancelled() {
            match self.choose().await {
                Some(target) => self.attend(&target, read.entry(target.session.clone()).or_default(), &stop).await,
                None => sleep(RETRY_INTERVAL).await,
            }
        }
        read
    }

    /// A session, or one of its newest runs.
    async fn choose(&mut self) -> Option<Target> {
        let session = self.rng.choice(&self.sessions)?.clone();
        let runs = format!("/v1/sessions/{session}/runs");
        if self.rng.bool() {
            return Some(Target { path: format!("/v1/sessions/{session}/events"), session, is_run: false });
        }
        let answer = get(&self.addresses.any(&mut self.rng)?, &format!("{runs}?limit=5")).await.ok()?;
        let run = self.rng.choice(answer.items())?.get("id")?.as_str()?.to_owned();
        Some(Target { path: format!("/v1/runs/{run}/events"), session, is_run: true })
    }

    /// Follows a target for a while, through as many connections as it takes.
    async fn attend(&mut self, target: &Target, read: &mut BTreeMap<Seq, u64>, stop: &CancellationToken) {
        let until = Instant::now() + Duration::from_millis(self.rng.u64(200..3000));
        let last = read.last_key_value().map_or(0, |(seq, _)| *seq);
        let mut cursor = match self.rng.u8(..8) {
            _ if target.is_run => 0,
            0 => 0,
            1..3 => self.rng.i64(0..=last),
            _ => last,
        };
        while Instant::now() < until && !stop.is_cancelled() {
            let Some(to) = self.addresses.any(&mut self.rng) else {
                sleep(RETRY_INTERVAL).await;
                continue;
            };
            let mut connection = Connection::new(target, &self.journal, cursor, read);
            let followed = async { follow(&to, &target.path, cursor, |frame| connection.take(frame)).await };
            let followed = tokio::select! {
                followed = timeout_at(until, followed) => followed,
                () = stop.cancelled() => return,
            };
            cursor = connection.cursor;
            let is_over = connection.is_over;
            self.journal.count(Count::StreamsOpened);
            match followed {
                Err(_) => return,
                Ok(Ok((200, true))) if !is_over => {
                    self.violation("a stream never ends cleanly before its run", target, format!("behind {cursor}"));
                }
                Ok(Ok((200, _))) => return,
                // Nothing was sent to the session so far; or the engine is stopping.
                Ok(Ok((404 | 503, _))) => sleep(RETRY_INTERVAL).await,
                Ok(Ok((status, _))) => {
                    self.violation("a cursor that was given out is good", target, format!("{cursor}: {status}"));
                    return;
                }
                Ok(Err(_)) => sleep(RETRY_INTERVAL).await,
            }
        }
    }

    fn violation(&self, promise: &'static str, target: &Target, detail: String) {
        self.journal.violation(promise, format!("{}: {detail}", target.path));
    }
}

/// The state of one connection.
struct Connection<'a> {
    target: &'a Target,
    journal: &'a Journal,
    read: &'a mut BTreeMap<Seq, u64>,
    cursor: Seq,
    /// Nothing was read yet. The stream of a run may begin anywhere behind the cursor; everything else follows directly.
    first: bool,
    finished: bool,
    /// `[DONE]` was read.
    is_over: bool,
}

impl<'a> Connection<'a> {
    fn new(target: &'a Target, journal: &'a Journal, cursor: Seq, read: &'a mut BTreeMap<Seq, u64>) -> Self {
        Self { target, journal, read, cursor, first: true, finished: false, is_over: false }
    }

    /// Checks a frame. Returns whether more is expected.
    fn take(&mut self, frame: Frame) -> bool {
        let kind = serde_json::from_str::<Value>(&frame.data).ok();
        let is_end = kind.is_some_and(|chunk| chunk["type"] == "finish");
        let Some(seq) = frame.seq else { return self.take_unplaced(&frame.data, is_end) };
        self.journal.count(Count::EventsRead);
        let follows = seq == self.cursor + 1 || (self.target.is_run && self.first && seq > self.cursor);
        if !follows {
            self.violation("a connection skips nothing and repeats nothing", &format!("{seq} behind {}", self.cursor));
        }
        let digest = digest(&frame.data);
        if *self.read.entry(seq).or_insert(digest) != digest {
            self.violation("what was read once does not change", &format!("{seq}"));
        }
        (self.cursor, self.first, self.finished) = (seq, false, is_end);
        true
    }

    /// `[DONE]`, or an event of a run that was cancelled in the queue: such events are sent before they have a seq.
    fn take_unplaced(&mut self, data: &str, is_end: bool) -> bool {
        self.is_over = data == "[DONE]";
        // If the cursor was at the end already, only `[DONE]` follows.
        let well_placed = if self.is_over { self.finished || self.first } else { self.first };
        if !self.target.is_run || !well_placed {
            self.violation("the end of a stream is behind the end of its run", data);
        }
        self.finished |= is_end;
        !self.is_over
    }

    fn violation(&self, promise: &'static str, detail: &str) {
        self.journal.violation(promise, format!("{}: {detail}", self.target.path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The promises that a connection with these events behind a cursor is found to break.
    fn broken(is_run: bool, cursor: Seq, frames: &[(Option<Seq>, &str)]) -> Vec<&'static str> {
        let target = Target { session: "s".to_owned(), path: "/".to_owned(), is_run };
        let (journal, mut read) = (Journal::default(), BTreeMap::new());
        let mut connection = Connection::new(&target, &journal, cursor, &mut read);
        for (seq, data) in frames {
            connection.take(Frame { seq: *seq, data: (*data).to_owned() });
        }
        let report = journal.report(0, Duration::ZERO, Default::default());
        report.violations.iter().map(|violation| violation.promise).collect()
    }

    #[test]
    fn a_gap_a_repeat_a_change_and_an_early_end_are_noticed() {
        const FINISH: &str = r#"{"type":"finish","finishReason":"stop"}"#;
        const NOTHING: [&str; 0] = [];
        let order = ["a connection skips nothing and repeats nothing"];
        let end = ["the end of a stream is behind the end of its run"];
        assert_eq!(broken(false, 3, &[(Some(4), "a"), (Some(5), "b")]), NOTHING);
        assert_eq!(broken(false, 3, &[(Some(5), "b")]), order, "the first event follows the cursor");
        assert_eq!(broken(false, 0, &[(Some(1), "a"), (Some(3), "c")]), order);
        assert_eq!(broken(false, 0, &[(Some(1), "a"), (Some(1), "a")]), order);
        let changed = broken(false, 0, &[(Some(1), "a"), (Some(1), "b")]);
        assert_eq!(changed, [order[0], "what was read once does not change"]);
        assert_eq!(broken(true, 0, &[(Some(5), "a"), (Some(6), FINISH), (None, "[DONE]")]), NOTHING);
        assert_eq!(broken(true, 6, &[(None, "[DONE]")]), NOTHING, "the cursor was at the end");
        assert_eq!(broken(true, 0, &[(None, "a"), (None, FINISH), (None, "[DONE]")]), NOTHING, "it never began");
        assert_eq!(broken(true, 0, &[(Some(1), "a"), (None, "b")]), end, "what has begun has places");
        assert_eq!(broken(true, 0, &[(Some(5), "a"), (None, "[DONE]")]), end);
        assert_eq!(broken(false, 0, &[(Some(1), FINISH), (None, "[DONE]")]), end, "a session has no end");
    }
}
