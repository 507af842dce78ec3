//! Sessions as a tree: each below the one that it works for.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;

use super::cell::{or_dash, relative, used};
use super::columns::Column;
use super::table::{Listed, Sight};
use crate::session::{Execution, Session};

/// A session and its depth in the tree.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Branch {
    session: Session,
    #[serde(skip)]
    depth: usize,
}

impl Branch {
    /// Orders sessions as a tree: each comes after the one that it works for, otherwise the order is kept. A session whose parent
    /// is not in the list is a root.
    pub fn all_of(sessions: Vec<Session>) -> Vec<Self> {
        let there: HashSet<_> = sessions.iter().map(|session| session.id.clone()).collect();
        let mut below: BTreeMap<_, Vec<Session>> = BTreeMap::new();
        for session in sessions {
            let parent = session.spawned_by.clone().filter(|parent| there.contains(parent));
            below.entry(parent).or_default().push(session);
        }
        let (mut branches, mut waiting) = (Vec::new(), Vec::new());
        let roots = below.remove(&None).unwrap_or_default();
        waiting.extend(roots.into_iter().rev().map(|session| Self { session, depth: 0 }));
        while let Some(branch) = waiting.pop() {
            let (depth, children) = (branch.depth + 1, below.remove(&Some(branch.session.id.clone())));
            let children = children.unwrap_or_default().into_iter().rev();
            waiting.extend(children.map(|session| Self { session, depth }));
            branches.push(branch);
        }
        branches
    }
}

impl Listed for Branch {
    const COLUMNS: &'static [Column] = &[
        Column::id("SESSION"),
        Column::narrow("LABEL", 8).spare(),
        Column::whole("DOING"),
        Column::narrow("AGENT", 8),
        Column::whole("UPDATED"),
        Column::extra("USED").spare(),
        Column::narrow("PROGRESS", 12),
    ];

    fn cells(&self, sight: Sight) -> Vec<String> {
        let session = &self.session;
        let doing = match (session.execution, session.last_outcome) {
            (Execution::Idle, Some(outcome)) => outcome.as_str(),
            (execution, _) => execution.as_str(),
        };
        // The table trims blanks at the edge of a cell.
        let indent = "· ".repeat(self.depth);
        vec![
            format!("{indent}{}", sight.id(&session.id)),
            or_dash(session.label.clone()),
            doing.to_owned(),
            session.agent.to_string(),
            relative(session.updated_at, sight.now),
            or_dash(used(&session.usage)),
            or_dash(session.progress.clone()),
        ]
    }

    fn ids(&self) -> Vec<String> {
        self.session.ids()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::table::tests::session;

    #[test]
    fn each_session_stands_below_the_one_that_it_works_for() {
        let child = |id: &str, parent: &str| Session { spawned_by: Some(parent.parse().unwrap()), ..session(id, "t") };
        let sessions = vec![
            child("c", "b"),
            session("x", "t"),
            child("b", "a"),
            child("d", "a"),
            child("lone", "gone"),
            session("a", "t"),
        ];
        let tree: Vec<_> =
            Branch::all_of(sessions).into_iter().map(|one| (one.session.id.to_string(), one.depth)).collect();
        let tree: Vec<_> = tree.iter().map(|(id, depth)| (id.as_str(), *depth)).collect();
        assert_eq!(tree, [("x", 0), ("lone", 0), ("a", 0), ("b", 1), ("c", 2), ("d", 1)]);
    }
}
