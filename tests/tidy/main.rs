//! The structure of the code base: layers import only what is below them, every file says what it is for, SQL stays in the
//! store, and no file grows into two.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed expectation is a failed test")]

mod cycles;

use std::fs;
use std::path::{Path, PathBuf};

/// A longer file usually holds a second noun.
const MAX_LINES: usize = 450;

/// The files of the library and its binary.
fn sources() -> Vec<(PathBuf, String)> {
    let files = files_in("src");
    assert!(files.len() > 40, "the sources were not found");
    files
}

/// Those, and the packages built with them.
fn all_sources() -> Vec<(PathBuf, String)> {
    let beside = ["torture", "testkit"].into_iter().flat_map(|dir| {
        let files = files_in(dir);
        assert!(!files.is_empty(), "{dir}/ was not found");
        files
    });
    sources().into_iter().chain(beside).collect()
}

/// All of those, and the tests.
fn all_files() -> Vec<(PathBuf, String)> {
    all_sources().into_iter().chain(files_in("tests")).collect()
}

fn files_in(dir: &str) -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, into: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                into.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut files = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(dir), &mut files);
    files
}

/// The floor (layer) of a top-level module. A file may import from its own module and from floors below.
fn floor(module: &str) -> (u8, &str) {
    match module {
        "process" => (1, "process"),
        "store" => (1, "store"),
        "driver" => (2, "driver"),
        "engine" => (3, "engine"),
        "http" => (4, "http"),
        "cli" => (5, "cli"),
        "telemetry" => (5, "telemetry"),
        "main" => (6, "main"),
        // Nouns may import each other; `config` is a noun that is handed down.
        noun => (0, noun),
    }
}

fn module_of(path: &Path) -> String {
    let relative = path.strip_prefix(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap();
    let first = relative.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// `use crate::a::…`, `use crate::{a, b::…}` and `crate::a::…` anywhere in code.
fn imports(source: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = Vec::new();
    for (at, _) in source.match_indices("crate::") {
        let rest = &source[at + "crate::".len()..];
        if source[..at].ends_with('$') || source[..at].ends_with('_') {
            continue;
        }
        match rest.strip_prefix('{') {
            Some(group) => {
                let mut depth = 0;
                let mut start = true;
                for (index, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        c if start && c.is_alphabetic() => {
                            found.push(word(&group[index..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
            None => found.push(word(rest)),
        }
    }
    found
}

#[test]
fn floors_import_only_what_is_below_them() {
    let mut wrong = Vec::new();
    for (path, source) in sources() {
        let module = module_of(&path);
        if module == "lib" {
            continue;
        }
        let (own_floor, own) = floor(&module);
        for import in imports(&source) {
            let (floor, name) = floor(&import);
            let same_floor_is_fine = own == name || own_floor == 0 || own_floor == 5;
            // Surfaces see the engine and the nouns, not what is below the engine.
            let skips_the_engine = own_floor >= 4 && (1..3).contains(&floor);
            let driver_stores = own == "driver" && name == "store";
            if floor > own_floor || (floor == own_floor && !same_floor_is_fine) || skips_the_engine || driver_stores {
                wrong.push(format!("{}: {module} imports {import}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Imports that still close a cycle. The list may only shrink.
const KNOWN_CYCLES: &[(&str, &str)] = &[
    // A parent has fields whose types are its children's, and they have methods on it.
    ("engine/drive.rs", "engine/drive/prompts.rs"),
    ("engine/feed.rs", "engine/feed/live.rs"),
    ("engine/feed.rs", "engine/feed/pause.rs"),
    ("engine/feed.rs", "engine/feed/pieces.rs"),
    ("engine/mod.rs", "engine/executing.rs"),
    ("engine/mod.rs", "engine/supervisor.rs"),
    ("engine/turn.rs", "engine/turn/blocks.rs"),
    ("engine/turn.rs", "engine/turn/tools.rs"),
    ("http/mod.rs", "http/roles.rs"),
    // The bridge to an ACP agent: its parts share one state and call each other.
    ("driver/acp/bridge/agent.rs", "driver/acp/bridge/client/mod.rs"),
    ("driver/acp/bridge/agent.rs", "driver/acp/bridge/process.rs"),
    ("driver/acp/bridge/agent.rs", "driver/acp/bridge/session.rs"),
    ("driver/acp/bridge/agent.rs", "driver/acp/bridge/turn.rs"),
    ("driver/acp/bridge/turn.rs", "driver/acp/bridge/client/mod.rs"),
    ("driver/acp/bridge/turn.rs", "driver/acp/bridge/client/terminals.rs"),
    ("driver/acp/bridge/turn.rs", "driver/acp/bridge/session.rs"),
];

#[test]
fn imports_form_no_cycle() {
    let sources = sources();
    let files = cycles::Crate::of_src(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &sources);
    let (cycles, gone) = files.cycles(KNOWN_CYCLES);
    assert!(cycles.is_empty(), "files that import each other: {cycles:#?}");
    assert!(gone.is_empty(), "no longer an import, take it off the list: {gone:#?}");
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<_> =
        all_files().into_iter().filter(|(_, source)| !source.starts_with("//! ")).map(|(path, _)| path).collect();
    assert!(silent.is_empty(), "without a `//!` header: {silent:#?}");
}

#[test]
fn sql_stays_in_the_store() {
    let is_store = |path: &Path| path.starts_with(concat!(env!("CARGO_MANIFEST_DIR"), "/src/store"));
    let stray: Vec<_> = all_sources()
        .into_iter()
        .filter(|(path, source)| !is_store(path) && source.contains("sqlx::"))
        .map(|(path, _)| path)
        .collect();
    assert!(stray.is_empty(), "{stray:#?}");
}

#[test]
fn no_file_grows_into_two() {
    let long: Vec<_> = all_files()
        .into_iter()
        .filter(|(path, source)| source.lines().count() > MAX_LINES && !path.ends_with("tests.rs"))
        .map(|(path, source)| (path, source.lines().count()))
        .collect();
    assert!(long.is_empty(), "longer than {MAX_LINES} lines: {long:#?}");
}

#[test]
fn the_floors_are_told_apart() {
    let source =
        "use crate::store::{Tx, event};\nuse crate::{id::RunId, engine, run::{self, Run}};\ncrate::http::serve()";
    assert_eq!(imports(source), ["store", "id", "engine", "run", "http"]);
}
