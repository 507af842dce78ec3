//! The HTTP surface over real sockets, on an engine that executes nothing: runs stay queued until a test cancels them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed expectation is a failed test")]

mod chat;
mod files;
mod guards;
mod options;
mod permissions;
mod refusals;
mod runs;
mod scene;
mod sessions;
mod sockets;
mod streams;
