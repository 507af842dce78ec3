//! A followed stream on stdout, in three formats for people and programs.

use std::io::{self, Write};

use serde_json::json;
use serde_json::value::RawValue;

use super::AttachFormat;
use super::plain::plain_json;
use super::terminal::TerminalView;
use crate::chunk::Chunk;
use crate::engine::{Engine, Followed};

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
                    // A chunk type that this build does not know cannot be shown.
                    if let Ok(chunk) = serde_json::from_str::<Chunk>(&followed.event) {
                        view.of_run(followed.run_id);
                        view.show(&chunk)?;
                    }
                }
                Self::Ndjson => {
                    let event = RawValue::from_string(followed.event.clone())?;
                    let (seq, at, run_id) = (followed.seq, followed.at, followed.run_id);
                    let line = json!({"seq": seq, "at": at, "run_id": run_id, "event": event}).to_string();
                    writeln!(out, "{}", plain_json(&line))?;
                }
                Self::Sse => {
                    if let Some(seq) = followed.seq {
                        writeln!(out, "id: {seq}")?;
                    }
                    write!(out, "data: {}\n\n", plain_json(&followed.event))?;
                }
            }
        }
        out.flush()
    }

    /// The same for a session, whose runs answer several messages: each message is shown before its answer.
    pub(super) async fn write_conversation(&mut self, engine: &Engine, events: &[Followed]) -> anyhow::Result<()> {
        for followed in events {
            if let Self::Text(view) = self
                && matches!(serde_json::from_str(&followed.event), Ok(Chunk::Start { .. }))
            {
                let question = engine.question_of_run(followed.run_id).await?;
                view.question(&question)?;
            }
            self.write(std::slice::from_ref(followed))?;
        }
        Ok(())
    }

    /// The end of a run's stream.
    pub(super) fn end(&mut self) -> io::Result<()> {
        match self {
            Self::Sse => io::stdout().write_all(b"data: [DONE]\n\n"),
            Self::Text(_) | Self::Ndjson => Ok(()),
        }
    }
}
