//! The agents' own records: each agent writes a line to a file of its own before it writes the output to the engine.
//!
//! Always: every word of an agent begins with [`MARK`], its pid and a number, so that no two words are alike, and text that the
//! engine adds in an agent's name can be told apart.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use mainstay::chunk::Chunk;
use mainstay::engine::turn::MAX_DELTA_BYTES;

/// Begins every word of an agent, and nothing that the engine writes by itself.
pub(super) const MARK: char = '#';

/// One thing that an agent said.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Said {
    Text(String),
    Reasoning(String),
    ToolStarted { id: String, input: String },
    ToolFinished { id: String, output: String },
    ToolFailed { id: String, error: String },
}

impl Said {
    /// The agent's words in a stored chunk: several if the agent said them while its connection was broken; none for a chunk that
    /// only frames others.
    pub(super) fn of_chunk(chunk: Chunk) -> Vec<Self> {
        let said = match chunk {
            Chunk::TextDelta { delta, .. } => return words_of(&delta).map(Self::Text).collect(),
            Chunk::ReasoningDelta { delta, .. } => return words_of(&delta).map(Self::Reasoning).collect(),
            Chunk::ToolInputAvailable { tool_call_id: id, input, .. } => {
                Self::ToolStarted { id, input: words_in(&input) }
            }
            Chunk::ToolOutputAvailable { tool_call_id: id, output, .. } => {
                Self::ToolFinished { id, output: words_in(&output) }
            }
            Chunk::ToolOutputError { tool_call_id: id, error_text: error, .. } => {
                Self::ToolFailed { id, error: first_word(&error) }
            }
            _ => return Vec::new(),
        };
        said.words().starts_with(MARK).then_some(said).into_iter().collect()
    }

    /// Without the trailing space, which not every driver keeps.
    fn trimmed(self) -> Self {
        match self {
            Self::Text(word) => Self::Text(word.trim_end().to_owned()),
            Self::Reasoning(word) => Self::Reasoning(word.trim_end().to_owned()),
            tool => tool,
        }
    }

    /// Whether this is a failure where the agent reported success: tool results after a cancel are not trusted.
    pub(super) fn distrusts(&self, said: &Self) -> bool {
        match (self, said) {
            (Self::ToolFailed { id, error }, Self::ToolFinished { id: of, output }) => (id, error) == (of, output),
            _ => false,
        }
    }

    fn words(&self) -> &str {
        match self {
            Self::Text(words) | Self::Reasoning(words) => words,
            Self::ToolStarted { input, .. } => input,
            Self::ToolFinished { output, .. } => output,
            Self::ToolFailed { error, .. } => error,
        }
    }

    /// Shortened for a report.
    pub(super) fn shown(&self) -> String {
        self.words().chars().take(40).collect()
    }
}

/// The chunks, with deltas of one long text joined again.
pub(super) fn joined(chunks: impl Iterator<Item = Chunk>) -> Vec<Chunk> {
    let (mut whole, mut is_cut) = (Vec::new(), false);
    for chunk in chunks {
        let bytes = match &chunk {
            Chunk::TextDelta { delta, .. } | Chunk::ReasoningDelta { delta, .. } => delta.len(),
            _ => 0,
        };
        match (whole.last_mut(), chunk) {
            (Some(Chunk::TextDelta { delta, .. }), Chunk::TextDelta { delta: more, .. })
            | (Some(Chunk::ReasoningDelta { delta, .. }), Chunk::ReasoningDelta { delta: more, .. })
                if is_cut =>
            {
                delta.push_str(&more);
            }
            (_, chunk) => whole.push(chunk),
        }
        // A text is split between characters, of up to four bytes.
        is_cut = bytes + 4 > MAX_DELTA_BYTES;
    }
    whole
}

/// The agent's words in the form that a driver gave them: drivers differ in how they store a tool's input and output, and
/// some nest them.
fn words_in(value: &Value) -> String {
    match value {
        Value::String(text) if text.starts_with(MARK) => first_word(text),
        Value::Array(items) => items.iter().map(words_in).find(|found| !found.is_empty()).unwrap_or_default(),
        Value::Object(map) => map.values().map(words_in).find(|found| !found.is_empty()).unwrap_or_default(),
        _ => String::new(),
    }
}

/// The agent's words in a text, without trailing spaces.
fn words_of(text: &str) -> impl Iterator<Item = String> {
    text.split(MARK).skip(1).map(|word| format!("{MARK}{}", word.trim_end()))
}

fn first_word(text: &str) -> String {
    text.split_whitespace().next().unwrap_or_default().to_owned()
}

/// A line of a record.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Line {
    Began(Identity),
    /// Another agent held the same session or slot.
    Met(String),
    Said(Said),
    /// Its last word was not heard: the connection of the turn's follower was broken.
    Unheard,
    /// It cut that connection.
    Cut,
    /// It asks whether it may use a tool, at this time in milliseconds, and waits for the answer.
    Asked(i64),
    /// It got the answer.
    Answered,
    /// The last line, if the agent ends by itself.
    Ended(u8),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) run: String,
    pub(super) attempt: i64,
    pub(super) session: String,
    pub(super) slot: String,
    pub(super) pid: u32,
    pub(super) started_at_ticks: u64,
}

/// Writes the record of an agent.
pub(super) struct RecordWriter {
    file: File,
    agent: String,
}

impl RecordWriter {
    pub(super) fn create(dir: &Path, agent: &Identity) -> io::Result<Self> {
        let path = dir.join(format!("{}.{}.{}", agent.run, agent.pid, agent.attempt));
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let mut writer = Self { file, agent: format!("run {}, pid {}", agent.run, agent.pid) };
        writer.write(&Line::Began(agent.clone()))?;
        Ok(writer)
    }

