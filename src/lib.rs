//! Mainstay: a durable run engine for chat agents, on one SQLite file.
//!
//! A run is one turn of a session. Everything here exists to take it from queued to settled exactly once, to keep its output,
//! and to show it live.
//!
//! ```
//! use mainstay::config::Config;
//! use mainstay::engine::{Engine, SendMessage};
//! use mainstay::id::{MessageId, SessionId};
//! use mainstay::message::UserMessage;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let engine = Engine::open(&dir.path().join("mainstay.db"), Config::builtin(dir.path())).await?;
//! engine.start().await?;
//!
//! let message = UserMessage::text(MessageId::generate(), "What can you do?")?;
//! let sent = engine.send(SendMessage::new("hello".parse::<SessionId>()?, message)).await?;
//!
//! // Replays from the beginning, then follows live, to the end of the run.
//! let mut follower = engine.follow_run(sent.run.id, 0).await?;
//! while let Some(events) = follower.next_events().await? {
//!     for event in events {
//!         println!("{}", event.event); // AI SDK v6 UI message chunks, as JSON
//!     }
//! }
//! assert_eq!(engine.run(sent.run.id).await?.status.as_str(), "completed");
//!
//! engine.drain(std::time::Duration::from_secs(5)).await;
//! engine.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! Five sentences carry the design: the database is the truth; a session is a log and a run is a span of it; a write needs a
//! lease; terminal is final and always written; invariants live in the schema. `docs/architecture.md` explains it.
//!
//! The modules below are in reading order, layer by layer; imports go down only (`tests/tidy/`).

// Nouns: values and pure functions.
pub mod agent;
pub mod agent_event;
pub mod allowed;
pub mod assignment;
pub mod audit;
pub mod backend;
mod busy;
pub mod catalogue;
pub mod chunk;
pub mod clock;
pub mod config;
pub mod event;
pub mod failure;
pub mod file_access;
pub mod id;
pub mod lease;
pub mod memory;
pub mod message;
mod metrics;
mod nearest;
pub mod options;
pub mod permission;
pub mod policy;
pub mod run;
pub mod session;
pub mod slot;
pub mod stats;
pub mod text;
pub mod usage;
pub mod waiting;
pub mod worker;
pub mod workspace;
// Edges: each knows one outside thing, and not the other.
pub mod process;
pub mod store;
// Drivers: the protocol of each agent.
pub mod driver;
// Decisions.
pub mod engine;
// Surfaces.
pub mod cli;
pub mod http;
pub mod telemetry;
