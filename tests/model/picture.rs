//! The whole content of the file, as rows.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, PartialEq)]
pub struct Session {
    pub key: i64,
    pub workspace: String,
    pub last_seq: i64,
    pub waiting_since: Option<i64>,
    pub closing: bool,
    pub ttl: i64,
    pub slot_bound: bool,
    pub reclaims: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub key: i64,
    pub session: i64,
    pub message: i64,
    pub workspace: String,
    pub agent: String,
    pub slot: Option<i64>,
    pub status: String,
    pub priority: i64,
    pub front: i64,
    pub not_before: Option<i64>,
    pub ready: bool,
    pub cancel_requested_at: Option<i64>,
    pub settled_at: Option<i64>,
    pub worker: Option<i64>,
    pub token: i64,
    pub lease_expires_at: Option<i64>,
    pub first_seq: Option<i64>,
    pub last_seq: Option<i64>,
    pub said: bool,
    pub source_offset: i64,
}

impl Run {
    pub fn is_unsettled(&self) -> bool {
        self.settled_at.is_none()
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    pub session: i64,
    pub slot: Option<i64>,
    pub state: String,
    pub ttl: i64,
    pub last_active_at: i64,
    pub ended_at: Option<i64>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub session: i64,
    pub id: String,
    pub run: Option<i64>,
    pub position: Option<i64>,
    pub hidden: bool,
    pub text: String,
}

/// Run, request, state, when it expires, when it was decided.
pub type Permission = (i64, String, String, Option<i64>, Option<i64>);

/// The whole content of the file, in the order of keys.
#[derive(Debug, Default)]
pub struct Picture {
    pub sessions: Vec<Session>,
    pub runs: Vec<Run>,
    pub places: Vec<Place>,
    pub messages: Vec<Message>,
    pub permissions: Vec<Permission>,
    /// Key, workspace, enabled.
    pub slots: Vec<(i64, String, bool)>,
    pub workers: BTreeSet<i64>,
    /// Session, seq, run, type; by session and seq.
    pub events: Vec<(i64, i64, i64, String)>,
    /// Stored lines of the agents' scripts, by run: `agent:line`.
    pub lines: BTreeMap<i64, Vec<String>>,
    /// Settled runs with all columns, and their span.
    pub settled: BTreeMap<i64, SettledRow>,
}

pub type SettledRow = (Vec<rusqlite::types::Value>, Option<(i64, i64)>);
