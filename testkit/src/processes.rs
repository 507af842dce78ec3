//! Processes as `/proc` shows them.

use std::path::Path;

/// The state of a process or thread, given its directory: `R`, `S`, `T`, `Z`, … None if it is gone.
#[must_use]
pub fn state_of(dir: &Path) -> Option<char> {
    let stat = std::fs::read_to_string(dir.join("stat")).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}

/// The processes that carry the marker of a run, which children inherit.
#[must_use]
pub fn marked(run: &str) -> Vec<i32> {
    let marker = format!("MAINSTAY_RUN={run}");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let is_marked = environ.split(|byte| *byte == 0).any(|variable| variable == marker.as_bytes());
        if is_marked && !matches!(state_of(&entry.path()), None | Some('Z' | 'X')) {
            found.push(pid);
        }
    }
    found
}

/// Reports why a test cannot run on this machine. Bypasses the test harness, which captures the output of passing tests.
pub fn skipped(why: &str) {
    use std::io::Write as _;
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(std::io::stderr(), "\n*** SKIPPED {name}: {why} ***");
}