    /// The run and the pid of the agent, as other agents and people read them.
    pub(super) fn agent(&self) -> &str {
        &self.agent
    }

    pub(super) fn write(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        // One write: an agent is killed before it or after it.
        self.file.write_all(text.as_bytes())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) agent: Identity,
    pub(super) met: Vec<String>,
    pub(super) said: Vec<Said>,
    /// Indexes in `said` of words that were not heard when they were said.
    pub(super) unheard: BTreeSet<usize>,
    /// How often the connection of the turn's follower was cut.
    pub(super) cuts: u64,
    /// When it asked a question that got no answer.
    pub(super) asked: Option<i64>,
    /// How many of its questions were answered.
    pub(super) answers: u64,
    /// Its exit status; none if it was killed.
    pub(super) ended: Option<u8>,
}

impl Record {
    /// The record of an agent that has said nothing so far.
    pub(super) fn of(agent: Identity) -> Self {
        let (met, said, unheard) = Default::default();
        Self { agent, met, said, unheard, cuts: 0, asked: None, answers: 0, ended: None }
    }

    /// None if the agent was killed before its first line.
    fn read(text: &str) -> Result<Option<Self>, serde_json::Error> {
        let mut lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let Some(Line::Began(agent)) = lines.next().map(serde_json::from_str).transpose()? else { return Ok(None) };
        let mut record = Self::of(agent);
        for line in lines {
            match serde_json::from_str(line)? {
                Line::Began(agent) => record.met.push(format!("record with pid {}", agent.pid)),
                Line::Met(place) => record.met.push(place),
                Line::Said(said) => record.said.push(said.trimmed()),
                Line::Unheard => drop(record.unheard.insert(record.said.len().saturating_sub(1))),
                Line::Cut => record.cuts += 1,
                Line::Asked(at) => record.asked = Some(at),
                Line::Answered => (record.asked, record.answers) = (None, record.answers + 1),
                Line::Ended(code) => record.ended = Some(code),
            }
        }
        Ok(Some(record))
    }
}

/// The records of all agents, by run.
#[derive(Default)]
pub(super) struct Records(BTreeMap<String, Vec<PathBuf>>);

impl Records {
    pub(super) fn list(dir: &Path) -> io::Result<Self> {
        let mut records = Self::default();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some((run, _)) = name.split_once('.') {
                records.0.entry(run.to_owned()).or_default().push(entry.path());
            }
        }
        Ok(records)
    }

    /// The agents of a run, in the order of its attempts.
    pub(super) fn of(&self, run: &str) -> anyhow::Result<Vec<Record>> {
        let mut records = Vec::new();
        for path in self.0.get(run).into_iter().flatten() {
            records.extend(Record::read(&fs::read_to_string(path)?)?);
        }
        records.sort_by_key(|record| (record.agent.attempt, record.agent.started_at_ticks));
        Ok(records)
    }

    /// The number of records.
    pub(super) fn count(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent() -> Identity {
        let (run, session, slot) = ("r".into(), "s".into(), "p".into());
        Identity { run, attempt: 1, session, slot, pid: 7, started_at_ticks: 1 }
    }

    #[test]
    fn long_words_that_were_cut_are_joined() {
        let delta = |delta: String| Chunk::TextDelta { id: "t".into(), delta };
        let long = || delta("é".repeat(MAX_DELTA_BYTES / 2));
        let chunks = [delta("a".into()), delta("b".into()), long(), long(), delta("c".into()), delta("d".into())];
        let lengths: Vec<_> = joined(chunks.into_iter()).iter().map(|chunk| chunk.to_json().len()).collect();
        let frame = delta(String::new()).to_json().len();
        assert_eq!(lengths, [frame + 1, frame + 1, frame + 2 * MAX_DELTA_BYTES + 1, frame + 1]);
    }

    #[test]
    fn words_that_come_together_are_told_apart() {
        let delta = |delta: &str| Chunk::TextDelta { id: "t".into(), delta: delta.into() };
        let text = |word: &str| Said::Text(word.to_owned());
        assert_eq!(Said::of_chunk(delta("#7.0 ")), [text("#7.0")]);
        assert_eq!(Said::of_chunk(delta(" #7.0 #7.1 xx#7.2 ")), [text("#7.0"), text("#7.1 xx"), text("#7.2")]);
        assert_eq!(Said::of_chunk(delta("by another")), []);
    }

    #[test]
    fn unheard_words_are_known() {
        let lines =
            [Line::Said(Said::Text("#7.0 ".into())), Line::Cut, Line::Said(Said::Text("#7.1 ".into())), Line::Unheard];
        let lines: Vec<_> = lines.iter().map(|line| serde_json::to_string(line).unwrap()).collect();
        let began = serde_json::to_string(&Line::Began(agent())).unwrap();
        let record = Record::read(&format!("{began}\n{}\n", lines.join("\n"))).unwrap().unwrap();
        assert_eq!((record.unheard, record.cuts), (BTreeSet::from([1]), 1));
    }

    #[test]
    fn a_line_that_was_cut_by_a_kill_was_not_said() {
        let began = serde_json::to_string(&Line::Began(agent())).unwrap();
        let said = serde_json::to_string(&Line::Said(Said::Text("#7.0 ".into()))).unwrap();
        let record = Record::read(&format!("{began}\n{said}\n{}", &said[..9])).unwrap().unwrap();
        assert_eq!((record.said, record.ended), (vec![Said::Text("#7.0".into())], None));
        assert_eq!(Record::read(&began[..9]).unwrap(), None);
    }
}
