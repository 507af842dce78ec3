//! How the process of a turn is started: command, environment and directory; and the error text if that fails.
//!
//! Always: no shell; each argument of the config is one argument of the process. The process leads a group of its own
//! and carries the marker by which everything that it starts is found.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::{Prompt, StartError, descriptors, program, reap, template};
use crate::agent::ProcessSpec;
use crate::failure::{ErrorClass, is_shortage};
use crate::run::Attempt;

/// Environment variables removed for agents and shims: the first one opens the HTTP interface of the engine; the next
/// three lead to files with tokens in or beside them; those behind speak for the engine to its service manager; the
/// last three are for its own allocator.
pub(crate) const KEPT_FROM_AGENTS: [&str; 10] = [
    "MAINSTAY_TOKEN",
    "MAINSTAY_DB",
    "MAINSTAY_CONFIG",
    "CREDENTIALS_DIRECTORY",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "MAINSTAY_STARTED_ANEW",
];

/// Where the system searches for a program if PATH is not set.
const PATH_WITHOUT_ONE: &str = "/bin:/usr/bin";

/// Everything that a shim needs to start an agent. Texts are kept byte for byte, as the system takes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The run and its attempt.
    pub(crate) attempt: Attempt,
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    dir: PathBuf,
    /// The directory was checked; a link that came into its path afterwards is not followed.
    #[serde(default)]
    dir_has_no_links: bool,
    /// What is written to stdin; none means /dev/null.
    pub(crate) stdin: Option<String>,
    /// Whether stdin stays open afterwards for more input.
    #[serde(default)]
    pub(crate) stdin_stays_open: bool,
    /// Length of the message, for the error text when the arguments are too long.
    message_bytes: usize,
    /// Time between SIGTERM and SIGKILL.
    pub(crate) kill_grace_ms: u64,
    /// Maximum duration of the turn.
    pub(crate) limit_ms: u64,
    /// For a backend: it is ended after this time without an engine, and its output is discarded.
    #[serde(default)]
    pub(crate) alone_ms: Option<u64>,
    /// The agent's soft limit of file descriptors; none means the shim's own.
    #[serde(default)]
    max_descriptors: Option<u64>,
    /// Nothing is started after this time: the run may belong to another worker by then. By `CLOCK_MONOTONIC`, which
    /// all processes of a machine share and which cannot be set.
    start_by_ms: u64,
}

/// Milliseconds of `CLOCK_MONOTONIC`, which all processes of this machine share and which cannot be set.
fn monotonic_ms() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let (seconds, nanos) = (u64::try_from(now.tv_sec).unwrap_or(0), u64::try_from(now.tv_nsec).unwrap_or(0));
    seconds.saturating_mul(1000) + nanos / 1_000_000
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What an agent reads on its stdin. Several agents wait forever on an open stdin to which nothing is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stdin {
    /// Nothing: its stdin is /dev/null.
    Closed,
    /// The message.
    Message,
    /// The message, unless the command contains it.
    MessageUnlessAsked,
    /// This text, and later input; for drivers whose protocol uses stdin.
    Open(String),
}

