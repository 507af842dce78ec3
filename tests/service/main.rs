//! The daemon as a service: PID 1 of a container, supervised by systemd, watched by Prometheus. Real processes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed expectation is a failed test")]

mod container;
mod log;
mod metrics;
mod readme;
mod scene;
mod systemd;
#[path = "../token/mod.rs"]
mod token;
