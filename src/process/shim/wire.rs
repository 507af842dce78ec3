//! The messages between an engine and a shim. The spool holds the shim's messages in the same form.
//!
//! Always: both sides send their version first and use the lower one, and skip kinds and fields that they do not know,
//! so an older shim serves a newer engine.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::frame::{Frame, encode};
use crate::failure::ErrorClass;
use crate::process::launch::Launch;
use crate::run::Cause;

/// The newest version of this protocol that this build speaks.
pub const VERSION: u32 = 2;

/// Maximum size of a shim's message: a piece of output, or an end with its stderr.
pub const MAX_FROM_SHIM_BYTES: usize = 1024 * 1024;

/// Maximum size of an engine's message: a launch with its prompt. The HTTP limit for messages is far below.
pub const MAX_FROM_ENGINE_BYTES: usize = 256 * 1024 * 1024;

/// A message from an engine to a shim.
#[derive(Debug, Clone)]
pub enum FromEngine {
    /// Identifies the engine; the first message on a connection.
    Hello(Hello),
    /// Start the agent. Sent once, only by the engine that started the shim.
    Start(Box<Launch>),
    /// Write this to the agent's stdin, which stays open.
    Input(Bytes),
    /// Close the agent's stdin.
    CloseInput,
    /// End the agent and everything that it started.
    Stop(Stop),
}

/// Identifies an engine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hello {
    /// The newest version that it speaks.
    pub version: u32,
    /// A secret known only to readers of the database. The first engine sets it, every other one has to match it.
    pub secret: String,
    /// The fencing token of its lease: an engine with a lower token than the newest one is not served.
    pub token: i64,
}

/// How to end an agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stop {
    /// The reason; kept in the spool for the engine that settles the run.
    pub cause: Cause,
    /// Time until SIGKILL; 0 means SIGKILL at once.
    pub grace_ms: u64,
    /// The line that stops the turn in the agent's own protocol: it is written to stdin, and SIGTERM follows after half
    /// of the time. A shim that does not know this field sends SIGTERM at once.
    #[serde(default)]
    pub interrupt: Option<String>,
}

/// A message from a shim to an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromShim {
    /// The shim serves this engine from now on.
    Welcome(Welcome),
    /// The agent runs.
    Began(Began),
    /// A piece of the agent's stdout.
    Stdout(Bytes),
    /// A piece of the agent's stderr; only its beginning is sent piece by piece.
    Stderr(Bytes),
    /// The agent was asked to end.
    Stopping(Stopping),
    /// Nothing of the agent ran, and nothing will.
    NotStarted(NotStarted),
    /// The agent and everything that it started are gone.
    Ended(Ended),
}

/// The shim's first message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that both sides use.
    pub version: u32,
}

/// Identifies the agent's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Began {
    /// Its pid.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub started_at_ticks: i64,
}

/// Why an agent was asked to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopping {
    /// The first cause.
    pub cause: Cause,
}

/// Why an agent was not started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotStarted {
    /// A text for the user; none if the start was no longer wanted.
    pub error: Option<String>,
    /// The kind of failure, if it is a known one.
    #[serde(default)]
    pub class: Option<ErrorClass>,
    /// The system was short of a resource: the same start may succeed in a moment.
    #[serde(default)]
    pub is_shortage: bool,
}

/// How an agent ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Exit code.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Head and tail of its stderr.
    pub stderr: Option<String>,
    /// How many processes could not be ended.
    pub remaining: usize,
}

impl FromEngine {
    /// Encodes it as a frame.
    pub fn to_frame(&self) -> Vec<u8> {
        match self {
            Self::Hello(hello) => json(b'h', hello),
            Self::Start(launch) => json(b's', launch),
            Self::Input(bytes) => raw(b'i', bytes),
            Self::CloseInput => raw(b'c', &[]),
            Self::Stop(stop) => json(b'x', stop),
        }
    }

    /// Decodes a frame; `None` if its kind is unknown.
    pub fn of(frame: &Frame) -> Option<Self> {
        match frame.kind {
            b'h' => read(frame).map(Self::Hello),
            b's' => read(frame).map(Self::Start),
            b'i' => Some(Self::Input(frame.payload.clone())),
            b'c' => Some(Self::CloseInput),
            b'x' => read(frame).map(Self::Stop),
            _ => None,
        }
    }
}

impl FromShim {
    /// Encodes it as a frame.
    pub fn to_frame(&self) -> Vec<u8> {
        match self {
            Self::Welcome(welcome) => json(b'w', welcome),
            Self::Began(began) => json(b'b', began),
            Self::Stdout(bytes) => raw(b'o', bytes),
            Self::Stderr(bytes) => raw(b'e', bytes),
            Self::Stopping(stopping) => json(b'q', stopping),
            Self::NotStarted(not_started) => json(b'n', not_started),
            Self::Ended(ended) => json(b'z', ended),
        }
    }

    /// Decodes a frame; `None` if its kind is unknown.
    pub fn of(frame: &Frame) -> Option<Self> {
        match frame.kind {
            b'w' => read(frame).map(Self::Welcome),
            b'b' => read(frame).map(Self::Began),
            b'o' => Some(Self::Stdout(frame.payload.clone())),
            b'e' => Some(Self::Stderr(frame.payload.clone())),
            b'q' => read(frame).map(Self::Stopping),
            b'n' => read(frame).map(Self::NotStarted),
            b'z' => read(frame).map(Self::Ended),
            _ => None,
        }
    }
}

fn raw(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    encode(kind, bytes, &mut frame);
    frame
}

fn json(kind: u8, value: &impl Serialize) -> Vec<u8> {
    let mut frame = Vec::new();
    // Fails only for maps with keys that are not strings, and there are none.
    encode(kind, &serde_json::to_vec(value).unwrap_or_default(), &mut frame);
    frame
}

fn read<T: DeserializeOwned>(frame: &Frame) -> Option<T> {
    serde_json::from_slice(&frame.payload).ok()
}
