//! How the process of a turn is started: command, environment and directory; and what to tell people when it is not.
//!
//! Always: no shell; each argument of the config is one argument of the process. The process leads a group of its own,
//! and it carries the marker by which all that it starts is found.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

use super::{Prompt, StartError, reap, template};
use crate::agent::ProcessSpec;

/// No business of an agent: the first opens the HTTP interface of the engine, the others speak for it to the service
/// manager that supervises it.
const KEPT_FROM_AGENTS: [&str; 4] = ["MAINSTAY_TOKEN", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Whether the message goes to stdin: no argument asks for it.
pub(super) fn message_on_stdin(spec: &ProcessSpec) -> bool {
    !spec.command.iter().any(|argument| template::asks_for_message(argument))
}

/// The command of a turn, ready to be spawned.
pub(super) fn command(spec: &ProcessSpec, prompt: &Prompt, temp_dir: &Path) -> Result<Command, StartError> {
    let mut words = spec.command.iter().map(|word| fill(word, "command", prompt));
    let program = words.next().unwrap_or_else(|| Ok(OsString::new()))?;
    if program.is_empty() {
        return Err(StartError("`command` names no program".to_owned()));
    }
    let mut command = Command::new(program);
    for argument in words {
        command.arg(argument?);
    }
    for variable in KEPT_FROM_AGENTS {
        command.env_remove(variable);
    }
    command.env("TMPDIR", temp_dir);
    for (name, value) in &spec.env {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(StartError(format!("`env` has the name {name:?}, which no variable can have")));
        }
        command.env(name, fill(value, name, prompt)?);
    }
    // Behind the config, because they have to be true: some agents believe PWD more than their directory.
    command.env("PWD", &prompt.dir);
    command.env("MAINSTAY_SESSION", prompt.session.as_str());
    command.env("MAINSTAY_SLOT", &prompt.slot);
    command.env(reap::MARKER, prompt.attempt.run.to_string());
    command.env(reap::ATTEMPT_MARKER, prompt.attempt.number.to_string());
    command.current_dir(&prompt.dir);
    command.process_group(0);
    // An open stdin that nobody writes to makes several agents wait for ever.
    command.stdin(if message_on_stdin(spec) { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped());
    command.stderr(Stdio::piped());
    command.kill_on_drop(true);
    Ok(command)
}

fn fill(template: &str, place: &str, prompt: &Prompt) -> Result<OsString, StartError> {
    let filled = template::fill(template, prompt);
    if !filled.as_bytes().contains(&0) {
        return Ok(filled);
    }
    let advice = if prompt.message.contains('\0') && template::asks_for_message(template) {
        "the message has one; leave `{message}` out of `command` and `env`, and it is written to the agent's stdin"
    } else {
        "take it out"
    };
    Err(StartError(format!("a NUL character cannot be handed over in `{place}`: {advice}")))
}

/// What a failed spawn means and what can be done.
pub(super) fn explain(error: &io::Error, command: &Command, prompt: &Prompt) -> StartError {
    let program = command.as_std().get_program();
    let shown = program.display();
    let dir = prompt.dir.display();
    if !prompt.dir.is_dir() {
        return StartError(format!("the directory {dir} is not there: create it, or correct `dir` of the workspace"));
    }
    StartError(match error.kind() {
        io::ErrorKind::NotFound if has_file(program, &prompt.dir) => {
            format!("{shown} is there, but the interpreter in its first line, or its loader, is not")
        }
        io::ErrorKind::NotFound => {
            format!("the program {shown} was not found: install it, put it on PATH, or correct `command` of the agent")
        }
        io::ErrorKind::PermissionDenied => {
            format!("{shown} must not be executed here: check its permissions, and those of the directory {dir}")
        }
        io::ErrorKind::ArgumentListTooLong => format!(
            "the arguments and environment are too long for {shown}, the message has {} bytes: leave `{{message}}` out of \
            `command` and `env`, and it is written to the agent's stdin",
            prompt.message.len()
        ),
        _ => format!("{shown}: {error}"),
    })
}

/// Whether a program given as a path is there; one without a slash is looked for on PATH.
fn has_file(program: &OsStr, dir: &Path) -> bool {
    program.as_bytes().contains(&b'/') && dir.join(program).exists()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RunId;
    use crate::run::Attempt;

    fn spec(command: &[&str], env: &[(&str, &str)]) -> ProcessSpec {
        ProcessSpec {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            max_line_bytes: 1024,
        }
    }

    fn prompt(message: &str) -> Prompt {
        Prompt {
            start_by: std::time::Instant::now(),
            attempt: Attempt { run: RunId::generate(), number: 3 },
            session: "s".parse().unwrap(),
            slot: "slot".to_owned(),
            workspace: "w".parse().unwrap(),
            dir: "/".into(),
            agent_session: None,
            message: message.to_owned(),
        }
    }

    #[test]
    fn the_key_to_the_engine_is_kept_from_the_agent_and_the_marker_from_the_config() {
        let prompt = prompt("hello");
        let spec = spec(&["agent"], &[("MAINSTAY_RUN", "other"), ("PWD", "/other"), ("KEY", "{slot}")]);
        let command = command(&spec, &prompt, Path::new("/tmp/t")).unwrap();
        let variable = |name: &str| {
            let found = command.as_std().get_envs().find(|(key, _)| *key == name);
            found.map(|(_, value)| value.map(|value| value.to_str().unwrap().to_owned()))
        };
        for kept in ["MAINSTAY_TOKEN", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
            assert_eq!(variable(kept), Some(None), "{kept}");
        }
        assert_eq!(variable("MAINSTAY_RUN"), Some(Some(prompt.attempt.run.to_string())));
        assert_eq!(variable("MAINSTAY_ATTEMPT"), Some(Some("3".to_owned())));
        assert_eq!(variable("PWD"), Some(Some("/".to_owned())));
        assert_eq!(variable("KEY"), Some(Some("slot".to_owned())));
        assert_eq!(variable("TMPDIR"), Some(Some("/tmp/t".to_owned())));
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
            let error = command(&spec, &prompt(message), Path::new("/tmp/t")).unwrap_err().to_string();
            assert!(error.contains(advice), "{error}");
        }
        assert!(command(&spec(&["agent"], &[]), &prompt("a\0b"), Path::new("/tmp/t")).is_ok());
    }
}
