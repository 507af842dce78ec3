//! How a run ended, decided by what was requested, what the agent said and how its process ended.
//!
//! Always: the first that applies wins, and a request wins over all. Text never decides: stderr only words the failure of a
//! process that failed.

use super::turn::Turn;
use crate::failure::ErrorClass;
use crate::process::{StartError, last_words};
use crate::run::{Cause, ExitReport, Outcome};

/// The outcome of a run whose agent is gone. `asked` is what the engine requested first, if anything; `says_end` is whether
/// the agent's protocol says when a turn is over.
pub fn decide(asked: Option<Cause>, turn: &Turn, exit: &ExitReport, says_end: bool) -> Outcome {
    if let Some(cause) = asked {
        return asked_for(cause);
    }
    if let Some(error) = turn.agent_error() {
        return Outcome::because(Cause::AgentError, error);
    }
    // The answer is complete. How the process exits after that is not held against it.
    if turn.has_ended() {
        return Outcome::completed();
    }
    match (exit.code, exit.signal) {
        (Some(0), _) if !turn.heard_anything() => no_output(exit),
        (Some(0), _) if says_end => {
            Outcome::because(Cause::Incomplete, "The agent ended before it said that the turn is over.")
                .with_class(ErrorClass::Crashed)
        }
        (Some(0), _) => Outcome::completed(),
        (Some(code), _) => {
            let sentence = exit.stderr.as_deref().and_then(last_words::cause);
            let sentence = sentence.or_else(|| quoted(exit).filter(|_| !turn.heard_anything()));
            let sentence =
                sentence.unwrap_or_else(|| format!("Agent exited with code {code}. Check server logs for details."));
            Outcome::because(Cause::ExitCode, sentence).with_class(ErrorClass::Crashed)
        }
        (None, Some(signal)) => {
            let sentence = format!("Agent was ended by {}.", show_signal(signal));
            Outcome::because(Cause::Signal, sentence).with_class(ErrorClass::Crashed)
        }
        // The watcher of the process lost its exit status, and only a known good end completes a run.
        (None, None) => Outcome::because(Cause::Internal, "It is not known how the agent ended."),
    }
}

/// The outcome of a run whose agent is a command without a protocol: its exit code decides. One that prints nothing and exits
/// with 0 has succeeded.
pub fn decide_by_exit(asked: Option<Cause>, exit: &ExitReport) -> Outcome {
    if let Some(cause) = asked {
        return asked_for(cause);
    }
    let tail = exit.stderr.as_deref().and_then(last_words::tail);
    let because = |cause: Cause, how: String| {
        let sentence = tail.map_or_else(|| format!("{how}."), |tail| format!("{how}: {tail}"));
        Outcome::because(cause, sentence).with_class(ErrorClass::Crashed)
    };
    match (exit.code, exit.signal) {
        (Some(0), _) => Outcome::completed(),
        (Some(code), _) => because(Cause::ExitCode, format!("The command exited with code {code}")),
        (None, Some(signal)) => because(Cause::Signal, format!("The command was ended by {}", show_signal(signal))),
        (None, None) => Outcome::because(Cause::Internal, "It is not known how the command ended."),
    }
}

fn show_signal(signal: i32) -> String {
    let name = signal_name(signal).map(|name| format!(" ({name})")).unwrap_or_default();
    format!("signal {signal}{name}")
}

/// The beginning of what the agent wrote outside its protocol.
fn quoted(exit: &ExitReport) -> Option<String> {
    let sample = exit.malformed_sample.as_deref().map(str::trim).filter(|sample| !sample.is_empty())?;
    Some(format!("The agent does not speak its protocol. It said: {sample}"))
}

/// The outcome of a run whose agent exited well and said nothing that could be understood.
fn no_output(exit: &ExitReport) -> Outcome {
    match exit.malformed_lines {
        0 => Outcome::because(Cause::NoOutput, "No response from agent.").with_class(ErrorClass::Crashed),
        lines => {
            let sample = exit.malformed_sample.as_deref().unwrap_or_default();
            let lines = if lines == 1 { "a line".to_owned() } else { format!("{lines} lines") };
            let sentence = format!(
                "No response from agent: it wrote {lines} that this driver does not understand. The first was: {sample}"
            );
            Outcome::because(Cause::NoOutput, sentence.trim_end()).with_class(ErrorClass::Protocol)
        }
    }
}

