//! A followed stream on stdout, in the three forms that a person or a program may want.

use std::io::{self, Write};

use serde_json::json;
use serde_json::value::RawValue;

use super::AttachFormat;
use super::terminal::TerminalView;
use crate::chunk::Chunk;
use crate::engine::Followed;

/// Writes events as they come.
pub(super) enum StreamOutput {
    Text(TerminalView<io::Stdout>),
    Ndjson,
    Sse,
}

impl StreamOutput {
    pub(super) fn new(format: AttachFormat) -> Self {
        match format {
            AttachFormat::Text => Self::Text(TerminalView::stdout()),
            AttachFormat::Ndjson => Self::Ndjson,
            AttachFormat::Sse => Self::Sse,
        }
    }

    pub(super) fn write(&mut self, events: &[Followed]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        for followed in events {
            match self {
                Self::Text(view) => {
                    // A chunk that this build does not know is nothing that it could show.
                    if let Ok(chunk) = serde_json::from_str::<Chunk>(&followed.event) {
                        view.show(&chunk)?;
                    }
                }
                Self::Ndjson => {
                    let event = RawValue::from_string(followed.event.clone())?;
                    let (seq, at, run_id) = (followed.seq, followed.at, followed.run_id);
                    writeln!(out, "{}", json!({"seq": seq, "at": at, "run_id": run_id, "event": event}))?;
                }
                Self::Sse => {
                    if let Some(seq) = followed.seq {
                        writeln!(out, "id: {seq}")?;
                    }
                    write!(out, "data: {}\n\n", followed.event)?;
                }
            }
        }
        out.flush()
    }

    /// The end of a run's stream.
    pub(super) fn end(&mut self) -> io::Result<()> {
        match self {
            Self::Sse => io::stdout().write_all(b"data: [DONE]\n\n"),
            Self::Text(_) | Self::Ndjson => Ok(()),
        }
    }
}
