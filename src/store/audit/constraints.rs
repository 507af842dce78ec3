//! Evaluates the CHECK constraints of a table on its rows.

use sqlx::{AssertSqlSafe, SqliteConnection};

use crate::audit::{Finding, MOST_FINDINGS};

/// The rows of a table that violate a CHECK in its CREATE statement `sql`, which is one of ours.
pub(super) async fn broken(conn: &mut SqliteConnection, table: &str, sql: &str) -> Result<Vec<Finding>, sqlx::Error> {
    let checks = checks_in(sql);
    if checks.is_empty() {
        return Ok(Vec::new());
    }
    // One pass over the rows, whatever the number of constraints. A CHECK that evaluates to NULL holds.
    let cases: String =
        checks.iter().enumerate().map(|(number, check)| format!(" WHEN NOT ({check}) THEN {number}")).collect();
    let row = if sql.contains("WITHOUT ROWID") { "'?'" } else { "rowid" };
    let limit = MOST_FINDINGS + 1;
    let question = format!(
        "SELECT * FROM (SELECT CAST({row} AS TEXT), CASE{cases} END AS broken FROM {table}) WHERE broken IS NOT NULL LIMIT {limit}"
    );
    let rows: Vec<(String, i64)> = sqlx::query_as(AssertSqlSafe(question)).fetch_all(conn).await?;
    let finding = |(row, number): (String, i64)| {
        let check = usize::try_from(number).ok().and_then(|number| checks.get(number)).copied().unwrap_or_default();
        let check = check.split_whitespace().collect::<Vec<_>>().join(" ");
        Finding::new(
            format!("row {row} of {table}"),
            format!("it breaks CHECK ({check}), so that no command can open the file to write"),
        )
    };
    Ok(rows.into_iter().map(finding).collect())
}

/// The conditions of all CHECK constraints in a statement.
fn checks_in(sql: &str) -> Vec<&str> {
    let mut checks = Vec::new();
    let mut rest = sql;
    while let Some(at) = next_outside_quotes(rest, |text| starts_with_word(text, "CHECK")) {
        rest = &rest[at + "CHECK".len()..];
        let inside = rest.trim_start();
        let Some(inside) = inside.strip_prefix('(') else { continue };
        let mut depth = 1;
        let end = next_outside_quotes(inside, |text| {
            depth += match text.as_bytes().first() {
                Some(b'(') => 1,
                Some(b')') => -1,
                _ => 0,
            };
            depth == 0
        });
        let Some(end) = end else { break };
        checks.push(&inside[..end]);
        rest = &inside[end..];
    }
    checks
}

/// The first position outside of literals, quoted names and comments where `is_it` matches.
fn next_outside_quotes(sql: &str, mut is_it: impl FnMut(&str) -> bool) -> Option<usize> {
    let mut at = 0;
    while at < sql.len() {
        let rest = &sql[at..];
        let skipped = match rest.as_bytes() {
            [b'\'', ..] => rest[1..].find('\'').map(|end| end + 2),
            [b'"', ..] => rest[1..].find('"').map(|end| end + 2),
            [b'-', b'-', ..] => rest.find('\n'),
            [b'/', b'*', ..] => rest.find("*/").map(|end| end + 2),
            _ if is_it(rest) => return Some(at),
            _ => rest.chars().next().map(char::len_utf8),
        };
        at += skipped?;
    }
    None
}

/// Whether `text` begins with an SQL keyword. The characters before it are not checked: no name in our schema ends in such a
/// word.
fn starts_with_word(text: &str, word: &str) -> bool {
    let begins = text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
    begins && !text[word.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_found_among_texts_and_comments() {
        let sql = "CREATE TABLE t (a TEXT CHECK (length(a) BETWEEN 1 AND (2)), -- CHECK (no)\n b CHECK(b <> ')' OR b = ''),
            c TEXT DEFAULT 'CHECK (no)' /* CHECK (no) */, \"CHECK (no)\" INTEGER, checked INTEGER, CHECK ((a IS NULL) = (b IS NULL)))";
        assert_eq!(checks_in(sql), ["length(a) BETWEEN 1 AND (2)", "b <> ')' OR b = ''", "(a IS NULL) = (b IS NULL)"]);
    }

    #[test]
    fn every_constraint_of_the_schema_is_found() {
        for migration in super::super::super::migrations().get_migrations() {
            let sql = migration.sql().unwrap_or_default();
            let lines = sql.lines().map(|line| line.split("--").next().unwrap_or_default());
            let named = lines.map(|line| line.matches("CHECK (").count()).sum::<usize>();
            assert_eq!(checks_in(sql).len(), named, "{migration}");
        }
    }
}