impl Launch {
    /// The launch for a prompt: the command of the config and the arguments `more`, in which no placeholder is filled.
    pub(crate) fn for_turn(
        spec: &ProcessSpec,
        more: Vec<OsString>,
        stdin: Stdin,
        prompt: &Prompt,
        kill_grace: Duration,
    ) -> Result<Self, StartError> {
        let mut words = spec.command.iter().map(|word| fill(word, "command", prompt));
        let program = words.next().unwrap_or_else(|| Ok(OsString::new()))?;
        if program.is_empty() {
            return Err(StartError::from("`command` names no program"));
        }
        let mut arguments = words.collect::<Result<Vec<_>, _>>()?;
        if more.iter().any(|word| word.as_bytes().contains(&0)) {
            return Err(StartError::from("a NUL character cannot be handed over: take it out of the message"));
        }
        arguments.extend(more);
        let mut environment = Vec::with_capacity(spec.env.len() + 5);
        for (name, value) in &spec.env {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(StartError::from(format!("`env` has the name {name:?}, which no variable can have")));
            }
            environment.push((name.into(), fill(value, name, prompt)?));
        }
        // After the config's own, because these have to be true: some agents believe PWD more than their directory.
        environment.push(("PWD".into(), prompt.place.dir.clone().into()));
        environment.push(("MAINSTAY_SESSION".into(), prompt.place.session.as_str().into()));
        environment.push(("MAINSTAY_SLOT".into(), prompt.place.slot.clone().into()));
        environment.push((reap::MARKER.into(), prompt.place.attempt.run.to_string().into()));
        environment.push((reap::ATTEMPT_MARKER.into(), prompt.place.attempt.number.to_string().into()));
        let takes_message = spec.command.iter().any(|argument| template::asks_for_message(argument));
        let (stdin, stdin_stays_open) = match stdin {
            Stdin::Closed => (None, false),
            Stdin::Message => (Some(prompt.message.clone()), false),
            Stdin::MessageUnlessAsked => ((!takes_message).then(|| prompt.message.clone()), false),
            Stdin::Open(first) => (Some(first), true),
        };
        let start_in = prompt.start_by.saturating_duration_since(Instant::now());
        Ok(Self {
            attempt: prompt.place.attempt,
            program,
            arguments,
            environment,
            dir: prompt.place.dir.clone(),
            dir_has_no_links: prompt.options.cwd.is_some(),
            stdin,
            stdin_stays_open,
            message_bytes: prompt.message.len(),
            kill_grace_ms: millis(kill_grace),
            limit_ms: millis(prompt.limit),
            alone_ms: None,
            max_descriptors: descriptors::limit_of_agents(),
            start_by_ms: monotonic_ms().saturating_add(millis(start_in)),
        })
    }

    /// The same for a backend: its duration is unlimited, but it ends after `alone` without an engine.
    pub(crate) fn kept_warm(self, alone: Duration) -> Self {
        Self { limit_ms: u64::MAX, alone_ms: Some(millis(alone)), ..self }
    }

    /// The command, ready to be spawned. `temp_dir` becomes its TMPDIR unless the config sets another.
    pub(crate) fn command(&self, temp_dir: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        for variable in KEPT_FROM_AGENTS {
            command.env_remove(variable);
        }
        command.env("TMPDIR", temp_dir);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.current_dir(&self.dir);
        command.process_group(0);
        command.stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped());
        command.stderr(Stdio::piped());
        command
    }

    /// Makes the command start in the very directory that was checked. The result keeps it open until then.
    pub(crate) fn enter(&self, command: &mut Command) -> Result<Option<OwnedFd>, StartError> {
        if !self.dir_has_no_links {
            return Ok(None);
        }
        let dir = open_without_links(&self.dir).map_err(|errno| match errno {
            Errno::LOOP => StartError::from(format!(
                "{} has a link in it that was not there before: nothing is started",
                self.dir.display()
            )),
            errno => self.explain(&errno.into()),
        })?;
        command.current_dir(format!("/proc/self/fd/{}", dir.as_raw_fd()));
        Ok(Some(dir))
    }

    /// Sets the limits that the agent inherits from this process.
    pub(crate) fn set_limits(&self) {
        if let Some(soft) = self.max_descriptors {
            descriptors::set_limit(soft);
        }
    }

    /// Whether the deadline to start it has passed.
    pub(crate) fn is_too_late(&self) -> bool {
        monotonic_ms() >= self.start_by_ms
    }

    /// Turns a failed spawn into an error text with advice.
    pub(crate) fn explain(&self, error: &io::Error) -> StartError {
        let is_missing = error.kind() == io::ErrorKind::NotFound && self.dir.is_dir();
        let class = is_missing.then_some(ErrorClass::AgentMissing);
        StartError { message: self.words_for(error), class, is_shortage: is_shortage(error) }
    }

    /// Searches for the program as the system would. For a program that another process starts, which could not
    /// describe the error as well.
    pub(crate) fn look_for_program(&self) -> Result<(), StartError> {
        if self.dir.is_dir() && which::which_in(&self.program, Some(self.path()), &self.dir).is_ok() {
            return Ok(());
        }
        let kind = match has_file(&self.program, &self.dir) {
            Ok(true) => io::ErrorKind::PermissionDenied,
            Ok(false) => io::ErrorKind::NotFound,
            Err(error) => error.kind(),
        };
        Err(self.explain(&kind.into()))
    }

    /// The PATH on which the system searches for a program without a slash.
    fn path(&self) -> OsString {
        let of_config = self.environment.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone());
        of_config.or_else(|| std::env::var_os("PATH")).unwrap_or_else(|| PATH_WITHOUT_ONE.into())
    }

    fn words_for(&self, error: &io::Error) -> String {
        let shown = self.program.display();
        let dir = self.dir.display();
        if let Err(problem) = program::check_directory(&self.dir, self.dir.metadata(), "correct `dir` of the workspace")
        {
            return problem;
        }
        match error.kind() {
            io::ErrorKind::NotFound if has_file(&self.program, &self.dir).unwrap_or(false) => {
                format!("{shown} is there, but the interpreter in its first line, or its loader, is not")
            }
            io::ErrorKind::NotFound => {
                let how = program::how_to_install(&shown.to_string());
                let unseen = program::unseen_on_path(&self.path(), &self.dir);
                format!(
                    "the program {shown} was not found{unseen}: install it{how}, put it on PATH, or correct `command` of \
                     the agent"
                )
            }
            io::ErrorKind::PermissionDenied => {
                format!("{shown} must not be executed here: check its permissions, and those of the directory {dir}")
            }
            io::ErrorKind::ArgumentListTooLong => format!(
                "the arguments and environment are too long for {shown}, the message has {} bytes: leave `{{message}}` \
                 out of `command` and `env`, and it is written to the agent's stdin",
                self.message_bytes
            ),
            _ => format!("{shown}: {error}"),
        }
    }
}

