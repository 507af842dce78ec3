//! Probes an agent on this machine before any turn: its program and the version that it reports.
//!
//! Always: it takes at most `PROBE_TIMEOUT` per agent, and reads at most `MAX_VERSION_BYTES`. No process that was
//! started for it is left, in any process group, even if the caller stops waiting for the answer.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::agent::ProcessSpec;
use crate::catalogue::Found;
use crate::id::RunId;
use crate::process::launch::KEPT_FROM_AGENTS;
use crate::process::program::find_program;
use crate::process::{reap, temp_dir};
use crate::run::Attempt;

/// How long a program may take to report its version, or a gateway to answer.
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// A longer output is not a version.
const MAX_VERSION_BYTES: u64 = 4096;
/// Longer versions are cut off.
const MAX_VERSION_CHARS: usize = 60;

/// Searches for the program of an agent that is to work in a directory, and asks it for its version if `says_version`.
/// After `until` it is searched for but not started.
///
/// # Errors
/// What is missing, for the operator.
pub(super) async fn look(spec: &ProcessSpec, dir: &Path, says_version: bool, until: Instant) -> Result<Found, String> {
    let Some(path) = find_program(spec, dir)? else {
        return Ok(Found { at: spec.command.first().cloned().unwrap_or_default(), version: None });
    };
    let patience = PROBE_TIMEOUT.min(until.saturating_duration_since(Instant::now()));
    let version = match says_version && !patience.is_zero() {
        true => version_of(&path, spec, patience).await,
        false => None,
    };
    Ok(Found { at: path.display().to_string(), version })
}

/// A version, shortened for display.
pub(super) fn shown(version: &str) -> String {
    version.chars().filter(|c| !c.is_control()).take(MAX_VERSION_CHARS).collect()
}

/// A program that was started for its version, and every process that it started.
struct Started {
    child: Child,
    group: Option<Pid>,
    /// The marker by which processes outside the group are found; none once nothing is left.
    mark: Option<Attempt>,
}

impl Started {
    fn spawn(command: &mut Command) -> io::Result<Self> {
        let mark = Attempt { run: RunId::generate(), number: 1 };
        command.env(reap::MARKER, mark.run.to_string()).env(reap::ATTEMPT_MARKER, mark.number.to_string());
        // When dropped, it is reaped by the runtime.
        let child = command.process_group(0).kill_on_drop(true).spawn()?;
        let group = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        Ok(Self { child, group, mark: Some(mark) })
    }

    /// Kills the group. Called before the program is reaped, while its group id cannot be reused.
    fn kill(&mut self) {
        // Fails if they are gone already.
        let _ = self.group.take().map(|group| kill_process_group(group, Signal::KILL));
    }

    /// Ends every process of it.
    async fn end(mut self) {
        self.kill();
        let _ = self.child.wait().await;
        if let Some(mark) = self.mark {
            reap::end(mark.into(), None, Duration::ZERO).await;
            self.mark = None;
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.kill();
        if let Some(mark) = self.mark {
            reap::kill(mark.into());
        }
    }
}

/// The version that a program reports; none if it does not do so in time.
async fn version_of(path: &Path, spec: &ProcessSpec, patience: Duration) -> Option<String> {
    // Outside any project, whose settings it would read.
    let dir = Some(temp_dir::root()).filter(|dir| dir.is_dir()).unwrap_or_else(|| "/".into());
    let mut command = Command::new(path);
    command.arg("--version").current_dir(dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    for variable in KEPT_FROM_AGENTS {
        command.env_remove(variable);
    }
    command.envs(spec.env.iter().filter(|(_, value)| !value.contains('{')));
    let mut started = Started::spawn(&mut command).ok()?;
    let mut said = Vec::new();
    let mut out = started.child.stdout.take()?.take(MAX_VERSION_BYTES);
    // Output before a failure or a timeout counts.
    let _ = timeout(patience, out.read_to_end(&mut said)).await;
    drop(out);
    started.end().await;
    let said = String::from_utf8_lossy(&said);
    let line = said.lines().map(str::trim).find(|line| line.contains(|c: char| c.is_ascii_digit()))?;
    Some(shown(line))
}
