//! Real agents, end to end: the daemon as a process, the agent's own program, and a model server that follows a script
//! (`model.mjs`, which needs node). `MAINSTAY_TEST_AGENTS` is a directory with a program for each installed agent, as
//! `.ci/agents` makes it. A test whose agent is missing says so and is skipped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed expectation is a failed test")]

mod claude;
mod codex;
mod files;
mod goose;
mod live;
mod opencode;
mod opencode_acp;
mod scene;
