//! A run under a lease, its output, and every way to its end.

use std::collections::{BTreeSet, HashSet};

use mainstay::event::Seq;
use mainstay::lease::{Lease, RunKey, WorkerKey};
use mainstay::run::{Cause, Status};

use super::{Message, MessageName, Model, Run, index, key};
use crate::ops::{Answer, Append, LEASE_MS, SCRIPT_LINES, Seen, Settle, Taken};

impl Model {
    pub(super) fn begin_span(&mut self, run: RunKey) {
        let Run { session, message, .. } = self.runs[index(run)];
        let seq = key(self.sessions[session].log.len());
        self.runs[index(run)].span = Some((seq, seq));
        self.messages[message].position = Some(seq);
        self.sessions[session].log.push((run, "start"));
    }

    pub(super) fn say(&mut self, run: RunKey, kinds: &[&'static str]) -> Seq {
        let row = &mut self.runs[index(run)];
        let log = &mut self.sessions[row.session].log;
        log.extend(kinds.iter().map(|kind| (run, *kind)));
        let last = key(log.len()) - 1;
        row.span = row.span.map(|(first, old)| (first, if kinds.is_empty() { old } else { last }));
        row.span.unwrap().1
    }

    pub(super) fn holds(&self, lease: Lease) -> bool {
        let run = self.runs.get(index(lease.run));
        run.is_some_and(|run| run.status == Status::Running && run.token == lease.token)
    }

    pub(super) fn append(&mut self, append: &Append) -> Answer {
        if append.broken {
            return Answer::Failed;
        }
        if !self.holds(append.lease) {
            return Answer::LeaseLost;
        }
        let run = append.lease.run;
        let row = &mut self.runs[index(run)];
        let from = row.source_offset;
        let to = (from + i64::try_from(append.count).unwrap()).min(SCRIPT_LINES);
        let lines: Vec<_> = (from..to).map(|line| format!("{}:{line}", row.agent)).collect();
        row.said |= append.said && !lines.is_empty();
        row.source_offset = to;
        let kinds = vec![append.kind(); lines.len()];
        row.lines.extend(lines);
        self.cursors.insert(append.lease, to);
        let last = self.say(run, &kinds);
        self.store_answer(run, append.parts);
        if let Some(ask) = append.asks.filter(|_| append.said && !kinds.is_empty()) {
            self.ask(run, ask);
        }
        Answer::LastSeq(last)
    }

    pub(super) fn store_answer(&mut self, run: RunKey, text: Option<u8>) {
        let Some(text) = text.map(|text| format!("answer {text}")) else { return };
        let Run { session, span, message: answered, .. } = self.runs[index(run)];
        let name = MessageName::AnswerOf(run);
        if let Some(message) = self.messages.iter_mut().find(|message| message.name == name) {
            message.text = text;
            return;
        }
        // The answer to a message that was replaced meanwhile is stored, not shown.
        let newer = self.runs_of(session).any(|(key, other)| key > run && other.message == answered);
        let hidden = newer || self.messages[answered].hidden;
        self.messages.push(Message { session, name, text, position: span.map(|(first, _)| first), hidden });
    }

    pub(super) fn settle(&mut self, settle: &Settle) -> Answer {
        let run = settle.lease.run;
        if !self.holds(settle.lease)
            || (self.runs[index(run)].cancel_requested_at.is_some() && settle.cause != Cause::Cancelled)
        {
            return Answer::LeaseLost;
        }
        let last = self.say(run, settle.kinds());
        self.store_answer(run, settle.parts);
        self.end(run, settle.cause.status());
        self.write_spans(self.runs[index(run)].session);
        Answer::LastSeq(last)
    }

    /// The consequences of a run's end.
    pub(super) fn end(&mut self, run: RunKey, status: Status) {
        let row = &mut self.runs[index(run)];
        (row.status, row.settled_at, row.lease) = (status, Some(self.now), None);
        let session = row.session;
        self.end_questions(run);
        if !self.runs_of(session).any(|(_, run)| run.status == Status::Queued) {
            self.sessions[session].waiting_since = None;
        }
        if !self.is_busy(session) {
            self.touch(session);
            match self.live_place(session) {
                Some(place) if self.sessions[session].closing => self.end_place(place, "deleted"),
                Some(place) => self.give_up_if_wanted(place),
                None => {}
            }
        }
    }

    /// The spans of runs that were cancelled in the queue, in queue order.
    pub(super) fn write_spans(&mut self, session: usize) {
        let unwritten = self.runs_of(session).filter(|(_, run)| run.status.is_settled() && run.span.is_none());
        let mut unwritten: Vec<_> = unwritten.map(|(key, run)| (run.settled_at, key)).collect();
        unwritten.sort_unstable();
        for (_, run) in unwritten {
            self.begin_span(run);
            self.say(run, &["abort", "finish"]);
        }
    }

    pub(super) fn request_cancel(&mut self, run: RunKey) {
        let Run { session, status, span, .. } = self.runs[index(run)];
        if status.is_settled() {
            return;
        }
        let now = self.now;
        self.runs[index(run)].cancel_requested_at.get_or_insert(now);
        if status == Status::Queued {
            if span.is_some() {
                self.say(run, &["abort", "finish"]);
            }
            self.end(run, Status::Cancelled);
            let in_midst_of_a_span = |run: &Run| !run.status.is_settled() && run.span.is_some();
            if !self.runs_of(session).any(|(_, run)| in_midst_of_a_span(run)) {
                self.write_spans(session);
            }
        }
    }

    pub(super) fn cancel(&mut self, run: RunKey) -> Answer {
        let Some(before) = self.runs.get(index(run)).map(|run| run.status) else { return Answer::Unknown };
        self.request_cancel(run);
        Answer::Cancelled { status: self.runs[index(run)].status, was_settled: before.is_settled() }
    }

    pub(super) fn renew(&mut self, worker: WorkerKey, leases: &[Lease]) -> Answer {
        self.workers.insert(worker);
        let end = self.now + LEASE_MS;
        let mut renewed = BTreeSet::new();
        let held: HashSet<_> = leases.iter().copied().filter(|lease| self.holds(*lease)).collect();
        for lease in held {
            let held = self.runs[index(lease.run)].lease.as_mut().filter(|held| held.0 == worker);
            if let Some(held) = held {
                held.1 = end.max(held.1 + 1);
                renewed.insert((lease.run, lease.token));
            }
        }
        Answer::Leases(renewed)
    }

    pub(super) fn put_back(&mut self, lease: Lease) -> Answer {
        let may = self.holds(lease)
            && !self.runs[index(lease.run)].said
            && self.runs[index(lease.run)].cancel_requested_at.is_none();
        if may {
            let run = &mut self.runs[index(lease.run)];
            (run.status, run.lease, run.slot, run.source_offset) = (Status::Queued, None, None, 0);
        }
        Answer::Is(may)
    }

    pub(super) fn give_back(&mut self, lease: Lease) -> Answer {
        if self.holds(lease)
            && let Some(held) = self.runs[index(lease.run)].lease.as_mut()
        {
            held.1 = 0;
        }
        Answer::Done
    }

    pub(super) fn take_over(
        &mut self,
        worker: usize,
        dead: &[usize],
        ran_out: &[Seen],
        own: &[RunKey],
        limit: usize,
    ) -> Answer {
        let dead: Vec<_> = dead.iter().map(|worker| self.own_keys[*worker]).collect();
        let (worker, now) = (self.own_keys[worker], self.now);
        let lost = |key: RunKey| {
            let run = &self.runs[index(key)];
            run.lease.is_some_and(|(worker, expires_at)| {
                let seen = Seen { lease: Lease { run: key, token: run.token }, expires_at };
                dead.contains(&worker) || ran_out.contains(&seen)
            })
        };
        let lost: Vec<_> =
            (1..=key(self.runs.len()) - 1).filter(|run| lost(*run) && !own.contains(run)).take(limit).collect();
        if !lost.is_empty() && !self.workers.contains(&worker) {
            return Answer::Failed;
        }
        let mut orphans = Vec::new();
        for key in lost {
            let run = &mut self.runs[index(key)];
            let worker_dead = run.lease.is_some_and(|(worker, _)| dead.contains(&worker));
            run.token += 1;
            run.lease = Some((worker, now + LEASE_MS));
            let lease = Lease { run: key, token: run.token };
            self.cursors.insert(lease, run.source_offset);
            let (said, cancel_requested) = (run.said, run.cancel_requested_at.is_some());
            orphans.push(Taken { lease, worker_dead, said, cancel_requested, source_offset: run.source_offset });
        }
        Answer::Orphans(orphans)
    }

    pub(super) fn remove_worker(&mut self, worker: WorkerKey) -> u64 {
        let holds = self.runs.iter().any(|run| run.lease.is_some_and(|(holder, _)| holder == worker));
        u64::from(!holds && self.workers.remove(&worker))
    }
}
