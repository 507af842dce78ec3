//! Into the queue and out of it: enqueue, claim, park.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use mainstay::lease::{Lease, RunKey};
use mainstay::run::{Status, WhenBusy};
use mainstay::store::run::Purpose;
use mainstay::workspace::WhenFull;

use super::{Message, MessageName, Model, Run, Session, Slot, index, key};
use crate::ops::{Answer, Claim, Enqueue, LEASE_MS, TTL_MS, WORKSPACES};

impl Model {
    pub(super) fn enqueue(&mut self, new: &Enqueue) -> Answer {
        let known = self.sessions.iter().position(|session| session.name == new.session);
        let goes_next = new.goes_next || new.when_busy == WhenBusy::Interrupt;
        let mut purpose = new.purpose;
        if let Some(session) = known {
            let Session { workspace, agent, .. } = self.sessions[session];
            if new.named && (workspace != new.workspace || agent != new.agent) {
                return Answer::Refused("differs");
            }
            let mut rewrites = None;
            match self.find_sent(session, new.message) {
                None => purpose = Purpose::Send,
                Some(message) => {
                    let (run, latest) = self.runs_of(session).filter(|(_, run)| run.message == message).last().unwrap();
                    let is_same = self.messages[message].text == new.text();
                    match purpose {
                        Purpose::Send if !is_same => return Answer::Refused("other parts"),
                        Purpose::Regenerate if is_same && latest.status.is_settled() => {}
                        _ if is_same => return Answer::Enqueued { run, created: false },
                        _ => {
                            purpose = Purpose::Edit;
                            rewrites = Some((message, run)).filter(|_| latest.status == Status::Queued);
                        }
                    }
                }
            }
            if new.when_busy == WhenBusy::Reject && self.is_busy(session) {
                return Answer::Refused("busy");
            }
            if new.when_full == WhenFull::Reject
                && self.live_place(session).is_none()
                && self.free_slot(Some(session), workspace).is_none()
            {
                return Answer::Refused("pool full");
            }
            if let Some((message, run)) = rewrites.filter(|_| !goes_next) {
                self.messages[message].text = new.text();
                return Answer::Enqueued { run, created: false };
            }
            if new.when_busy == WhenBusy::Interrupt
                && let Some(running) = self.running_in(session)
            {
                self.request_cancel(running);
            }
        } else if new.when_full == WhenFull::Reject && self.free_slot(None, new.workspace).is_none() {
            return Answer::Refused("pool full");
        } else {
            purpose = Purpose::Send;
        }

        let session = known.unwrap_or_else(|| {
            self.sessions.push(Session {
                name: new.session,
                workspace: new.workspace,
                agent: new.agent,
                ttl: TTL_MS,
                log: Vec::new(),
                waiting_since: None,
                reclaims: false,
                closing: false,
            });
            self.sessions.len() - 1
        });
        let fronts = self.runs_of(session).filter(|(_, run)| run.status == Status::Queued).map(|(_, run)| run.front);
        let highest = fronts.max().unwrap_or(0);
        let front = if goes_next { highest + 1 } else { 0 };
        let message = match purpose {
            Purpose::Send => {
                let (name, text) = (MessageName::Sent(new.message), new.text());
                self.messages.push(Message { session, name, text, position: None, hidden: false });
                self.messages.len() - 1
            }
            Purpose::Regenerate | Purpose::Edit => self.supersede(session, new, purpose),
        };
        if self.live_place(session).is_none() {
            self.find_place(session, new.when_full);
        }
        self.touch(session);
        self.sessions[session].closing = false;
        self.runs.push(Run {
            session,
            message,
            status: Status::Queued,
            priority: new.priority,
            front,
            not_before: None,
            token: 0,
            lease: None,
            slot: None,
            span: None,
            said: false,
            agent: 0,
            source_offset: 0,
            lines: Vec::new(),
            cancel_requested_at: None,
            settled_at: None,
        });
        let run = key(self.runs.len() - 1);
        if purpose != Purpose::Send {
            let is_replaced = |answered: usize| answered == message || self.messages[answered].hidden;
            let waiting = self.runs_of(session).filter(|(_, run)| run.status == Status::Queued);
            let replaced: Vec<_> =
                waiting.filter(|(k, r)| *k != run && is_replaced(r.message)).map(|(k, _)| k).collect();
            replaced.into_iter().for_each(|run| self.request_cancel(run));
        }
        self.sessions[session].closing = new.close_when_idle;
        Answer::Enqueued { run, created: true }
    }

