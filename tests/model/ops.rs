//! The operations and their answers. Every operation is legal in every state.

use std::collections::{BTreeMap, BTreeSet};

use mainstay::chunk::{Chunk, FinishReason};
use mainstay::event::Seq;
use mainstay::lease::{Lease, RunKey, WorkerKey};
use mainstay::run::{Cause, Status, WhenBusy};
use mainstay::store::run::Purpose;
use mainstay::workspace::WhenFull;

pub const WORKSPACES: [&str; 2] = ["red", "blue"];
pub const AGENTS: [&str; 2] = ["one", "two"];

/// The agent that is keyed by slot.
pub const SLOT_BOUND_AGENT: usize = 1;
pub const SESSIONS: usize = 5;
pub const TTL_MS: i64 = 60_000;
pub const LEASE_MS: i64 = 30_000;
pub const START_MS: i64 = 1_700_000_000_000;

/// The number of lines that an agent says.
pub const SCRIPT_LINES: i64 = 12;

#[derive(Debug, Clone)]
pub enum Op {
    Enqueue(Enqueue),
    Claim(Claim),
    Append(Append),
    Settle(Settle),
    Renew {
        worker: usize,
        leases: Vec<Lease>,
    },
    Cancel {
        run: RunKey,
    },
    PutBack {
        lease: Lease,
    },
    TakeOver {
        worker: usize,
        dead: Vec<usize>,
        ran_out: Vec<Seen>,
        own: Vec<RunKey>,
        limit: usize,
    },
    ExpireIdle {
        limit: usize,
    },
    Purge {
        age: i64,
        limit: usize,
    },
    Close {
        session: usize,
        cancel: bool,
    },
    SyncSlots {
        workspace: usize,
        slots: u32,
        when_full: WhenFull,
    },
    Update {
        session: usize,
        ttl: i64,
    },
    Park {
        run: RunKey,
        until: i64,
    },
    Answer {
        permission: i64,
        approved: bool,
    },
    ExpireQuestions {
        run: RunKey,
    },
    Tick(i64),
    Reopen {
        close: bool,
    },
    Register {
        worker: usize,
    },
    Deregister {
        worker: usize,
    },
    GiveBack {
        lease: Lease,
    },
    RemoveWorkers {
        workers: Vec<usize>,
    },
    /// Handed to the writer at the same time, so that it commits them together.
    Together(Vec<Op>),
}

#[derive(Debug, Clone)]
pub struct Enqueue {
    pub session: usize,
    pub workspace: usize,
    pub agent: usize,
    pub named: bool,
    pub message: usize,
    pub text: u8,
    pub purpose: Purpose,
    pub when_busy: WhenBusy,
    pub when_full: WhenFull,
    pub priority: i64,
    pub close_when_idle: bool,
    pub goes_next: bool,
}

impl Enqueue {
    pub fn text(&self) -> String {
        format!("text {}", self.text)
    }
}

#[derive(Debug, Clone)]
pub struct Claim {
    pub worker: usize,
    pub limit: i64,
    /// The limit of runs of each agent; none for an agent that the worker does not know.
    pub places: [Option<u32>; 2],
    pub session: Option<i64>,
}

/// A lease as a failure detector saw it, perhaps some time ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub lease: Lease,
    pub expires_at: i64,
}

/// The next lines of the agent's script, from where the holder of the lease is.
#[derive(Debug, Clone)]
pub struct Append {
    pub lease: Lease,
    /// At most this many; no more than the script has left.
    pub count: usize,
    pub bytes: usize,
    pub said: bool,
    pub parts: Option<u8>,
    /// Its question, if it says anything.
    pub asks: Option<Ask>,
    /// Not JSON: this write must fail, and no other.
    pub broken: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct Ask {
    pub request: u8,
    pub by_policy: bool,
}

impl Append {
    pub fn kind(&self) -> &'static str {
        if self.said { "text-delta" } else { "data-status" }
    }
}

#[derive(Debug, Clone)]
pub struct Settle {
    pub lease: Lease,
    pub cause: Cause,
    pub parts: Option<u8>,
}

impl Settle {
    pub fn chunks(&self) -> Vec<Chunk> {
        let finish = Chunk::Finish { finish_reason: FinishReason::Other, message_metadata: None };
        match self.cause.status() {
            Status::Completed => vec![finish],
            Status::Failed => vec![Chunk::Error { error_text: "failed".into() }, finish],
            _ => vec![Chunk::Abort, finish],
        }
    }

    /// The types of the stored events: the outcome comes before an error.
    pub fn kinds(&self) -> &'static [&'static str] {
        match self.cause.status() {
            Status::Completed => &["finish"],
            Status::Failed => &["message-metadata", "error", "finish"],
            _ => &["abort", "finish"],
        }
    }
}

/// A run that was taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    pub lease: Lease,
    pub worker_dead: bool,
    pub said: bool,
    pub cancel_requested: bool,
    /// Where in the agent's script the new holder continues.
    pub source_offset: i64,
}

/// The answer to an operation, as far as it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Done,
    Enqueued {
        run: RunKey,
        created: bool,
    },
    Refused(&'static str),
    Claimed(BTreeMap<RunKey, (i64, Option<String>)>),
    LastSeq(Seq),
    LeaseLost,
    Leases(BTreeSet<(RunKey, i64)>),
    Cancelled {
        status: Status,
        was_settled: bool,
    },
    Orphans(Vec<Taken>),
    Closed(&'static str),
    Worker(WorkerKey),
    Count(u64),
    Is(bool),
    Decided {
        state: &'static str,
        is_first: bool,
    },
    /// No such run, session or question.
    Unknown,
    /// The write failed and nothing was stored.
    Failed,
    All(Vec<Answer>),
}

impl Op {
    pub fn leased_run(&self) -> Option<RunKey> {
        match self {
            Self::Append(append) => Some(append.lease.run),
            Self::Settle(settle) => Some(settle.lease.run),
            _ => None,
        }
    }
}
