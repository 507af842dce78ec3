//! An audit: what was checked, and what is wrong with it.
//!
//! Always: a list of findings is bounded; `more` says that it was truncated.

use serde::Serialize;

/// Maximum number of findings listed by one check.
pub const MOST_FINDINGS: usize = 20;

/// The results of a series of checks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Audit {
    /// The checks, in the order in which they were made.
    pub checks: Vec<Check>,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was checked, in a word.
    pub name: &'static str,
    /// Its result.
    pub verdict: Verdict,
    /// What is wrong; at most [`MOST_FINDINGS`].
    pub findings: Vec<Finding>,
    /// Whether there are more findings than are listed.
    pub more: bool,
    /// What to do about it; none when the verdict is `ok`.
    pub advice: Option<&'static str>,
}

/// The verdict of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// All is well.
    Ok,
    /// Nothing is broken, but an operator should have a look.
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
    /// A finding about `subject`.
    pub fn new(subject: impl ToString, detail: impl Into<String>) -> Self {
        Self { subject: subject.to_string(), detail: detail.into() }
    }
}

impl Check {
    /// A check with its findings; if there are any, its verdict is `severity` and it carries `advice`.
    pub fn new(name: &'static str, severity: Verdict, advice: &'static str, mut findings: Vec<Finding>) -> Self {
        let more = findings.len() > MOST_FINDINGS;
        findings.truncate(MOST_FINDINGS);
        let is_wrong = !findings.is_empty();
        let verdict = if is_wrong { severity } else { Verdict::Ok };
        Self { name, verdict, findings, more, advice: is_wrong.then_some(advice) }
    }
}

impl Audit {
    /// The worst verdict of all checks.
    pub fn verdict(&self) -> Verdict {
        self.checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Ok)
    }

    /// All findings, each with the name of its check.
    pub fn findings(&self) -> impl Iterator<Item = (&'static str, &Finding)> {
        self.checks.iter().flat_map(|check| check.findings.iter().map(|finding| (check.name, finding)))
    }
}
