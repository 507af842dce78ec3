//! An agent's program and its working directory: where they are, and what to tell the user if they are missing.

use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};

use crate::agent::ProcessSpec;
use crate::catalogue::KnownAgent;

/// What is missing to start an agent in a directory, as far as it can be known before there is a message.
pub fn what_is_missing(spec: &ProcessSpec, dir: &Path) -> Option<String> {
    find_program(spec, dir).err()
}

/// Checks that a directory can be worked in.
///
/// # Errors
/// It is not a directory, does not exist, or cannot be accessed; the text ends with `remedy`.
pub fn check_directory(dir: &Path, found: io::Result<Metadata>, remedy: &str) -> Result<(), String> {
    let dir = dir.display();
    match found {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(format!("{dir} is no directory: {remedy}")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(format!("the directory {dir} is not there: create it, or {remedy}"))
        }
        Err(error) => Err(format!(
            "the directory {dir} cannot be looked at ({error}): let the user of this process into the directories above it, \
             or {remedy}"
        )),
    }
}

/// The directories on a `PATH` that this process may not search: a program that was not found may be there.
pub(crate) fn unseen_on_path(path: &OsStr, dir: &Path) -> String {
    let unseen = std::env::split_paths(path).filter(|entry| {
        let looked = dir.join(entry).join(".").metadata();
        looked.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    });
    let unseen: Vec<_> = unseen.map(|entry| entry.display().to_string()).collect();
    match unseen.is_empty() {
        true => String::new(),
        false => format!(" (this process may not look into {} on PATH)", unseen.join(", ")),
    }
}

/// An agent's program; none if only the turn determines which it is.
pub(crate) fn find_program(spec: &ProcessSpec, dir: &Path) -> Result<Option<PathBuf>, String> {
    let program = spec.command.first().map_or("", String::as_str);
    check_directory(dir, dir.metadata(), "correct `dir` of the workspace")?;
    if program.contains('{') || spec.env.get("PATH").is_some_and(|path| path.contains('{')) {
        return Ok(None);
    }
    let path = spec.env.get("PATH").map(OsString::from).or_else(|| std::env::var_os("PATH"));
    let found = which::which_in(program, path.as_ref(), dir);
    found.map(Some).map_err(|_| match dir.join(program).try_exists() {
        Err(error) if program.contains('/') => format!("the program {program} cannot be looked at ({error})"),
        _ => {
            let unseen = path.map_or_else(String::new, |path| unseen_on_path(&path, dir));
            format!("the program {program} was not found on PATH, or must not be executed{unseen}")
        }
    })
}

/// How to install the program of a known agent, as the end of a sentence.
pub(crate) fn how_to_install(program: &str) -> String {
    KnownAgent::of_program(program).map_or_else(String::new, |known| format!(" with `{}`", known.install))
}
