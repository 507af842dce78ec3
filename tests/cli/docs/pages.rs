//! The pages of the documentation and their fenced blocks: each block is run or parsed by a test, or says above why it is
//! not.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The file with the test that runs or parses the blocks of a page in a language. In addition, `docs.rs` parses `toml` of every
/// page, and `docs/commands.rs` runs `sh`, with the `text` behind it, of the pages in [`RUN`].
const CHECKED: &[(&str, &str, &str)] = &[
    ("README.md", "sh", "tests/cli/service/readme.rs"),
    ("README.md", "tsx", "tests/clients/checks/readme.mjs"),
    ("README.md", "ts", "tests/clients/checks/readme.mjs"),
    ("docs/config.md", "text", "tests/cli/docs.rs"),
    ("docs/http.md", "js", "tests/clients/checks/readme.mjs"),
    ("docs/sql.md", "sh", "tests/cli/docs.rs"),
    ("docs/sql.md", "sql", "tests/cli/docs.rs"),
    ("docs/sql.md", "text", "tests/cli/docs.rs"),
];

/// The pages whose `sh` blocks are run. A `text` block after one has lines of its output, in order; `…` matches anything, and
/// white space matches any white space.
pub const RUN: [&str; 7] = [
    "docs/agents.md",
    "docs/howto/backup.md",
    "docs/howto/front-end.md",
    "docs/howto/own-agent.md",
    "docs/howto/permissions.md",
    "docs/operations.md",
    "docs/tutorial.md",
];

/// Words used in place of a sentence's real subject.
const BANNED: [&str; 3] = [concat!("who", "ever"), concat!("some", "body"), concat!("no", "body")];

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files below a directory with this ending, except what is built or installed.
fn files(dir: &Path, extension: &str, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && name != "node_modules" && name != ".git" {
                files(&path, extension, into);
            }
        } else if name.ends_with(extension) {
            into.push(path);
        }
    }
}

/// The path of each page from the root, and its text.
pub fn pages() -> Vec<(String, String)> {
    let mut all = vec![root().join("README.md"), root().join("CONTRIBUTING.md"), root().join("CHANGELOG.md")];
    files(&root().join("docs"), ".md", &mut all);
    all.sort();
    let name = |path: &Path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    all.into_iter().map(|path| (name(&path), fs::read_to_string(&path).unwrap())).collect()
}

/// A fenced block.
pub struct Block {
    pub language: String,
    pub text: String,
    pub line: usize,
    /// The reason why no test runs it.
    pub not_run: Option<String>,
}

pub fn blocks(page: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut before = "";
    let mut lines = page.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            let indent = line.len() - line.trim_start().len();
            let mut text = String::new();
            for (_, line) in lines.by_ref().take_while(|(_, line)| line.trim() != "```") {
                text.push_str(line.get(indent..).unwrap_or_default());
                text.push('\n');
            }
            let not_run = before.trim().strip_prefix("<!-- not run: ").and_then(|it| it.strip_suffix(" -->"));
            let not_run = not_run.map(str::to_owned);
            found.push(Block { language: language.to_owned(), text, line: number + 1, not_run });
        }
        before = line;
    }
    found
}

#[test]
fn every_block_is_run_or_says_why_not() {
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for (name, page) in pages() {
        for block in blocks(&page) {
            let language = block.language.as_str();
            let checked = CHECKED.iter().position(|(page, of, _)| *page == name && *of == language);
            let by_all = language == "toml" || (RUN.contains(&name.as_str()) && ["sh", "text"].contains(&language));
            match block.not_run {
                Some(reason) if reason.len() < 8 => wrong.push(format!("{name}:{}: why is it not run?", block.line)),
                Some(_) => {}
                None if checked.is_none() && !by_all => {
                    wrong.push(format!(
                        "{name}:{}: no test runs it, and no <!-- not run: REASON --> is above it",
                        block.line
                    ));
                }
                None => used.extend(checked),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (index, (name, language, test)) in CHECKED.iter().enumerate() {
        assert!(used.contains(&index), "{name} has no block of {language}");
        let source = fs::read_to_string(root().join(test)).unwrap();
        assert!(source.contains(name), "{test} does not read {name}");
    }
}

#[test]
fn sentences_name_their_subjects() {
    let mut markdown = Vec::new();
    files(root(), ".md", &mut markdown);
    assert!(markdown.len() > 20, "the pages were not found");
    let mut wrong = Vec::new();
    for path in markdown {
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            let line = line.to_lowercase();
            // The name of a test counts as one word.
            let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            let found: Vec<_> = words.filter(|word| BANNED.contains(word)).collect();
            if !found.is_empty() {
                wrong.push(format!("{}:{}: {found:?}", path.display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "name the subject (the worker, the reader, the operator, …): {wrong:#?}");
}

/// The link targets of a page: its headings and anchors.
pub fn anchors(page: &str) -> BTreeSet<String> {
    let slug = |heading: &str| -> String {
        let kept =
            heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
        kept.replace(' ', "-")
    };
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let headings = headings.map(|line| slug(line.trim_start_matches('#').trim()));
    let named = page.split("<a id=\"").skip(1).filter_map(|rest| rest.split_once('"')).map(|(id, _)| id.to_owned());
    headings.chain(named).collect()
}
