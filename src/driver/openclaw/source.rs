//! Tells which events belong to this run and are new, and what is new in them.
//!
//! Always: bounded.

use std::collections::{HashSet, VecDeque};

use serde_json::Value;

use super::fields::{Fields, text};

/// How many events are remembered. Repeats come from a reconnect of the process that relays the events, which sends the
/// last few again: a thousand are ample.
const REMEMBERED: usize = 1024;

/// How much text is kept to find what is new in a message that arrives whole. A longer message does not fit into a line.
const MAX_SAID_BYTES: usize = 16 * 1024 * 1024;

/// The run and session of the output, and the events seen.
#[derive(Debug, Default)]
pub struct Source {
    run: Option<String>,
    session: Option<String>,
    /// Whether the event names the run, which makes it another source, and its number in that source.
    seen: HashSet<(bool, u64)>,
    order: VecDeque<(bool, u64)>,
}

impl Source {
    /// Whether an event belongs to this run and was not seen before. The first run and session named are this run's: a
    /// sub-agent's events are not attributed to its parent. Numbers may arrive in any order.
    pub fn is_news(&mut self, event: &Fields) -> bool {
        let run = text(event, "runId");
        if !is_ours(&mut self.run, run) || !is_ours(&mut self.session, text(event, "sessionKey")) {
            return false;
        }
        let Some(seq) = event.get("seq").and_then(Value::as_u64) else { return true };
        let key = (run.is_some(), seq);
        if !self.seen.insert(key) {
            return false;
        }
        self.order.push_back(key);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        true
    }

    /// Clears the numbers: OpenClaw counts from 1 again after the end or failure of a run.
    pub fn restart(&mut self) {
        self.seen.clear();
        self.order.clear();
    }
}

fn is_ours(ours: &mut Option<String>, named: Option<&str>) -> bool {
    match (ours.as_deref(), named) {
        (_, None) => true,
        (Some(ours), Some(named)) => ours == named,
        (None, Some(named)) => {
            *ours = Some(named.to_owned());
            true
        }
    }
}

/// The text of one stream. Events carry what is new (`delta`), the whole message so far (`text`), or both.
#[derive(Debug, Default)]
pub struct Said {
    /// The text of this item, if the agent identifies its messages; otherwise of the turn.
    all: String,
    /// Where in it the current message begins.
    message: usize,
    item: Option<String>,
}

impl Said {
    /// What an event adds; none if it adds nothing.
    pub fn news<'a>(&mut self, data: &'a Fields) -> Option<&'a str> {
        if let Some(item) = text(data, "itemId")
            && self.item.as_deref() != Some(item)
        {
            *self = Self { item: Some(item.to_owned()), ..Self::default() };
        }
        let news = match (text(data, "delta"), text(data, "text")) {
            (Some(delta), Some(so_far)) if self.item.is_some() => self.with_lost(delta, so_far),
            (Some(delta), _) => delta,
            (None, Some(so_far)) => self.beyond(so_far),
            (None, None) => "",
        };
        self.keep(news);
        (!news.is_empty()).then_some(news)
    }

    fn keep(&mut self, news: &str) {
        if self.all.len() + news.len() > MAX_SAID_BYTES {
            self.all.drain(..self.message);
            self.message = 0;
            if self.all.len() + news.len() > MAX_SAID_BYTES {
                self.all = String::new();
            }
        }
        if news.len() <= MAX_SAID_BYTES {
            self.all.push_str(news);
        }
    }

    /// The delta, with what was lost before it, if the item's text so far contains that and otherwise matches.
    fn with_lost<'a>(&self, delta: &'a str, so_far: &'a str) -> &'a str {
        so_far.strip_prefix(&self.all).filter(|news| news.ends_with(delta)).unwrap_or(delta)
    }

    /// The missing rest of a message whose complete text is known; all of it if it is not the current message.
    pub fn rest_of<'a>(&mut self, whole: &'a str) -> Option<&'a str> {
        let whole = whole.trim_end();
        let begun = [self.all.trim_end(), self.all[self.message..].trim_end()];
        let rest_behind = |begun: &&str| whole.strip_prefix(*begun).filter(|_| !begun.is_empty());
        let rest = if begun[0].ends_with(whole) { "" } else { begun.iter().find_map(rest_behind).unwrap_or(whole) };
        self.keep(rest);
        (!rest.is_empty()).then_some(rest)
    }

    /// The new part of a message. Agents differ in where a message begins: with the turn, or after every tool. Some
    /// trim it, so that it is shorter than what was emitted. Any other text is a new message.
    fn beyond<'a>(&mut self, so_far: &'a str) -> &'a str {
        let message = &self.all[self.message..];
        if let Some(news) = so_far.strip_prefix(&self.all).or_else(|| so_far.strip_prefix(message)) {
            news
        } else if message.starts_with(so_far) {
            ""
        } else {
            self.next_message();
            so_far
        }
    }

    /// What follows is a new message.
    pub fn next_message(&mut self) {
        self.message = self.all.len();
    }
}