    pub(super) fn find_sent(&self, session: usize, message: usize) -> Option<usize> {
        let name = MessageName::Sent(message);
        self.messages.iter().position(|message| message.session == session && message.name == name)
    }

    /// What came after a message is hidden: by its place in the log, or by its age while it waits. After a message that is itself
    /// hidden there is nothing, and after one that itself waits everything keeps waiting.
    pub(super) fn supersede(&mut self, session: usize, new: &Enqueue, purpose: Purpose) -> usize {
        let replaced = self.find_sent(session, new.message).unwrap();
        let Message { position, hidden, .. } = self.messages[replaced];
        for (i, message) in self.messages.iter_mut().enumerate().filter(|(_, message)| message.session == session) {
            message.hidden |= i != replaced
                && !hidden
                && position.is_some_and(|position| message.position.map_or(i > replaced, |at| at >= position));
        }
        let message = &mut self.messages[replaced];
        message.hidden = false;
        if purpose == Purpose::Edit {
            message.text = new.text();
        }
        replaced
    }

    pub(super) fn claim(&mut self, claim: &Claim) -> Answer {
        let running: Vec<_> = self.runs.iter().filter(|run| run.status == Status::Running).cloned().collect();
        let agent_of = |run: &Run| self.sessions[run.session].agent;
        let workspace_of = |run: &Run| self.sessions[run.session].workspace;
        let running_of = |agent: usize| running.iter().filter(|run| agent_of(run) == agent).count();
        let room = |agent: usize| {
            claim.places[agent]
                .and_then(|most| usize::try_from(most).unwrap().checked_sub(running_of(agent)))
                .unwrap_or(0)
        };
        let mut candidates: Vec<_> = (1..=key(self.runs.len()) - 1)
            .filter(|run| self.is_ready(*run))
            .map(|run| (run, &self.runs[index(run)]))
            .filter(|(_, run)| run.not_before.is_none_or(|at| at <= self.now))
            .filter(|(_, run)| claim.session.is_none_or(|session| key(run.session) == session))
            .filter(|(_, run)| room(agent_of(run)) > 0)
            .map(|(key, run)| (key, run, self.places[self.live_place(run.session).unwrap()].slot))
            .filter(|(_, run, slot)| {
                let same =
                    |other: &&Run| other.slot == *slot && (slot.is_some() || workspace_of(other) == workspace_of(run));
                !running.iter().any(|other| same(&other))
            })
            .collect();
        candidates.sort_by_key(|(key, run, _)| (Reverse(run.priority), *key));
        candidates.truncate(usize::try_from(claim.limit).unwrap());
        // The best run of each place, and of each agent as many as it has room for.
        let (mut places, mut agents) = (BTreeSet::new(), BTreeMap::<usize, usize>::new());
        let mut claimed = Vec::new();
        for (run, row, slot) in candidates {
            let first_in_place = places.insert((slot, slot.is_none().then(|| workspace_of(row))));
            let rank = agents.entry(agent_of(row)).or_default();
            *rank += 1;
            if first_in_place && *rank <= room(agent_of(row)) {
                claimed.push((run, slot));
            }
        }
        let worker = self.own_keys[claim.worker];
        if !claimed.is_empty() && !self.workers.contains(&worker) {
            return Answer::Failed;
        }
        let mut told = BTreeMap::new();
        for (run, slot) in claimed {
            if self.runs[index(run)].span.is_none() {
                self.begin_span(run);
            }
            let row = &mut self.runs[index(run)];
            row.status = Status::Running;
            row.token += 1;
            // Its agent is a new one, which starts at the beginning of its script.
            (row.agent, row.source_offset) = (row.token, 0);
            self.cursors.insert(Lease { run, token: row.token }, 0);
            row.lease = Some((worker, self.now + LEASE_MS));
            row.slot = slot;
            let name = |slot: &Slot| format!("chat-slot-{}-{}", WORKSPACES[slot.workspace], slot.number);
            told.insert(run, (row.token, slot.map(|slot| name(&self.slots[index(slot)]))));
            self.touch(self.runs[index(run)].session);
        }
        Answer::Claimed(told)
    }

    pub(super) fn park(&mut self, run: RunKey, until: i64) -> Answer {
        if let Some(run) = self.runs.get_mut(index(run)).filter(|run| run.status == Status::Queued) {
            run.not_before = Some(self.now + until);
        }
        Answer::Done
    }
}
