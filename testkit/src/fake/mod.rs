//! One fake of each agent that is more than a script: what speaks its protocol is here once, and what it does in a turn is up
//! to a behaviour. Tests bring behaviours that do what the test says; `mainstay-torture` brings ones that follow a seed.
//!
//! Always: nothing here panics or asserts; that is for those who use it.

pub mod acp;
pub mod gateway;
pub mod opencode;
