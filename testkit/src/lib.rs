//! What the tests, the benchmarks and `mainstay-torture` share.
//!
//! Always: it uses no type of `mainstay`, so that it observes a daemon only from outside; callers pass the path of the
//! binary, because only the crate of a test knows `CARGO_BIN_EXE_mainstay`.

mod client;
mod daemon;
pub mod fake;
mod processes;
mod wait;

pub use client::{Answer, Api, read, token, token_file};
pub use daemon::{Daemon, command, first_line, log_file};
pub use processes::{marked, skipped, state_of};
pub use wait::{TIMEOUT, block_until, until, within, within_limit};