/// Opens a directory without following a link anywhere in its path.
pub(crate) fn open_without_links(dir: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat2(CWD, dir, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
}

fn fill(template: &str, place: &str, prompt: &Prompt) -> Result<OsString, StartError> {
    let filled = template::fill(template, &prompt.place, &prompt.message);
    if !filled.as_bytes().contains(&0) {
        return Ok(filled);
    }
    let advice = if prompt.message.contains('\0') && template::asks_for_message(template) {
        "the message has one; leave `{message}` out of `command` and `env`, and it is written to the agent's stdin"
    } else {
        "take it out"
    };
    Err(StartError::from(format!("a NUL character cannot be handed over in `{place}`: {advice}")))
}

/// Whether a program given as a path exists; false for one without a slash, which is searched on PATH.
fn has_file(program: &OsStr, dir: &Path) -> io::Result<bool> {
    if program.as_bytes().contains(&b'/') { dir.join(program).try_exists() } else { Ok(false) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::fixtures::prompt;

    fn spec(command: &[&str], env: &[(&str, &str)]) -> ProcessSpec {
        ProcessSpec {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            max_line_bytes: 1024,
        }
    }

    #[test]
    fn the_key_to_the_engine_is_kept_from_the_agent_and_the_marker_from_the_config() {
        let prompt = prompt("hello");
        let spec = spec(&["agent"], &[("MAINSTAY_RUN", "other"), ("PWD", "/other"), ("KEY", "{slot}")]);
        let launch = Launch::for_turn(&spec, Vec::new(), Stdin::MessageUnlessAsked, &prompt, Duration::ZERO).unwrap();
        let command = launch.command(Path::new("/tmp/x"));
        let variable = |name: &str| {
            let found = command.get_envs().find(|(key, _)| *key == name);
            found.map(|(_, value)| value.map(|value| value.to_str().unwrap().to_owned()))
        };
        for kept in KEPT_FROM_AGENTS {
            assert_eq!(variable(kept), Some(None), "{kept}");
        }
        assert_eq!(variable("MAINSTAY_RUN"), Some(Some(prompt.place.attempt.run.to_string())));
        assert_eq!(variable("MAINSTAY_ATTEMPT"), Some(Some("3".to_owned())));
        assert_eq!(variable("PWD"), Some(Some("/srv/w".to_owned())));
        assert_eq!(variable("KEY"), Some(Some("chat-slot-w-1".to_owned())));
        assert_eq!(variable("TMPDIR"), Some(Some("/tmp/x".to_owned())));
    }

    #[test]
    fn a_link_that_came_into_a_judged_path_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (judged, moved) = (dir.path().canonicalize().unwrap().join("a"), dir.path().join("b"));
        std::fs::create_dir_all(judged.join("c")).unwrap();
        let mut prompt = prompt("");
        prompt.place.dir = judged.join("c");
        prompt.options.cwd = Some(prompt.place.dir.clone());
        let spec = spec(&["pwd", "-P"], &[]);
        let launch = Launch::for_turn(&spec, Vec::new(), Stdin::Closed, &prompt, Duration::ZERO).unwrap();
        let run = || {
            let mut command = launch.command(dir.path());
            let _dir = launch.enter(&mut command)?;
            Ok::<_, StartError>(String::from_utf8(command.output().unwrap().stdout).unwrap())
        };
        assert_eq!(run().unwrap().trim_end(), judged.join("c").to_str().unwrap());
        std::fs::rename(&judged, &moved).unwrap();
        std::os::unix::fs::symlink(&moved, &judged).unwrap();
        assert!(run().unwrap_err().to_string().contains("has a link in it"));
    }

    #[test]
    fn what_no_process_can_be_given_is_refused_with_advice() {
        for (spec, message, advice) in [
            (spec(&[], &[]), "", "names no program"),
            (spec(&["{agent_session}"], &[]), "", "names no program"),
            (spec(&["agent", "{message}"], &[]), "a\0b", "leave `{message}` out"),
            (spec(&["agent"], &[("TEXT", "{message}")]), "a\0b", "leave `{message}` out"),
            (spec(&["agent", "a\0b"], &[]), "", "take it out"),
            (spec(&["agent"], &[("A=B", "c")]), "", "no variable can have"),
            (spec(&["agent"], &[("", "c")]), "", "no variable can have"),
        ] {
            let error =
                Launch::for_turn(&spec, Vec::new(), Stdin::MessageUnlessAsked, &prompt(message), Duration::ZERO)
                    .unwrap_err()
                    .to_string();
            assert!(error.contains(advice), "{error}");
        }
        assert!(
            Launch::for_turn(
                &spec(&["agent"], &[]),
                Vec::new(),
                Stdin::MessageUnlessAsked,
                &prompt("a\0b"),
                Duration::ZERO
            )
            .is_ok()
        );
    }
}
