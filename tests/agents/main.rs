//! Real agents, end to end: the daemon as a process, the agent's own program, and a model server that says what it is told
//! to. Which agents are here is said by `MAINSTAY_TEST_AGENTS`, a directory with a program for each, and
//! `MAINSTAY_TEST_FAKE_LLM`, the model server's `server.mjs`. A test whose agent is not here says so and is skipped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a failed expectation is a failed test")]

mod claude;
mod codex;
mod goose;
mod live;
mod opencode;
mod opencode_acp;
mod scene;
