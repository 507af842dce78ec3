//! Failing storage and loss of power, with the real binary: what was acknowledged is there, what was not was refused and left no
//! trace, and after the fault the engine recovers by itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed expectation is a failed test")]

mod backup;
mod damage;
mod disk;
mod files;
mod locks;
mod mount;
mod place;
mod power;
mod readiness;
mod reading;
mod replay;
mod scene;
mod shim;
mod shortage;
mod stderr;
mod user;
