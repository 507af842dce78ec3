//! Real agents, end to end: the daemon as a process, the agent's own program, and a model server that says what it is told
//! to (`model.mjs`, which needs node). Which agents are here is said by `MAINSTAY_TEST_AGENTS`, a directory with a program for
//! each, as `.ci/agents` makes it. A test whose agent is not here says so and is skipped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed expectation is a failed test")]

mod claude;
mod codex;
mod goose;
mod live;
mod opencode;
mod opencode_acp;
mod scene;
