//! An audit: what was looked at, and what is wrong with it.
//!
//! Always: a list of findings is bounded; `more` says that it was cut.

use serde::Serialize;

/// Most findings that one check names.
pub const MOST_FINDINGS: usize = 20;

/// What some checks found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// The checks, in the order in which they were made.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at, in a word.
    pub name: &'static str,
    /// What came of it.
    pub verdict: Verdict,
    /// What is wrong; at most [`MOST_FINDINGS`].
    pub findings: Vec<Finding>,
    /// There is more of it than is named.
    pub more: bool,
    /// What to do about it; none when all is well.
    pub advice: Option<&'static str>,
}

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// All is well.
    Ok,
    /// Nothing is broken, but somebody should look.
    Warning,
    /// Something is wrong.
    Error,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is wrong with: an id, a path, a process.
    pub subject: String,
    /// What is wrong with it.
    pub detail: String,
}

impl Finding {
    /// Something that is wrong with this.
    pub fn new(subject: impl ToString, detail: impl Into<String>) -> Self {
        Self { subject: subject.to_string(), detail: detail.into() }
    }
}

impl Check {
    /// A check with what it found; of `severity` and with `advice` if that is anything.
    pub fn new(name: &'static str, severity: Verdict, advice: &'static str, mut findings: Vec<Finding>) -> Self {
        let more = findings.len() > MOST_FINDINGS;
        findings.truncate(MOST_FINDINGS);
        let is_wrong = !findings.is_empty();
        let verdict = if is_wrong { severity } else { Verdict::Ok };
        Self { name, verdict, findings, more, advice: is_wrong.then_some(advice) }
    }
}

impl Audit {
    /// The worst that any check came to.
    pub fn verdict(&self) -> Verdict {
        self.checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Ok)
    }

    /// All that is wrong, each with the name of its check.
    pub fn findings(&self) -> impl Iterator<Item = (&'static str, &Finding)> {
        self.checks.iter().flat_map(|check| check.findings.iter().map(|finding| (check.name, finding)))
    }
}
