//! An event: one chunk at its place in a session's log. Append-only, counted 1, 2, 3 … without gaps.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::clock::Timestamp;
use crate::id::RunId;

/// The place of an event in its session's log, from 1: the cursor everywhere. 0 is "before the first".
pub type Seq = i64;

/// One event as it was committed.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// Its place in the session's log.
    pub seq: Seq,
    /// When it was committed.
    pub at: Timestamp,
    /// The run that it belongs to.
    pub run_id: RunId,
    /// The AI SDK UI message chunk, byte for byte as stored.
    pub event: Box<RawValue>,
}
