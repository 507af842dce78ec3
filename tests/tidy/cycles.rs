//! Which file of `src/` imports which, and where such imports form a cycle.
//!
//! Each path counts that begins with `crate`, `super`, `self`, a child module or an imported module, in `use` and elsewhere in
//! code. It is followed through re-exports to the file that has the item. Of a parent's paths to its children only its `use`
//! counts: declaring, re-exporting and calling them is its purpose. Tests are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The path of a module below `crate`.
type Module = Vec<String>;

struct Source {
    /// Below `src/`.
    file: String,
    code: String,
    /// What its `pub use` exports, by last name.
    reexports: BTreeMap<String, Module>,
}

/// The files of a crate, by module.
pub struct Crate(BTreeMap<Module, Source>);

impl Crate {
    /// Files as (path below `src/`, text).
    pub fn new<'a>(files: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let is_test = |file: &str| file.split('/').any(|part| matches!(part, "tests" | "tests.rs" | "fixtures.rs"));
        let files = files.filter(|(file, _)| *file != "main.rs" && !is_test(file));
        let mut modules: BTreeMap<_, _> = files
            .map(|(file, text)| {
                let source = Source { file: file.to_owned(), code: code_of(text), reexports: BTreeMap::new() };
                (module_of(file), source)
            })
            .collect();
        let reexports: Vec<_> = modules.iter().map(|(module, source)| (module.clone(), uses(&source.code).1)).collect();
        for (module, paths) in reexports {
            if let Some(source) = modules.get_mut(&module) {
                source.reexports = paths.into_iter().filter_map(|path| Some((path.last()?.clone(), path))).collect();
            }
        }
        Self(modules)
    }

    /// The files of `src/`.
    pub fn of_src(src: &Path, sources: &[(std::path::PathBuf, String)]) -> Self {
        let below = |path: &Path| Some(path.strip_prefix(src).ok()?.to_str()?.to_owned());
        let files: Vec<_> = sources.iter().filter_map(|(path, text)| Some((below(path)?, text.as_str()))).collect();
        Self::new(files.iter().map(|(file, text)| (file.as_str(), *text)))
    }

    /// The module whose file has what a path names, seen from `from`; none if the path leaves the crate.
    fn resolve(&self, from: &[String], path: &[String], depth: usize) -> Option<Module> {
        let mut segments = path.iter().map(String::as_str).peekable();
        let mut at = match *segments.peek()? {
            "crate" => {
                segments.next();
                Module::new()
            }
            "self" => {
                segments.next();
                from.to_vec()
            }
            "super" => {
                let mut at = from.to_vec();
                while segments.next_if_eq(&"super").is_some() {
                    at.pop()?;
                }
                at
            }
            first if self.0.contains_key(&child(from, first)) => from.to_vec(),
            _ => return None,
        };
        for segment in segments {
            let below = child(&at, segment);
            if self.0.contains_key(&below) {
                at = below;
                continue;
            }
            let reexported = self.0.get(&at).and_then(|source| source.reexports.get(segment));
            return match reexported {
                Some(path) if depth < 8 => self.resolve(&at, path, depth + 1).or(Some(at)),
                _ => Some(at),
            };
        }
        Some(at)
    }

    /// The imports of each file.
    fn imports(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let mut found = BTreeMap::new();
        for (module, source) in &self.0 {
            let (mut paths, reexported) = uses(&source.code);
            let is_own = |path: &Module| self.resolve(module, path, 0).is_some_and(|to| to.starts_with(module));
            paths.extend(reexported.into_iter().filter(|path| !is_own(path)));
            let names: BTreeMap<_, _> = paths
                .iter()
                .filter(|path| self.resolve(module, path, 0).is_some_and(|to| to.last() == path.last()))
                .filter_map(|path| Some((path.last()?.clone(), path.clone())))
                .collect();
            let mut to: BTreeSet<_> = paths.iter().filter_map(|path| self.resolve(module, path, 0)).collect();
            for mut path in inline(&source.code) {
                if let Some(imported) = path.first().and_then(|first| names.get(first)) {
                    path.splice(..1, imported.iter().cloned());
                }
                to.extend(self.resolve(module, &path, 0).filter(|to| !to.starts_with(module)));
            }
            let others = to.iter().filter(|to| *to != module);
            let to = others.filter_map(|to| Some(self.0.get(to)?.file.as_str())).collect();
            found.insert(source.file.as_str(), to);
        }
        found
    }

    /// The groups of files each of which imports itself, directly or not, with the imports inside each group; `known` imports are
    /// left out. Then the known imports that no longer exist.
    pub fn cycles(&self, known: &[(&str, &str)]) -> (Vec<Vec<String>>, Vec<String>) {
        let mut imports = self.imports();
        let is_known = |from: &str, to: &str| known.contains(&(from, to));
        let gone = known.iter().filter(|(from, to)| !imports.get(from).is_some_and(|imports| imports.contains(to)));
        let gone = gone.map(|(from, to)| format!("{from} imports {to}")).collect();
        imports.iter_mut().for_each(|(from, to)| to.retain(|to| !is_known(from, to)));
        let reach: BTreeMap<_, _> = imports.keys().map(|file| (*file, reached(&imports, file))).collect();
        let mut seen = BTreeSet::new();
        let mut cycles = Vec::new();
        for file in imports.keys() {
            if !reach[file].contains(file) || seen.contains(file) {
                continue;
            }
            let group: BTreeSet<_> = reach[file].iter().filter(|other| reach[*other].contains(file)).copied().collect();
            seen.extend(group.iter().copied());
            let inside = |file: &&str| imports[file].intersection(&group).copied().collect::<Vec<_>>().join(", ");
            cycles.push(group.iter().map(|file| format!("{file} imports {}", inside(file))).collect());
        }
        (cycles, gone)
    }
}

