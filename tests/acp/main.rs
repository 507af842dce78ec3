//! The bridge to an ACP agent and the relays of turns to it, as processes, with an agent that does what it is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed expectation is a failed test")]

mod asking;
mod cancel;
mod client;
mod hostile;
mod scene;
mod sessions;
mod starting;
