//! The events of the server, to all who follow them, and how things stand after them.
//!
//! Always: who begins to follow and then asks how things stand has missed nothing. Who does not keep up is cut off.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::sync::broadcast;

/// So many events wait for a follower.
const UNREAD_EVENTS: usize = 4096;

/// A message with its parts, in their order.
#[derive(Default)]
struct Message {
    info: Value,
    parts: Vec<Value>,
}

#[derive(Default)]
struct Stand {
    /// By session and id, which grows.
    messages: BTreeMap<String, BTreeMap<String, Message>>,
    /// What was asked and not answered.
    asked: Vec<Value>,
}

pub(super) struct Hub {
    stand: Mutex<Stand>,
    /// None cuts the connection.
    followers: broadcast::Sender<Option<Arc<str>>>,
}

/// The events, for one follower.
pub(super) struct Events {
    ahead: VecDeque<Arc<str>>,
    rest: broadcast::Receiver<Option<Arc<str>>>,
}

impl Events {
    /// The next one; none when the connection is to be cut.
    pub(super) async fn next(&mut self) -> Option<Arc<str>> {
        match self.ahead.pop_front() {
            Some(event) => Some(event),
            None => self.rest.recv().await.ok()?,
        }
    }
}

impl Hub {
    pub(super) fn new() -> Self {
        Self { stand: Mutex::default(), followers: broadcast::Sender::new(UNREAD_EVENTS) }
    }

    fn stand(&self) -> MutexGuard<'_, Stand> {
        self.stand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows what is told from here on, behind a greeting.
    pub(super) fn follow(&self, greeting: Value) -> Events {
        Events { ahead: VecDeque::from([greeting.to_string().into()]), rest: self.followers.subscribe() }
    }

    /// Tells an event.
    pub(super) fn tell(&self, event: &Value) {
        self.stand().heed(event);
        let event = event.as_str().map_or_else(|| event.to_string(), str::to_owned);
        // Perhaps nobody follows.
        let _ = self.followers.send(Some(event.into()));
    }

    /// Cuts the connections of all who follow.
    pub(super) fn cut(&self) {
        // As above.
        let _ = self.followers.send(None);
    }

    /// The last messages of a session, the newest one behind.
    pub(super) fn messages(&self, session: &str, limit: usize) -> Value {
        let stand = self.stand();
        let messages = stand.messages.get(session).into_iter().flat_map(BTreeMap::values);
        let messages: Vec<_> = messages.map(|message| json!({"info": message.info, "parts": message.parts})).collect();
        messages[messages.len().saturating_sub(limit)..].into()
    }

    /// Forgets all but the last message of a session.
    pub(super) fn forget(&self, session: &str) {
        if let Some(messages) = self.stand().messages.get_mut(session) {
            while messages.len() > 1 {
                messages.pop_first();
            }
        }
    }

    /// What was asked and not answered.
    pub(super) fn asked(&self) -> Value {
        self.stand().asked.clone().into()
    }

    pub(super) fn answered(&self, id: &str) {
        let asked = {
            let mut stand = self.stand();
            let at = stand.asked.iter().position(|asked| asked["id"] == id);
            at.map(|at| stand.asked.remove(at))
        };
        if let Some(asked) = asked {
            let properties = json!({"sessionID": asked["sessionID"], "requestID": id});
            self.tell(&super::event("permission.replied", properties));
        }
    }
}

impl Stand {
    fn heed(&mut self, event: &Value) {
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
