//! Mainstay: a durable run engine for chat agents.

// Nouns: values and pure functions.
pub mod agent;
pub mod assignment;
pub mod chunk;
pub mod clock;
pub mod config;
pub mod event;
pub mod id;
pub mod lease;
pub mod message;
pub mod run;
pub mod session;
pub mod slot;
pub mod worker;
pub mod workspace;
// Edges: each knows one outside thing, and not the other.
pub mod backend;
pub mod store;
// Decisions.
pub mod engine;
// Surfaces.
pub mod cli;
pub mod http;
pub mod telemetry;
