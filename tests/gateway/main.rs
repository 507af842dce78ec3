//! Turns that are taken to an OpenClaw gateway, by real relays under real hosts; the gateway is a stand-in that says what a
//! real one was recorded to say.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed expectation is a failed test")]

mod engine;
mod faults;
mod recorded;
mod scene;
mod turns;