/// The outcome of a run whose agent could not be started.
pub fn not_started(error: &StartError) -> Outcome {
    let sentence = format!("Failed to start agent: {}", error.message);
    Outcome { class: error.class, ..Outcome::because(Cause::SpawnFailed, sentence) }
}

/// The outcome of a run that was ended for this cause.
pub fn asked_for(cause: Cause) -> Outcome {
    let sentence = match cause {
        Cause::Finished => return Outcome::completed(),
        Cause::Cancelled => return Outcome::cancelled(),
        Cause::TurnTimeout => "The turn took longer than it may.",
        Cause::IdleTimeout => "The agent made no progress for longer than it may.",
        Cause::Shutdown => "The process that executed the run was shut down before the turn was over.",
        Cause::WorkerLost => "The worker was lost before the turn was over.",
        Cause::ShimLost => "The process that held the agent was lost, and the agent was ended.",
        Cause::OutputLimit => "The agent wrote more than a run may.",
        Cause::Unconfigured => "The agent or the workspace is not configured any more.",
        Cause::NotAllowed => "The config does not allow an option of the session.",
        Cause::NoOutput => "No response from agent.",
        Cause::Incomplete => "The agent ended before it said that the turn is over.",
        Cause::AgentError | Cause::ExitCode | Cause::Signal => "The agent failed.",
        Cause::SpawnFailed => "Failed to start agent.",
        Cause::Unstorable => "What the agent said cannot be stored.",
        Cause::Internal => "An internal error ended the run.",
    };
    Outcome::because(cause, sentence)
}

