//! The whole engine: a real database, real agent processes (small scripts), real daemons that are killed. Waiting is done on
//! the product's own stream of events.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed expectation is a failed test")]

mod adopt;
mod backup;
mod cancel;
mod claude_lines;
mod daemon;
mod decline;
mod feed;
mod health;
mod hostile;
mod limits;
mod memory;
mod per_turn;
mod permission;
mod run;
mod scene;
mod sessions;
mod sweep;
mod text;
mod time;
mod unstorable;
mod waiting;
mod warm;
