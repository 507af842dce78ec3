//! The engine: what a run does from its claim to its end.

pub mod decide;
pub mod fold;
mod stderr;
pub mod turn;
