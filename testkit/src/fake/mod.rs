//! One fake of each agent that is more than a script: its protocol is implemented here once, and what it does in a turn is up
//! to a behaviour. Tests use behaviours that do what the test says; `mainstay-torture` uses ones that follow a seed.
//!
//! Always: nothing here panics or asserts; that is up to its users.

pub mod acp;
pub mod gateway;
pub mod opencode;
