//! The reference: what the store must answer and contain, in plain Rust. It keeps what happened and derives the rest (which
//! run is ready, which session is busy, which place is idle), so that it states once and plainly what the triggers do.

mod permissions;
mod places;
mod queue;
mod runs;

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use mainstay::event::Seq;
use mainstay::lease::{Lease, RunKey, WorkerKey};
use mainstay::run::Status;
use mainstay::workspace::WhenFull;

use crate::ops::{Answer, Op};

pub use permissions::{OPEN_MS, Permission};

#[derive(Debug, Clone)]
pub struct Session {
    pub name: usize,
    pub workspace: usize,
    pub agent: usize,
    pub ttl: i64,
    pub log: Vec<(RunKey, &'static str)>,
    pub waiting_since: Option<i64>,
    /// While it waits: it may take the slot of an idle session.
    pub reclaims: bool,
    pub closing: bool,
}

#[derive(Debug, Clone)]
pub struct Run {
    pub session: usize,
    pub message: usize,
    pub status: Status,
    pub priority: i64,
    /// It goes next: the highest first.
    pub front: i64,
    pub not_before: Option<i64>,
    pub token: i64,
    pub lease: Option<(WorkerKey, i64)>,
    pub slot: Option<i64>,
    pub span: Option<(Seq, Seq)>,
    pub said: bool,
    /// The claim that started the agent, and how many of its lines are stored.
    pub agent: i64,
    pub source_offset: i64,
    /// All stored lines, also those of agents that were given up.
    pub lines: Vec<String>,
    pub cancel_requested_at: Option<i64>,
    pub settled_at: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageName {
    Sent(usize),
    AnswerOf(RunKey),
}

#[derive(Debug, Clone)]
pub struct Message {
    pub session: usize,
    pub name: MessageName,
    pub text: String,
    pub position: Option<Seq>,
    pub hidden: bool,
}

#[derive(Debug, Clone)]
pub struct Place {
    pub session: usize,
    pub slot: Option<i64>,
    pub ttl: i64,
    pub last_active_at: i64,
    pub ended: Option<(&'static str, i64)>,
}

#[derive(Debug, Clone)]
pub struct Slot {
    pub workspace: usize,
    pub number: u32,
    pub enabled: bool,
}

/// Rows are found by key, which is the position in the list, from 1. Places have no key here, as their rows may be purged.
#[derive(Debug, Clone)]
pub struct Model {
    pub now: i64,
    pub sessions: Vec<Session>,
    pub runs: Vec<Run>,
    pub messages: Vec<Message>,
    pub places: Vec<Place>,
    pub permissions: Vec<Permission>,
    pub slots: Vec<Slot>,
    pub workers: BTreeSet<WorkerKey>,
    pub registered: WorkerKey,
    /// The position in the agent's script of each lease's holder, whether the lease is valid or lost.
    pub cursors: HashMap<Lease, i64>,
    /// The keys that the two workers take for their own; the rows may be gone.
    pub own_keys: [WorkerKey; 2],
    /// The answer that the newest operation must get.
    pub answer: Answer,
}

pub fn index(key: i64) -> usize {
    usize::try_from(key).unwrap_or(0).wrapping_sub(1)
}

pub fn key(index: usize) -> i64 {
    i64::try_from(index).unwrap() + 1
}

impl Model {
    pub fn new(now: i64) -> Self {
        let mut model = Self {
            now,
            sessions: Vec::new(),
            runs: Vec::new(),
            messages: Vec::new(),
            places: Vec::new(),
            permissions: Vec::new(),
            slots: Vec::new(),
            workers: BTreeSet::from([1, 2]),
            registered: 2,
            cursors: HashMap::new(),
            own_keys: [1, 2],
            answer: Answer::Done,
        };
        model.sync_slots(0, 2, WhenFull::Share);
        model.sync_slots(1, 1, WhenFull::Share);
        model
    }

    pub fn runs_of(&self, session: usize) -> impl Iterator<Item = (RunKey, &Run)> {
        self.runs.iter().enumerate().filter(move |(_, run)| run.session == session).map(|(i, run)| (key(i), run))
    }

    fn running_in(&self, session: usize) -> Option<RunKey> {
        self.runs_of(session).find(|(_, run)| run.status == Status::Running).map(|(key, _)| key)
    }

