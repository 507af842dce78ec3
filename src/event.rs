//! An event: one chunk in a session's log. Append-only, numbered 1, 2, 3 … without gaps.

use serde::Serialize;
use serde_json::value::RawValue;

use crate::clock::Timestamp;
use crate::id::RunId;

/// The number of an event in its session's log, from 1; used as the cursor everywhere. 0 means "before the first".
pub type Seq = i64;

/// A committed event.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// Its number in the session's log.
    pub seq: Seq,
    /// When it was committed.
    pub at: Timestamp,
    /// The run that it belongs to.
    pub run_id: RunId,
    /// The AI SDK UI message chunk, byte for byte as stored.
    pub event: Box<RawValue>,
}
