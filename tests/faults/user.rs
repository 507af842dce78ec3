//! Commands run by this user or by another one, and what they leave in a directory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Read-only commands that are tried on files of every kind. A session `s` exists.
pub fn commands_that_read() -> Vec<Vec<&'static str>> {
    let commands: [&[&str]; 14] = [
        &["sessions"],
        &["sessions", "--tree", "--json"],
        &["session", "s"],
        &["runs"],
        &["messages", "s"],
        &["slots"],
        &["workers"],
        &["backends"],
        &["permissions", "--all"],
        &["show", "s"],
        &["attach", "s"],
        &["agents"],
        &["doctor"],
        &["backup", "/proc/none"],
    ];
    commands.map(<[&str]>::to_vec).to_vec()
}

/// The program, in a directory and without Mainstay's environment variables.
pub fn mainstay(dir: &Path) -> Command {
    let mut command = testkit::command(env!("CARGO_BIN_EXE_mainstay"));
    command.current_dir(dir).stdin(Stdio::null());
    command
}

/// Runs the program in a directory as a user and group; none if that is not possible.
pub fn as_user(uid: u32, gid: u32) -> Option<impl Fn(&Path, &[&str]) -> Output> {
    let command = move |dir: &Path| {
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()]);
        command.arg(env!("CARGO_BIN_EXE_mainstay")).current_dir(dir).stdin(Stdio::null()).env("HOME", "/nonexistent");
        command
    };
    let tried = command(Path::new("/")).arg("--version").output().ok()?;
    tried.status.success().then_some(move |dir: &Path, args: &[&str]| command(dir).args(args).output().unwrap())
}

/// The exit status, and stdout with stderr.
pub fn said(output: &Output) -> (Option<i32>, String) {
    let text = [&output.stdout[..], &output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// All files of a directory: by name the mode, owner, group, length, and time of change of each. If root runs it, SQLite sets
/// the owner that the WAL has already, which changes only the inode's time of change.
pub fn listing(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let meta = entry.metadata().unwrap();
        let time = (meta.mtime(), meta.mtime_nsec());
        let row = format!("{:o} {} {} {} {time:?}", meta.mode(), meta.uid(), meta.gid(), meta.len());
        found.insert(entry.file_name().to_string_lossy().into_owned(), row);
    }
    found
}
