//! What people, scripts and supervisors rely on: real processes of the binary, and the documentation that describes them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed expectation is a failed test")]

mod commands;
mod docs;
mod doctor;
mod service;
mod torture;
