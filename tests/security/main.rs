//! Attacks on a real daemon, and what `docs/security.md` promises about each: each row of its table names a test here.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed expectation is a failed test")]

mod directories;
mod other_user;
mod own_answer;
mod page;
mod roles;
mod scene;
mod secrets;
mod token;
#[path = "../faults/user.rs"]
#[allow(dead_code, reason = "it is made for the tests of faults")]
mod user;

/// The table of `docs/security.md` names tests that are here.
#[test]
fn every_attack_of_the_table_has_its_test() {
    const DOCS: &str = include_str!("../../docs/security.md");
    let dir = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/security"));
    let rows: Vec<_> = DOCS.lines().filter_map(|line| line.rsplit_once("| `")?.1.split_once("`: `")).collect();
    assert!(rows.len() > 10, "the table was not found");
    for (file, rest) in rows {
        let test = rest.split('`').next().unwrap();
        let source = std::fs::read_to_string(dir.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(source.contains(&format!("fn {test}(")), "{file} has no test {test}");
    }
}
