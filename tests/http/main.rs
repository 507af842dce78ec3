//! The HTTP surface over real sockets, on an engine that executes nothing: runs stay queued until a test cancels them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed expectation is a failed test")]

mod agents;
mod chat;
mod conversation;
mod declines;
mod files;
mod guards;
mod hostile;
mod options;
mod permissions;
mod places;
mod refusals;
mod resume;
mod runs;
mod scene;
mod sessions;
mod sockets;
mod streams;
