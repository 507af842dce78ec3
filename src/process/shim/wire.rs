//! What an engine and a shim say to each other; what a shim says is at the same time what its spool holds.
//!
//! Always: both sides say their version first and go on with the lower one, pass over kinds and fields that they do not
//! know, and so an older shim serves a newer engine.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::frame::{Frame, encode};
use crate::failure::ErrorClass;
use crate::process::launch::Launch;
use crate::run::Cause;

/// The newest version of this protocol that this build speaks.
pub const VERSION: u32 = 2;

/// The longest that a shim may say: a piece of output, or an end with its stderr.
pub const MAX_FROM_SHIM_BYTES: usize = 1024 * 1024;

/// The longest that an engine may say: a launch with its message. Messages are bounded by what HTTP takes, far below.
pub const MAX_FROM_ENGINE_BYTES: usize = 256 * 1024 * 1024;

/// What an engine says to a shim.
#[derive(Debug, Clone)]
pub enum FromEngine {
    /// Who it is; the first thing on a connection.
    Hello(Hello),
    /// Start the agent. Only the engine that started the shim says it, once.
    Start(Box<Launch>),
    /// Write this to its stdin, which it keeps open.
    Input(Bytes),
    /// Close its stdin.
    CloseInput,
    /// End the agent and all that it started.
    Stop(Stop),
}

/// Who an engine is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hello {
    /// The newest version that it speaks.
    pub version: u32,
    /// What only those know who may read the database. The first engine tells it, every other one has to know it.
    pub secret: String,
    /// The fencing token of its lease: an engine with a lower one is not served any more.
    pub token: i64,
}

/// How an agent is to end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stop {
    /// Why; kept in the spool for whoever has to say how the run ended.
    pub cause: Cause,
    /// Time until SIGKILL; none for SIGKILL at once.
    pub grace_ms: u64,
    /// What stops it in its own protocol: it is written to its stdin, and half of the time goes by before SIGTERM. A shim
    /// that does not know of this sends SIGTERM at once.
    #[serde(default)]
    pub interrupt: Option<String>,
}

/// What a shim says to an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromShim {
    /// It serves this engine from now on.
    Welcome(Welcome),
    /// The agent runs.
    Began(Began),
    /// A piece of what it wrote to stdout.
    Stdout(Bytes),
    /// A piece of what it wrote to stderr; only the beginning of it is told piece by piece.
    Stderr(Bytes),
    /// It was asked to end.
    Stopping(Stopping),
    /// Nothing of the agent ran, and nothing will.
    NotStarted(NotStarted),
    /// The agent is gone, and all that it started.
    Ended(Ended),
}

/// A shim's first word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that both go on with.
    pub version: u32,
}

/// Which process the agent is.
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
    /// The first reason.
    pub cause: Cause,
}

/// Why an agent was not started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotStarted {
    /// For people; none when nobody wants it any more.
    pub error: Option<String>,
    /// What kind of failure it is, if it is a known one.
    #[serde(default)]
    pub class: Option<ErrorClass>,
    /// The system was short of something: the same start may succeed in a moment.
    #[serde(default)]
    pub is_shortage: bool,
}

/// How an agent ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Exit code.
    pub code: Option<i32>,
    /// Signal that ended it.
    pub signal: Option<i32>,
    /// Head and tail of its stderr.
    pub stderr: Option<String>,
    /// Processes that could not be ended.
    pub remaining: usize,
}

impl FromEngine {
    /// The frame that says it.
    pub fn to_frame(&self) -> Vec<u8> {
        match self {
            Self::Hello(hello) => json(b'h', hello),
            Self::Start(launch) => json(b's', launch),
            Self::Input(bytes) => raw(b'i', bytes),
            Self::CloseInput => raw(b'c', &[]),
            Self::Stop(stop) => json(b'x', stop),
        }
    }

    /// What a frame says; `None` when it is not known here.
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
    /// The frame that says it.
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

    /// What a frame says; `None` when it is not known here.
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
    // It fails only for maps whose keys are no text, and there are none.
    encode(kind, &serde_json::to_vec(value).unwrap_or_default(), &mut frame);
    frame
}

fn read<T: DeserializeOwned>(frame: &Frame) -> Option<T> {
    serde_json::from_slice(&frame.payload).ok()
}
