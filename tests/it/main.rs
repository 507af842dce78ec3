//! The library: its pure parts, the store, the drivers with real processes, and the whole engine with small scripts as agents
//! and daemons that are killed. Tests wait on the product's own event stream.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed expectation is a failed test")]

mod acp;
mod adopt;
mod audit;
mod backup;
mod cancel;
mod claude_lines;
mod daemon;
mod decline;
mod feed;
mod fuzz_corpus;
mod gateway;
mod health;
mod hostile;
mod limits;
mod memory;
mod migrations;
mod opencode;
mod per_turn;
mod permission;
mod process;
mod run;
mod scene;
mod sessions;
mod store;
mod sweep;
mod text;
mod time;
mod transcripts;
mod turn_cases;
mod turn_properties;
mod unstorable;
mod waiting;
mod warm;
mod warm_life;

use fuzz_corpus::targets::rules;