/// The names of the signals that end a process, with their numbers on Linux.
fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent_event::AgentEvent;

    #[test]
    fn the_first_cause_decides() {
        let nothing: &[AgentEvent] = &[];
        let busy = &[AgentEvent::Status("s".into())][..];
        let spoke = &[AgentEvent::Text("a".into())][..];
        let ended = &[AgentEvent::Ended][..];
        let working = &[AgentEvent::Text("a".into()), AgentEvent::Ended, AgentEvent::Continued][..];
        let held_open = &[AgentEvent::Text("a".into()), AgentEvent::Tasks(1), AgentEvent::Ended][..];
        let erred = &[AgentEvent::Error("first".into()), AgentEvent::Error("second".into()), AgentEvent::Ended][..];
        let code = |code| ExitReport { code: Some(code), ..ExitReport::default() };
        let signal = |signal| ExitReport { signal: Some(signal), ..ExitReport::default() };
        let wordy = |code| ExitReport { stderr: Some("Error: no route".into()), ..ExitReport { code, ..signal(9) } };
        for (asked, heard, exit, cause, error) in [
            (Some(Cause::Cancelled), erred, code(1), Cause::Cancelled, None),
            (Some(Cause::Cancelled), ended, code(0), Cause::Cancelled, None),
            (Some(Cause::IdleTimeout), spoke, signal(15), Cause::IdleTimeout, {
                Some("The agent made no progress for longer than it may.")
            }),
            (None, erred, code(0), Cause::AgentError, Some("first")),
            (None, erred, signal(9), Cause::AgentError, Some("first")),
            (None, ended, signal(15), Cause::Finished, None),
            (None, ended, ExitReport::default(), Cause::Finished, None),
            (None, ended, code(0), Cause::Finished, None),
            (None, ended, code(3), Cause::Finished, None),
            (None, spoke, code(3), Cause::ExitCode, {
                Some("Agent exited with code 3. Check server logs for details.")
            }),
            (None, working, code(0), Cause::Incomplete, {
                Some("The agent ended before it said that the turn is over.")
            }),
            (None, held_open, code(0), Cause::Finished, None),
            (None, spoke, signal(9), Cause::Signal, Some("Agent was ended by signal 9 (SIGKILL).")),
            (None, spoke, signal(40), Cause::Signal, Some("Agent was ended by signal 40.")),
            (None, spoke, wordy(Some(0)), Cause::Incomplete, {
                Some("The agent ended before it said that the turn is over.")
            }),
            (None, spoke, wordy(Some(1)), Cause::ExitCode, Some("no route")),
            (None, spoke, wordy(None), Cause::Signal, Some("Agent was ended by signal 9 (SIGKILL).")),
            (None, nothing, code(0), Cause::NoOutput, Some("No response from agent.")),
            (None, busy, code(0), Cause::NoOutput, Some("No response from agent.")),
            (None, spoke, ExitReport::default(), Cause::Internal, Some("It is not known how the agent ended.")),
        ] {
            let mut turn = Turn::default();
            for event in heard {
                turn.hear(event.clone());
            }
            let is_crash = matches!(cause, Cause::ExitCode | Cause::Signal | Cause::NoOutput | Cause::Incomplete);
            let class = is_crash.then_some(ErrorClass::Crashed);
            let expected = Outcome { class, ..Outcome::of(cause, error.map(str::to_owned)) };
            assert_eq!(decide(asked, &turn, &exit, true), expected, "{asked:?} {heard:?} {exit:?}");
            if exit.code == Some(0) && cause == Cause::Incomplete {
                assert_eq!(decide(asked, &turn, &exit, false), Outcome::completed(), "{heard:?}");
            }
        }
    }

    #[test]
    fn an_agent_that_only_says_what_cannot_be_read_speaks_another_protocol() {
        let exit = |code, malformed_lines| ExitReport {
            code: Some(code),
            malformed_lines,
            malformed_sample: Some("{\"say\":\"hi\"}".into()),
            ..ExitReport::default()
        };
        let outcome = decide(None, &Turn::default(), &exit(0, 3), false);
        assert_eq!((outcome.cause, outcome.class), (Cause::NoOutput, Some(ErrorClass::Protocol)));
        let error = outcome.error.unwrap();
        assert!(error.contains("3 lines") && error.ends_with("{\"say\":\"hi\"}"), "{error}");
        let failed = decide(None, &Turn::default(), &exit(1, 3), true);
        assert_eq!(failed.class, Some(ErrorClass::Crashed));
        assert!(failed.error.unwrap().ends_with("{\"say\":\"hi\"}"));
        let mut turn = Turn::default();
        turn.hear(AgentEvent::Text("a".into()));
        assert_eq!(decide(None, &turn, &exit(0, 3), false), Outcome::completed());
    }

    #[test]
    fn an_exit_code_says_all_of_a_command() {
        let exit = |code, signal, stderr: &str| ExitReport {
            code,
            signal,
            stderr: Some(stderr.to_owned()),
            ..ExitReport::default()
        };
        let failed = |cause, error: &str| Outcome::because(cause, error).with_class(ErrorClass::Crashed);
        for (asked, exit, outcome) in [
            (None, exit(Some(0), None, "warning: x"), Outcome::completed()),
            (None, exit(Some(3), None, "a\nb\n"), failed(Cause::ExitCode, "The command exited with code 3: a\nb")),
            (None, exit(Some(1), None, ""), failed(Cause::ExitCode, "The command exited with code 1.")),
            (None, exit(None, Some(9), ""), failed(Cause::Signal, "The command was ended by signal 9 (SIGKILL).")),
            (Some(Cause::Cancelled), exit(Some(0), None, ""), Outcome::cancelled()),
        ] {
            assert_eq!(decide_by_exit(asked, &exit), outcome);
        }
        assert_eq!(decide_by_exit(None, &ExitReport::default()).cause, Cause::Internal);
    }

    #[test]
    fn how_a_process_ends_after_a_stated_end_is_not_held_against_it() {
        let mut turn = Turn::default();
        turn.hear(AgentEvent::Ended);
        let exit = ExitReport { code: Some(143), ..ExitReport::default() };
        assert_eq!(decide(None, &turn, &exit, true), Outcome::completed());
        assert_eq!(decide(Some(Cause::Cancelled), &turn, &exit, true), Outcome::cancelled());
        turn.hear(AgentEvent::Error("late".into()));
        assert_eq!(decide(None, &turn, &exit, true).cause, Cause::AgentError);
    }

    #[test]
    fn every_cause_that_is_asked_for_is_kept_and_failures_have_words() {
        for cause in Cause::ALL {
            let outcome = decide(Some(cause), &Turn::default(), &ExitReport::default(), false);
            let needs_words = !matches!(cause, Cause::Finished | Cause::Cancelled);
            assert_eq!((outcome.cause, outcome.error.is_some()), (cause, needs_words));
        }
    }
}
