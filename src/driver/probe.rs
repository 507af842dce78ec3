//! What is there of an agent on this machine, asked before any turn: its program and what that calls its version, or
//! whether a gateway at its address takes us in.
//!
//! Always: it takes no longer than `PATIENCE` for an agent, and reads `MAX_VERSION_BYTES` of it. Nothing that was started for
//! it is left, in whatever process group, also when the answer is not waited for any more.

use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::openclaw_gateway;
use crate::agent::{Driver, GatewaySpec, ProcessSpec};
use crate::catalogue::{Found, KnownAgent};
use crate::failure::ErrorClass;
use crate::id::RunId;
use crate::process::launch::KEPT_FROM_AGENTS;
use crate::process::{reap, temp_dir};
use crate::run::Attempt;

/// A program may take so long to say its version, or a gateway to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// More is no version.
const MAX_VERSION_BYTES: u64 = 4096;
/// More of it is not shown.
const MAX_VERSION_CHARS: usize = 60;

/// Looks for an agent that is to work in a directory; says what is missing when it is not there. Once it is `until`, its
/// program is looked for and not started.
///
/// # Errors
/// What is missing, for people.
pub async fn look(driver: &Driver, dir: &Path, until: Instant) -> Result<Found, String> {
    match driver {
        Driver::Demo => Ok(Found { at: "built in".to_owned(), version: Some(env!("CARGO_PKG_VERSION").to_owned()) }),
        Driver::OpenclawGateway(spec) => look_at(spec).await,
        Driver::Openclaw(spec)
        | Driver::Text(spec)
        | Driver::Claude(spec)
        | Driver::Codex(spec)
        | Driver::Opencode(spec)
        | Driver::Acp { process: spec, .. } => {
            let Some(path) = find_program(spec, dir)? else {
                return Ok(Found { at: spec.command.first().cloned().unwrap_or_default(), version: None });
            };
            let patience = PATIENCE.min(until.saturating_duration_since(Instant::now()));
            let version = match says_its_version(driver) && !patience.is_zero() {
                true => version_of(&path, spec, patience).await,
                false => None,
            };
            Ok(Found { at: path.display().to_string(), version })
        }
    }
}

/// Whether the program of a driver can be started with `--version`. A command of the user's own need not know that flag: it
/// could take it for a message and begin to work.
fn says_its_version(driver: &Driver) -> bool {
    let program = driver.process().and_then(|spec| spec.command.first());
    match driver {
        Driver::Text(_) | Driver::Openclaw(_) => {
            program.is_some_and(|program| KnownAgent::of_program(program).is_some())
        }
        _ => true,
    }
}

/// What is missing for an agent to be started in a directory, as far as it can be known before there is a message.
pub fn what_is_missing(spec: &ProcessSpec, dir: &Path) -> Option<String> {
    find_program(spec, dir).err()
}

/// Why nothing can work in a directory, if that is so, and what can be done.
///
/// # Errors
/// It is none, is not there, or cannot be seen.
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

/// The directories of a `PATH` that this process may not look into: a program that was not found may be there.
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

/// The program of an agent; none where only the turn says which it is.
fn find_program(spec: &ProcessSpec, dir: &Path) -> Result<Option<PathBuf>, String> {
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

/// How the program of an agent that is known is installed, as the end of a sentence.
pub(crate) fn how_to_install(program: &str) -> String {
    KnownAgent::of_program(program).map_or_else(String::new, |known| format!(" with `{}`", known.install))
}

async fn look_at(spec: &GatewaySpec) -> Result<Found, String> {
    match timeout(PATIENCE, openclaw_gateway::greet(spec)).await {
        Ok(Ok(version)) => Ok(Found { at: spec.url.clone(), version: version.as_deref().map(shown) }),
        Ok(Err(error)) if error.class == Some(ErrorClass::Authentication) => {
            Err(format!("{}; correct `token` of the agent", error.message))
        }
        Ok(Err(error)) => Err(error.message),
        Err(_) => Err(format!("what listens at {} does not answer as an OpenClaw gateway does", spec.url)),
    }
}

/// As much of a version as is shown.
fn shown(version: &str) -> String {
    version.chars().filter(|c| !c.is_control()).take(MAX_VERSION_CHARS).collect()
}

/// A program that was started for its version, and all that it has started.
struct Started {
    child: Child,
    group: Option<Pid>,
    /// By which what has left the group is found; none once nothing is left.
    mark: Option<Attempt>,
}

impl Started {
    fn spawn(command: &mut Command) -> io::Result<Self> {
        let mark = Attempt { run: RunId::generate(), number: 1 };
        command.env(reap::MARKER, mark.run.to_string()).env(reap::ATTEMPT_MARKER, mark.number.to_string());
        // Dropped, it is reaped by the runtime.
        let child = command.process_group(0).kill_on_drop(true).spawn()?;
        let group = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        Ok(Self { child, group, mark: Some(mark) })
    }

    /// Ends the group. Before the program is waited for, so that the group is still its own.
    fn kill(&mut self) {
        // Those that are gone already are no failure.
        let _ = self.group.take().map(|group| kill_process_group(group, Signal::KILL));
    }

    /// Ends all of it.
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

/// What a program calls its version; none when it does not say in time.
async fn version_of(path: &Path, spec: &ProcessSpec, patience: Duration) -> Option<String> {
    // No project, whose settings it would read.
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
    // What was said before it failed, or took too long, counts.
    let _ = timeout(patience, out.read_to_end(&mut said)).await;
    drop(out);
    started.end().await;
    let said = String::from_utf8_lossy(&said);
    let line = said.lines().map(str::trim).find(|line| line.contains(|c: char| c.is_ascii_digit()))?;
    Some(shown(line))
}
