//! Places: which session gets which slot, which ones wait for one, and which one has to leave.

use std::cmp::Reverse;

use std::collections::BTreeSet;

use mainstay::run::Status;
use mainstay::workspace::WhenFull;

use super::{Model, Place, Slot, index, key};
use crate::ops::{Answer, SLOT_BOUND_AGENT};

impl Model {
    pub fn free_slot(&self, session: Option<usize>, workspace: usize) -> Option<i64> {
        let free = |slot: &i64| !self.places.iter().any(|place| place.ended.is_none() && place.slot == Some(*slot));
        let free: Vec<_> = (1..=key(self.slots.len()) - 1)
            .filter(|slot| self.slots[index(*slot)].workspace == workspace && self.slots[index(*slot)].enabled)
            .filter(free)
            .collect();
        let before = self.places.iter().rev().filter(|place| Some(place.session) == session).find_map(|p| p.slot);
        before
            .filter(|slot| free.contains(slot))
            .or_else(|| free.into_iter().min_by_key(|slot| self.slots[index(*slot)].number))
    }

    pub(super) fn give_place(&mut self, session: usize, slot: Option<i64>) {
        self.sessions[session].waiting_since = None;
        let ttl = self.sessions[session].ttl;
        self.places.push(Place { session, slot, ttl, last_active_at: self.now, ended: None });
    }

    /// A slot, a share of the workspace's agent, or a place in the line.
    pub(super) fn find_place(&mut self, session: usize, when_full: WhenFull) {
        let workspace = self.sessions[session].workspace;
        let slot = self.free_slot(Some(session), workspace);
        if slot.is_some() || when_full == WhenFull::Share {
            return self.give_place(session, slot);
        }
        self.sessions[session].waiting_since.get_or_insert(self.now);
        self.sessions[session].reclaims = when_full == WhenFull::Reclaim;
        if when_full == WhenFull::Reclaim
            && !self.reclaim(workspace)
            && (self.is_slot_bound(session) || !self.can_reclaim_later(workspace))
        {
            self.give_place(session, None);
        }
    }

    pub fn is_slot_bound(&self, session: usize) -> bool {
        self.sessions[session].agent == SLOT_BOUND_AGENT
    }

    /// Whether another session may take the slot of this place once its own session is idle.
    fn is_reclaimable(&self, place: &Place) -> bool {
        place.ended.is_none()
            && place.slot.is_some_and(|slot| self.slots[index(slot)].enabled)
            && !self.is_slot_bound(place.session)
    }

    fn can_reclaim_later(&self, workspace: usize) -> bool {
        let is_here = |place: &&Place| self.sessions[place.session].workspace == workspace;
        self.places.iter().filter(is_here).any(|place| self.is_reclaimable(place))
    }

    /// The slot that has been idle longest goes to the reclaiming session that has waited longest.
    fn reclaim(&mut self, workspace: usize) -> bool {
        let is_idle = |place: &Place| self.is_reclaimable(place) && !self.is_busy(place.session);
        let idle = (0..self.places.len()).filter(|place| is_idle(&self.places[*place]));
        let idle = idle.filter(|place| self.sessions[self.places[*place].session].workspace == workspace);
        let Some(longest) = idle.min_by_key(|place| (self.places[*place].last_active_at, *place)) else { return false };
        self.end_place(longest, "reclaimed");
        true
    }

    /// A session that becomes idle gives up its slot when another one waits for it.
    pub(super) fn give_up_if_wanted(&mut self, place: usize) {
        let workspace = self.sessions[self.places[place].session].workspace;
        if self.is_reclaimable(&self.places[place])
            && self.waiting(workspace).iter().any(|s| self.sessions[*s].reclaims)
        {
            self.end_place(place, "reclaimed");
        }
    }

    pub(super) fn touch(&mut self, session: usize) {
        if let Some(place) = self.live_place(session) {
            self.places[place].last_active_at = self.now;
        }
    }

    /// The session that has waited longest comes first.
    pub fn waiting(&self, workspace: usize) -> Vec<usize> {
        let mut waiting: Vec<_> = (0..self.sessions.len())
            .filter(|s| self.sessions[*s].workspace == workspace && self.sessions[*s].waiting_since.is_some())
            .collect();
        waiting.sort_by_key(|s| (self.sessions[*s].waiting_since, *s));
        waiting
    }

