//! The clients of the gateway, and which frames each gets: tool events go to the client that requested the run, and under
//! another name to those that subscribed to its session.
//!
//! Always: sending never waits; a client that does not keep up is disconnected.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::mpsc;

use crate::fake::gateway::{answer, challenge, refusal};

/// Frames that wait to be sent to a peer.
pub(super) const UNREAD_FRAMES: usize = 1024;

pub(super) type PeerId = u64;

struct Peer {
    frames: mpsc::Sender<Arc<str>>,
    /// It has connected with a valid token.
    is_admitted: bool,
    /// The runs that it requested, or waits for.
    follows: BTreeSet<String>,
    /// The sessions that it subscribed to.
    sessions: BTreeSet<String>,
}

#[derive(Default)]
pub(super) struct Peers {
    connected: BTreeMap<PeerId, Peer>,
    /// The peer that requested each run, and the id of that request.
    askers: BTreeMap<String, (PeerId, Value)>,
}

impl Peers {
    pub(super) fn connect(&mut self, id: PeerId, frames: mpsc::Sender<Arc<str>>) {
        let peer = Peer { frames, is_admitted: false, follows: BTreeSet::new(), sessions: BTreeSet::new() };
        self.connected.insert(id, peer);
        self.send(id, &challenge());
    }

    pub(super) fn is_admitted(&self, peer: PeerId) -> bool {
        self.connected.get(&peer).is_some_and(|peer| peer.is_admitted)
    }

    pub(super) fn admit(&mut self, peer: PeerId, id: &Value, hello: Value) {
        self.answer(peer, id, hello);
        if let Some(peer) = self.connected.get_mut(&peer) {
            peer.is_admitted = true;
        }
    }

    /// Cuts a connection. Frames that were queued before are still sent.
    pub(super) fn cut(&mut self, peer: PeerId) {
        self.connected.remove(&peer);
        self.askers.retain(|_, (asker, _)| *asker != peer);
    }

    /// Remembers which peer requested a run.
    pub(super) fn ask(&mut self, peer: PeerId, id: &Value, run: &str) {
        self.askers.insert(run.to_owned(), (peer, id.clone()));
        self.follow(peer, run);
    }

    pub(super) fn follow(&mut self, peer: PeerId, run: &str) {
        if let Some(peer) = self.connected.get_mut(&peer) {
            peer.follows.insert(run.to_owned());
        }
    }

    pub(super) fn subscribe(&mut self, peer: PeerId, session: &str) {
        if let Some(peer) = self.connected.get_mut(&peer) {
            peer.sessions.insert(session.to_owned());
        }
    }

    /// A peer that follows a run.
    pub(super) fn follower_of(&self, run: &str) -> Option<PeerId> {
        self.connected.iter().find(|(_, peer)| peer.follows.contains(run)).map(|(id, _)| *id)
    }

    /// Sends an event of a run. Returns whether a follower of the run gets it.
    pub(super) fn tell(&mut self, run: &str, session: &str, frame: &Value) -> bool {
        let is_tool = frame["payload"]["stream"] == "tool";
        let asker = self.askers.get(run).map(|(asker, _)| *asker);
        let of_session = {
            let mut frame = frame.clone();
            if is_tool {
                frame["event"] = "session.tool".into();
            }
            frame
        };
        let peers: Vec<_> = self.connected.iter().filter(|(_, peer)| peer.is_admitted).map(|(id, _)| *id).collect();
        let mut heard = false;
        for id in peers {
            let Some(peer) = self.connected.get(&id) else { continue };
            let follows = peer.follows.contains(run);
            let sent = match is_tool && asker != Some(id) {
                false => self.send(id, frame),
                true if peer.sessions.contains(session) => self.send(id, &of_session),
                true => false,
            };
            heard |= follows && sent;
        }
        heard
    }

    /// Answers the peer that requested a run, if it is still connected.
    pub(super) fn answer_asker(&mut self, run: &str, answer: &Value) {
        if let Some((peer, id)) = self.askers.remove(run) {
            self.pass(peer, &id, answer);
        }
    }

    pub(super) fn answer(&mut self, peer: PeerId, id: &Value, payload: Value) {
        self.send(peer, &answer(id, payload));
    }

    pub(super) fn refuse(&mut self, peer: PeerId, id: &Value, message: &str) {
        self.send(peer, &refusal(id, "INVALID_REQUEST", message));
    }

    /// Sends a result as the response to a request.
    pub(super) fn pass(&mut self, peer: PeerId, id: &Value, answer: &Value) {
        let mut answer = answer.clone();
        answer["id"] = id.clone();
        self.send(peer, &answer);
    }

    fn send(&mut self, id: PeerId, frame: &Value) -> bool {
        let frame = frame.as_str().map_or_else(|| frame.to_string(), str::to_owned);
        let sent = self.connected.get(&id).is_some_and(|peer| peer.frames.try_send(frame.into()).is_ok());
        if !sent {
            self.cut(id);
        }
        sent
    }
}
