//! The server's event stream to all followers, and the state that the events add up to.
//!
//! Always: a client that subscribes first and then requests the state misses nothing. One that does not keep up is disconnected.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use crate::fake::opencode::{Follower, event};

/// A message with its parts, in order.
#[derive(Default)]
struct Message {
    info: Value,
    parts: Vec<Value>,
}

#[derive(Default)]
struct State {
    /// By session and message id; ids are in order of time.
    messages: BTreeMap<String, BTreeMap<String, Message>>,
    /// Open questions.
    asked: Vec<Value>,
}

#[derive(Default)]
pub(super) struct Hub {
    state: Mutex<State>,
    followers: Mutex<Vec<Follower>>,
}

impl Hub {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn followers(&self) -> MutexGuard<'_, Vec<Follower>> {
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Subscribes a follower: a greeting, then all events from here on.
    pub(super) fn follow(&self, follower: Follower) {
        if follower.try_tell(&event("server.connected", json!({}))) {
            self.followers().push(follower);
        }
    }

    /// Sends an event.
    pub(super) fn tell(&self, event: &Value) {
        self.state().apply(event);
        self.followers().retain(|follower| follower.try_tell(event));
    }

    /// Cuts the connections of all followers.
    pub(super) fn cut(&self) {
        self.followers().clear();
    }

    /// The last messages of a session, the newest one last.
    pub(super) fn messages(&self, session: &str, limit: usize) -> Value {
        let state = self.state();
        let messages = state.messages.get(session).into_iter().flat_map(BTreeMap::values);
        let messages: Vec<_> = messages.map(|message| json!({"info": message.info, "parts": message.parts})).collect();
        messages[messages.len().saturating_sub(limit)..].into()
    }

    /// Forgets all but the last message of a session.
    pub(super) fn forget(&self, session: &str) {
        if let Some(messages) = self.state().messages.get_mut(session) {
            while messages.len() > 1 {
                messages.pop_first();
            }
        }
    }

    /// The open questions.
    pub(super) fn asked(&self) -> Value {
        self.state().asked.clone().into()
    }

    pub(super) fn answered(&self, id: &str) {
        let asked = {
            let mut state = self.state();
            let at = state.asked.iter().position(|asked| asked["id"] == id);
            at.map(|at| state.asked.remove(at))
        };
        if let Some(asked) = asked {
            let properties = json!({"sessionID": asked["sessionID"], "requestID": id});
            self.tell(&event("permission.replied", properties));
        }
    }
}

impl State {
    fn apply(&mut self, event: &Value) {
        let properties = &event["properties"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let session = text(&properties["sessionID"]);
        let messages = self.messages.entry(session).or_default();
        match event["type"].as_str() {
            Some("message.updated") => {
                messages.entry(text(&properties["info"]["id"])).or_default().info = properties["info"].clone();
            }
            Some("message.part.updated") => {
                let part = &properties["part"];
                let parts = &mut messages.entry(text(&part["messageID"])).or_default().parts;
                match parts.iter_mut().find(|known| known["id"] == part["id"]) {
                    Some(known) => *known = part.clone(),
                    None => parts.push(part.clone()),
                }
            }
            Some("message.part.delta") => {
                let parts = &mut messages.entry(text(&properties["messageID"])).or_default().parts;
                if let Some(part) = parts.iter_mut().find(|known| known["id"] == properties["partID"]) {
                    part["text"] = (text(&part["text"]) + properties["delta"].as_str().unwrap_or_default()).into();
                }
            }
            Some("permission.asked") => self.asked.push(properties.clone()),
            _ => {}
        }
    }
}