    pub fn is_busy(&self, session: usize) -> bool {
        self.runs_of(session).any(|(_, run)| !run.status.is_settled())
    }

    pub fn live_place(&self, session: usize) -> Option<usize> {
        self.places.iter().position(|place| place.session == session && place.ended.is_none())
    }

    /// The head of a session's queue: a run that has begun first, then what goes next, then by priority, then by arrival.
    fn head(&self, session: usize) -> Option<RunKey> {
        let queued = self.runs_of(session).filter(|(_, run)| run.status == Status::Queued);
        queued
            .min_by_key(|(key, run)| (run.span.is_none(), Reverse((run.front, run.priority)), *key))
            .map(|(key, _)| key)
    }

    pub fn is_ready(&self, run: RunKey) -> bool {
        let session = self.runs[index(run)].session;
        self.running_in(session).is_none() && self.live_place(session).is_some() && self.head(session) == Some(run)
    }

    pub fn apply(&mut self, op: &Op) -> Answer {
        match op {
            Op::Enqueue(enqueue) => self.enqueue(enqueue),
            Op::Claim(claim) => self.claim(claim),
            Op::Append(append) => self.append(append),
            Op::Settle(settle) => self.settle(settle),
            Op::Renew { worker, leases } => self.renew(self.own_keys[*worker], leases),
            Op::Cancel { run } => self.cancel(*run),
            Op::PutBack { lease } => self.put_back(*lease),
            Op::GiveBack { lease } => self.give_back(*lease),
            Op::TakeOver { worker, dead, ran_out, own, limit } => self.take_over(*worker, dead, ran_out, own, *limit),
            Op::ExpireIdle { limit } => self.expire_idle(*limit),
            Op::Purge { age, limit } => self.purge(self.now - age, *limit),
            Op::Close { session, cancel } => self.close(*session, *cancel),
            Op::SyncSlots { workspace, slots, when_full } => self.sync_slots(*workspace, *slots, *when_full),
            Op::Update { session, ttl } => self.update(*session, *ttl),
            Op::Park { run, until } => self.park(*run, *until),
            Op::Answer { permission, approved } => self.answer(*permission, *approved),
            Op::ExpireQuestions { run } => self.expire_questions(*run),
            Op::Tick(by) => {
                self.now += by;
                Answer::Done
            }
            Op::Reopen { .. } => Answer::Done,
            Op::Register { worker } => {
                self.registered += 1;
                self.own_keys[*worker] = self.registered;
                self.workers.insert(self.registered);
                Answer::Worker(self.registered)
            }
            Op::Deregister { worker } => {
                let worker = self.own_keys[*worker];
                for (_, end) in self.runs.iter_mut().filter_map(|run| run.lease.as_mut()).filter(|l| l.0 == worker) {
                    *end = 0;
                }
                self.remove_worker(worker);
                Answer::Done
            }
            Op::RemoveWorkers { workers } => {
                Answer::Count(workers.iter().map(|worker| self.remove_worker(self.own_keys[*worker])).sum())
            }
            Op::Together(ops) => self.together(ops),
        }
    }

    /// Writes that wait at the same time are committed together: appends first, then settles, then the rest. Two writes to the
    /// same run are not, so that they keep their order.
    fn together(&mut self, ops: &[Op]) -> Answer {
        let (known, known_questions) = (key(self.runs.len()), key(self.permissions.len()));
        let mut answers = vec![Answer::Done; ops.len()];
        let mut rest: Vec<_> = ops.iter().enumerate().collect();
        while !rest.is_empty() {
            let mut named = BTreeSet::new();
            let fits = |(_, op): &&(usize, &Op)| op.leased_run().is_none_or(|run| named.insert(run));
            let taken = rest.iter().take_while(fits).count();
            let mut batch: Vec<_> = rest.drain(..taken).collect();
            batch.sort_by_key(|(_, op)| match op {
                Op::Append(_) => 0,
                Op::Settle(_) => 1,
                _ => 2,
            });
            for (i, op) in batch {
                answers[i] = match op {
                    // Its id did not exist yet when the operation was handed in.
                    Op::Cancel { run } if *run >= known => Answer::Unknown,
                    Op::Answer { permission, .. } if *permission >= known_questions => Answer::Unknown,
                    op => self.apply(op),
                };
            }
        }
        Answer::All(answers)
    }
}