    pub(super) fn end_place(&mut self, place: usize, how: &'static str) {
        self.places[place].ended = Some((how, self.now));
        let Some(slot) = self.places[place].slot else { return };
        let Slot { workspace, enabled, .. } = self.slots[index(slot)];
        let may_have_it = |waiting: &usize| how != "reclaimed" || self.sessions[*waiting].reclaims;
        if enabled && let Some(next) = self.waiting(workspace).into_iter().find(may_have_it) {
            self.give_place(next, Some(slot));
        }
    }

    pub(super) fn expire_idle(&mut self, limit: usize) -> Answer {
        let idle = |place: &Place| place.ended.is_none() && !self.is_busy(place.session);
        let over = |place: &Place| place.last_active_at + place.ttl < self.now;
        let mut ending: Vec<_> =
            (0..self.places.len()).filter(|p| idle(&self.places[*p]) && over(&self.places[*p])).collect();
        ending.sort_by_key(|place| (self.places[*place].last_active_at, *place));
        ending.truncate(limit);
        ending.sort_unstable();
        ending.iter().for_each(|place| self.end_place(*place, "expired"));
        Answer::Count(u64::try_from(ending.len()).unwrap())
    }

    pub(super) fn purge(&mut self, before: i64, limit: usize) -> Answer {
        let ended = |place: &Place| place.ended.map(|(_, at)| at).filter(|at| *at < before);
        let mut old: Vec<_> = (0..self.places.len()).filter_map(|p| ended(&self.places[p]).map(|at| (at, p))).collect();
        old.sort_unstable();
        old.truncate(limit);
        let gone: BTreeSet<_> = old.into_iter().map(|(_, place)| place).collect();
        let kept = self.places.iter().enumerate().filter(|(i, _)| !gone.contains(i)).map(|(_, place)| place.clone());
        self.places = kept.collect();
        Answer::Count(u64::try_from(gone.len()).unwrap())
    }

    pub(super) fn close(&mut self, name: usize, cancel: bool) -> Answer {
        let Some(session) = self.sessions.iter().position(|s| s.name == name) else { return Answer::Unknown };
        if self.is_busy(session) && !cancel {
            return Answer::Closed("busy");
        }
        self.sessions[session].closing = true;
        let mut busy: Vec<_> = self.runs_of(session).filter(|(_, run)| !run.status.is_settled()).collect();
        // In the order of the queue.
        busy.sort_by_key(|(key, run)| {
            (run.status != Status::Running, run.span.is_none(), Reverse((run.front, run.priority)), *key)
        });
        for run in busy.into_iter().map(|(key, _)| key).collect::<Vec<_>>() {
            self.request_cancel(run);
        }
        if self.is_busy(session) {
            return Answer::Closed("closing");
        }
        if let Some(place) = self.live_place(session) {
            self.end_place(place, "deleted");
        }
        Answer::Closed("closed")
    }

    pub(super) fn sync_slots(&mut self, workspace: usize, slots: u32, when_full: WhenFull) -> Answer {
        for number in 1..=slots {
            if !self.slots.iter().any(|slot| (slot.workspace, slot.number) == (workspace, number)) {
                self.slots.push(Slot { workspace, number, enabled: true });
            }
        }
        for slot in self.slots.iter_mut().filter(|slot| slot.workspace == workspace) {
            slot.enabled = slot.number <= slots;
        }
        for session in self.waiting(workspace) {
            if let Some(slot) = self.free_slot(None, workspace) {
                self.give_place(session, Some(slot));
            }
        }
        let waiting = self.waiting(workspace);
        waiting.iter().for_each(|session| self.sessions[*session].reclaims |= when_full == WhenFull::Reclaim);
        let reclaimers =
            |model: &Self| model.waiting(workspace).into_iter().filter(|s| model.sessions[*s].reclaims).collect();
        while !Vec::is_empty(&reclaimers(self)) && self.reclaim(workspace) {}
        if !self.can_reclaim_later(workspace) {
            reclaimers(self).into_iter().for_each(|session| self.give_place(session, None));
        }
        Answer::Done
    }

    pub(super) fn update(&mut self, name: usize, ttl: i64) -> Answer {
        let Some(session) = self.sessions.iter().position(|s| s.name == name) else { return Answer::Is(false) };
        self.sessions[session].ttl = ttl;
        if let Some(place) = self.live_place(session) {
            self.places[place].ttl = ttl;
        }
        Answer::Is(true)
    }
}