fn reached<'a>(imports: &BTreeMap<&'a str, BTreeSet<&'a str>>, from: &str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<&str> = imports[from].iter().copied().collect();
    while let Some(file) = open.pop() {
        if reached.insert(file) {
            open.extend(imports[file].iter().copied());
        }
    }
    reached
}

fn child(of: &[String], name: &str) -> Module {
    let mut module = of.to_vec();
    module.push(name.to_owned());
    module
}

fn module_of(file: &str) -> Module {
    let path = file.trim_end_matches(".rs");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    if path == "lib" { Module::new() } else { path.split('/').map(str::to_owned).collect() }
}

/// A source without comments, strings and tests.
fn code_of(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut code = String::new();
    for line in text.lines() {
        let mut in_text = false;
        let mut kept = String::new();
        let mut chars = line.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '\\' if in_text => drop(chars.next()),
                '"' => in_text = !in_text,
                '/' if !in_text && chars.peek() == Some(&'/') => break,
                c if !in_text => kept.push(c),
                _ => {}
            }
        }
        code.push_str(&kept);
        code.push('\n');
    }
    code
}

/// The paths of its `use`, and those of its `pub use`.
fn uses(code: &str) -> (Vec<Module>, Vec<Module>) {
    let (mut private, mut public) = (Vec::new(), Vec::new());
    for (at, _) in code.match_indices("use ") {
        let before = code[..at].rsplit('\n').next().unwrap_or_default().trim();
        if !before.is_empty() && !before.starts_with("pub") {
            continue;
        }
        let tree = code[at + 4..].split(';').next().unwrap_or_default();
        expand(tree, &Module::new(), if before.is_empty() { &mut private } else { &mut public });
    }
    (private, public)
}

/// The paths of a tree like `a::{b, c::{self, D as E}}`.
fn expand(tree: &str, prefix: &[String], into: &mut Vec<Module>) {
    let (head, group) = match tree.split_once('{') {
        Some((head, rest)) => (head, rest.rsplit_once('}').map(|(group, _)| group)),
        None => (tree, None),
    };
    let mut path = prefix.to_vec();
    let head = head.split(" as ").next().unwrap_or_default();
    let words = head.split("::").map(str::trim).filter(|word| !word.is_empty() && *word != "*");
    path.extend(words.filter(|word| *word != "self" || prefix.is_empty()).map(str::to_owned));
    let Some(group) = group else { return into.push(path) };
    let (mut depth, mut start) = (0, 0);
    for (at, c) in group.char_indices().chain([(group.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !group[start..at].trim().is_empty() {
                    expand(&group[start..at], &path, into);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
}

/// Paths in code outside of `use`, without visibilities.
fn inline(code: &str) -> Vec<Module> {
    let mut found = Vec::new();
    let mut in_use = false;
    for line in code.lines() {
        let words: Vec<_> = line.split_whitespace().take(2).collect();
        in_use |= words.first() == Some(&"use")
            || words.first().is_some_and(|word| word.starts_with("pub")) && words.get(1) == Some(&"use");
        if in_use {
            in_use = !line.contains(';');
            continue;
        }
        let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        for path in line.split(|c| !is_word(c)).filter(|path| path.contains("::") && !path.starts_with("::")) {
            if !line.split(path).next().unwrap_or_default().ends_with("pub(in ") {
                found.push(path.split("::").filter(|word| !word.is_empty()).map(str::to_owned).collect());
            }
        }
    }
    found
}

#[test]
fn cycles_are_found_through_reexports_and_code() {
    let of = |files: &[(&str, &str)]| Crate::new(files.iter().copied()).cycles(&[]).0;
    let none: Vec<Vec<String>> = Vec::new();
    let parent = "mod a;\nmod b;\npub use self::a::A;\n";
    assert_eq!(of(&[("m/mod.rs", parent), ("m/a.rs", "use super::b::B;"), ("m/b.rs", "use crate::n::N;")]), none);
    assert_eq!(of(&[("m/mod.rs", parent), ("m/a.rs", "use super::b::B;"), ("m/b.rs", "// use super::A;")]), none);
    let both = [["m/a.rs imports m/b.rs", "m/b.rs imports m/a.rs"].map(str::to_owned).to_vec()];
    for b in ["use super::A;", "use crate::m::{A};", "fn f() { super::a::f() }", "use crate::m;\nfn f() -> m::A {}"] {
        let files = [("m/mod.rs", parent), ("m/a.rs", "use super::{b::{self, B}};"), ("m/b.rs", b)];
        let found = of(&files);
        assert!(found.iter().any(|cycle| cycle[0].contains("m/a.rs")), "{b}: {found:?}");
    }
    assert_eq!(of(&[("a.rs", "fn f() { crate::b::f() }"), ("b.rs", "use crate::a;")]).len(), 1);
    assert_eq!(of(&[("m/mod.rs", parent), ("m/a.rs", "use super::b;"), ("m/b.rs", "use super::A;")]), both);
    assert_eq!(of(&[("m.rs", "mod a;\nfn f() { a::f() }"), ("m/a.rs", "use super::g;")]), none);
    assert_eq!(of(&[("m.rs", "mod a;\nuse self::a::f;"), ("m/a.rs", "use super::g;")]).len(), 1);
}
