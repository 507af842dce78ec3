//! Fixtures for the tests of `process` and the drivers.

use std::time::{Duration, Instant};

use super::{Prompt, TurnPlace};
use crate::id::RunId;
use crate::options::SessionOptions;
use crate::policy::OptionRules;
use crate::run::Attempt;

pub fn prompt(message: &str) -> Prompt {
    Prompt {
        place: TurnPlace {
            attempt: Attempt { run: RunId::generate(), number: 3 },
            session: "s-1".parse().unwrap(),
            slot: "chat-slot-w-1".to_owned(),
            workspace: "w".parse().unwrap(),
            dir: "/srv/w".into(),
            agent_session: None,
            endpoint: None,
        },
        start_by: Instant::now(),
        limit: Duration::from_secs(60),
        message: message.to_owned(),
        attachments: Vec::new(),
        options: SessionOptions::default(),
        rules: OptionRules::default(),
        oneshot: false,
    }
}
