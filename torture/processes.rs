//! The processes of a torture, found from outside: all of them carry its directory in their environment.
//!
//! Always: a signal goes through a pidfd to a process that was seen to carry the mark while the pidfd was open, so no
//! other process is ever hit.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use procfs::process::all_processes;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::AGENT;
use super::protocol::Protocol;
use mainstay::process::shim::PROCESS_NAME;
use mainstay::run::Attempt;

/// The environment variable that all processes inherit.
pub(super) const MARK: &str = "TORTURE_DIR";

/// What a process is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProcessKind {
    Agent,
    /// A backend that is reached without a bridge.
    Server,
    /// The shim of an agent, or of a relay.
    Host,
    /// The relay of a turn to a backend.
    Relay,
    /// The bridge that holds an ACP agent.
    Bridge,
    /// The shim of a bridge, or of a backend that is reached without one.
    BridgeHost,
    Other,
}

/// A process of this torture.
#[derive(Debug, Clone)]
pub(super) struct MarkedProcess {
    pub(super) kind: ProcessKind,
    pub(super) pid: i32,
    /// Its command line, for people.
    pub(super) command: String,
    /// The run that it belongs to.
    pub(super) run: Option<String>,
}

/// All living processes of the torture in a directory. Reads all of `/proc`: blocking work.
pub(super) fn find(dir: &Path) -> Vec<MarkedProcess> {
    let processes = all_processes().into_iter().flatten().flatten();
    let mut bridged = HashSet::new();
    let mut found: Vec<_> = processes
        .filter_map(|process| {
            let environ = marked(process.pid, dir)?;
            let stat = process.stat().ok().filter(|stat| !matches!(stat.state, 'Z' | 'X'))?;
            let command = process.cmdline().unwrap_or_default();
            let says = |word: &str| command.iter().any(|said| said == word);
            let kind = match command.iter().map(String::as_str).nth(1) {
                _ if stat.comm == PROCESS_NAME => ProcessKind::Host,
                Some("relay") => ProcessKind::Relay,
                Some("bridge") => {
                    bridged.insert(stat.ppid);
                    ProcessKind::Bridge
                }
                Some(AGENT) if says("serve") => {
                    bridged.insert(stat.ppid);
                    ProcessKind::Server
                }
                // The gateway belongs to no engine: its supervisor kills it.
                Some(AGENT) if says("--stray") || says(Protocol::Gateway.as_str()) => ProcessKind::Other,
                Some(AGENT) => ProcessKind::Agent,
                _ => ProcessKind::Other,
            };
            let run = match kind {
                // From the shim's command line, which names the run also before it holds an agent and afterwards.
                ProcessKind::Host => command.last().and_then(|dir| run_of(Path::new(dir))),
                _ => value(&environ, "MAINSTAY_RUN").map(|run| String::from_utf8_lossy(run).into_owned()),
            };
            Some(MarkedProcess { kind, pid: process.pid, command: command.join(" "), run })
        })
        .collect();
    for host in found.iter_mut().filter(|host| host.kind == ProcessKind::Host && bridged.contains(&host.pid)) {
        host.kind = ProcessKind::BridgeHost;
    }
    found
}

/// The run whose shim uses a directory.
fn run_of(dir: &Path) -> Option<String> {
    let attempt: Attempt = dir.file_name()?.to_str()?.parse().ok()?;
    Some(attempt.run.to_string())
}

/// Sends a signal. Returns whether the process was there to get it.
pub(super) fn send(process: &MarkedProcess, dir: &Path, signal: Signal) -> bool {
    let pidfd = Pid::from_raw(process.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let Some(pidfd) = pidfd.filter(|_| marked(process.pid, dir).is_some()) else { return false };
    pidfd_send_signal(&pidfd, signal).is_ok()
}

/// The environment of a process, if it carries the mark.
fn marked(pid: i32, dir: &Path) -> Option<Vec<u8>> {
    let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
    (value(&environ, MARK)? == dir.as_os_str().as_encoded_bytes()).then_some(environ)
}

fn value<'a>(environ: &'a [u8], name: &str) -> Option<&'a [u8]> {
    environ.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_known_by_its_directory_before_it_holds_an_agent() {
        let run = mainstay::id::RunId::generate();
        let home = std::path::PathBuf::from(format!("/some/m.db-agents/{}", Attempt { run, number: 3 }));
        assert_eq!(run_of(&home), Some(run.to_string()));
        assert_eq!(run_of(Path::new("/some/m.db-agents")), None);
    }
}
