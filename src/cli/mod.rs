//! The command line: what can be asked for, and the config that holds for it.
//!
//! Always: results go to stdout and everything else to stderr; a flag goes before its variable, which goes before the
//! config file, which goes before the default. A command that is added gets a variant of [`Command`] and a file here.

mod attach;
mod cancel;
pub mod exit;
mod init;
mod input;
mod list;
pub mod plain;
mod run;
mod send;
mod serve;
mod signals;
mod stream;
mod supervisor;
pub mod table;
pub mod terminal;
mod torture;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::Context;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::config::{Config, limits};
use crate::engine::Engine;
use crate::event::Seq;
use crate::id::{AgentName, InvalidId, RunId, SessionId, WorkspaceName};
use crate::run::{Status, WhenBusy};
use crate::telemetry::LogFormat;
use torture::{TortureAgentArgs, TortureArgs};

const GLOBAL: &str = "Global options";
const EXIT_STATUS: &str = "Exit status: 0 done; 1 the run ended other than completed, or the operation failed; 2 wrong \
                           usage or config; 130 interrupted by Ctrl-C.";

/// A durable run engine for chat agents: one binary, one SQLite file.
#[derive(Debug, Parser)]
#[command(name = "mainstay", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = EXIT_STATUS)]
pub struct Cli {
    /// The database file
    #[arg(long, global = true, help_heading = GLOBAL, env = "MAINSTAY_DB")]
    #[arg(value_name = "PATH", default_value = "mainstay.db")]
    pub db: PathBuf,

    /// The config file; must exist when named here [default: mainstay.toml in the working directory, if there is one]
    #[arg(long, global = true, help_heading = GLOBAL, env = "MAINSTAY_CONFIG", value_name = "PATH")]
    pub config: Option<PathBuf>,

    /// Print JSON for programs: one object, or one a line
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub json: bool,

    /// Log more; again for more still
    #[arg(short, long, global = true, help_heading = GLOBAL, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,

    /// Log less; again for less still
    #[arg(short, long, global = true, help_heading = GLOBAL, action = ArgAction::Count)]
    pub quiet: u8,

    /// How log lines on stderr are written
    #[arg(long, global = true, help_heading = GLOBAL, env = "MAINSTAY_LOG_FORMAT")]
    #[arg(value_name = "FORMAT", default_value = "human")]
    pub log_format: LogFormat,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What can be asked for.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon: HTTP, workers and the sweep
    Serve(ServeArgs),
    /// Take one turn and follow it to its end
    Run(RunArgs),
    /// Queue a turn and print its run id, without waiting
    Send(SendArgs),
    /// Show a run, or a session from any point, and follow it
    Attach(AttachArgs),
    /// Cancel a run, or what a session is doing
    Cancel(CancelArgs),
    /// Free a session's slot; the next message opens the session again
    Close(CloseArgs),
    /// List sessions, the last used first
    Sessions(ListArgs),
    /// List runs, the newest first
    Runs(RunsArgs),
    /// List the messages of a session, in order
    Messages(MessagesArgs),
    /// List slots and who sits in them
    Slots,
    /// List the processes that execute runs
    Workers,
    /// Show everything about one run or session
    Show(ShowArgs),
    /// Sweep once, now: free idle slots, settle the runs of dead workers; print what was done
    Sweep,
    /// Kill engines and agents at random on a database made for it, and check that nothing is lost
    Torture(TortureArgs),
    /// The agent that is tortured
    #[command(hide = true)]
    TortureAgent(TortureAgentArgs),
}

/// `serve`
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Where to listen; port 0 picks a free one [default: 127.0.0.1:7717, or as the config says]
    #[arg(long, env = "MAINSTAY_LISTEN", value_name = "ADDR", value_parser = listen)]
    pub listen: Option<SocketAddr>,

    /// The token that every request must carry; other users of this machine can read it here: better use the variable
    #[arg(long, env = "MAINSTAY_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<String>,

    /// Runs executed at once; 0 serves without executing [default: 8, or as the config says]
    #[arg(long, env = "MAINSTAY_WORKERS", value_name = "N", value_parser = workers())]
    pub workers: Option<u32>,
}

/// `run`
#[derive(Debug, Args)]
#[command(
    after_help = "A daemon on the same file executes the run; without one, this process does. Ctrl-C cancels it."
)]
pub struct RunArgs {
    /// The session to go on with; a new one when left out
    #[arg(long, value_name = "ID")]
    pub session: Option<SessionId>,

    /// The agent of a new session [default: the agent of its workspace]
    #[arg(long, value_name = "NAME")]
    pub agent: Option<AgentName>,

    /// The workspace of a new session [default: default]
    #[arg(long, value_name = "NAME")]
    pub workspace: Option<WorkspaceName>,

    /// The message; `-` reads it from stdin, as does leaving it out when stdin is no terminal
    pub text: Option<String>,
}

/// `send`
#[derive(Debug, Args)]
pub struct SendArgs {
    /// The session; created when it does not exist
    pub session: SessionId,

    /// The message; `-` reads it from stdin
    pub text: String,

    /// What to do when the session has a queued or running run
    #[arg(long, value_name = "HOW", default_value = "enqueue", value_parser = when_busy())]
    pub when_busy: WhenBusy,

    /// Higher goes first; −1000 to 1000
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    #[arg(value_parser = clap::value_parser!(i64).range(-1000..=1000))]
    pub priority: i64,
}

/// `attach`
#[derive(Debug, Args)]
#[command(after_help = "Ctrl-C only detaches; the run goes on.")]
pub struct AttachArgs {
    /// A run, or a session: then all its runs, one after the other
    #[arg(value_name = "RUN-or-SESSION")]
    pub target: Target,

    /// Show only what comes after this event of the session
    #[arg(long, value_name = "SEQ", default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..))]
    pub after: Seq,

    /// Go on into later runs of the session, instead of ending when it is idle
    #[arg(long)]
    pub follow: bool,

    /// How to show it [default: text, or ndjson with --json]
    #[arg(long)]
    pub format: Option<AttachFormat>,
}

/// How a stream is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AttachFormat {
    /// For people
    Text,
    /// One JSON object a line: seq, at, run_id, event
    Ndjson,
    /// Server-sent events, as HTTP would send them
    Sse,
}

/// `cancel`
#[derive(Debug, Args)]
pub struct CancelArgs {
    /// A run, or a session: then its current run
    #[arg(value_name = "RUN-or-SESSION")]
    pub target: Target,

    /// Wait until the run has ended
    #[arg(long)]
    pub wait: bool,
}

/// `close`
#[derive(Debug, Args)]
pub struct CloseArgs {
    /// The session
    pub session: SessionId,

    /// Cancel what it is doing; without this a busy session stays open
    #[arg(long)]
    pub cancel: bool,
}

/// `sessions`, and what other lists have in common with it
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Show this many at most
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
}

/// `runs`
#[derive(Debug, Args)]
pub struct RunsArgs {
    /// Only runs of this session
    #[arg(long, value_name = "ID")]
    pub session: Option<SessionId>,

    /// Only runs with this status
    #[arg(long, value_parser = status())]
    pub status: Option<Status>,

    /// How many
    #[command(flatten)]
    pub list: ListArgs,
}

/// `messages`
#[derive(Debug, Args)]
pub struct MessagesArgs {
    /// The session
    pub session: SessionId,
}

/// `show`
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// A run or a session
    #[arg(value_name = "ID")]
    pub target: Target,
}

/// A run or a session. A session may be called by a UUID too, so what reads as a run id is looked up as a run first and
/// then as a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The run that it may be.
    pub run: Option<RunId>,
    /// The session that it may be.
    pub session: SessionId,
}

impl FromStr for Target {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Ok(Self { run: text.parse().ok(), session: text.parse()? })
    }
}

/// The words of the config file for the same mistake; those of the standard library do not say what is needed.
fn listen(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| "an IP address with a port, such as 127.0.0.1:7717 or [::1]:7717, is needed")
}

fn workers() -> impl TypedValueParser<Value = u32> {
    let (least, most) = limits::WORKERS.into_inner();
    clap::value_parser!(u32).range(i64::from(least)..=i64::from(most))
}

fn when_busy() -> impl TypedValueParser<Value = WhenBusy> {
    PossibleValuesParser::new(["enqueue", "reject", "interrupt"]).try_map(|word| word.parse::<WhenBusy>())
}

fn status() -> impl TypedValueParser<Value = Status> {
    PossibleValuesParser::new(Status::ALL.map(Status::as_str)).try_map(|word| word.parse::<Status>())
}

impl Cli {
    /// How much to log. A daemon tells what it does; other commands speak only when something is wrong.
    pub fn verbosity(&self) -> i8 {
        let wanted = i16::from(self.verbose) - i16::from(self.quiet);
        let quieter = if matches!(self.command, Command::Serve(_)) { 0 } else { 1 };
        i8::try_from(wanted - quieter).unwrap_or(if wanted < 0 { i8::MIN } else { i8::MAX })
    }
}

impl Cli {
    /// Does what needs neither config nor log nor runtime: what an engine starts by itself, and looking after a container
    /// as its PID 1, where the command is left to a child. None for everything else.
    ///
    /// # Errors
    /// Why it could not be done.
    pub fn execute_alone(&self) -> anyhow::Result<Option<ExitCode>> {
        match &self.command {
            Command::TortureAgent(args) => torture::agent(args).map(Some),
            Command::Serve(_) if init::is_pid_1() => init::run().map(Some),
            _ => Ok(None),
        }
    }

    /// Does what was asked.
    ///
    /// # Errors
    /// Why it could not be done, for the person who asked.
    pub async fn execute(&self, config: Config) -> anyhow::Result<exit::Exit> {
        if let Command::Torture(args) = &self.command {
            return torture::run(args, self.json).await;
        }
        let makes_a_database = matches!(self.command, Command::Serve(_) | Command::Run(_) | Command::Send(_));
        if !makes_a_database && !self.db.exists() {
            anyhow::bail!("there is no database {}: name one with --db", self.db.display());
        }
        // Before the database is made: a command without a message leaves nothing behind.
        let message = match &self.command {
            Command::Run(args) => args.message()?,
            Command::Send(args) => args.message()?,
            _ => String::new(),
        };
        let engine = match &self.command {
            Command::Serve(_) => serve::open(&self.db, config).await,
            _ => Engine::open(&self.db, config).await,
        };
        let engine = engine.context("failed to open the database")?;
        let mut out = std::io::stdout();
        let done = match &self.command {
            Command::Serve(_) => return serve::run(engine).await,
            Command::Run(args) => run::run(&engine, args, message, self.json).await,
            Command::Send(args) => send::run(&engine, args, message, self.json, &mut out).await,
            Command::Attach(args) => attach::run(&engine, args, self.json).await,
            Command::Cancel(args) => cancel::cancel(&engine, args, self.json, &mut out).await,
            Command::Close(args) => cancel::close(&engine, args, self.json, &mut out).await,
            listing => list::run(&engine, listing, self.json, &mut out).await,
        };
        engine.drain(std::time::Duration::ZERO).await;
        engine.close().await;
        done
    }
}

impl AttachArgs {
    /// How to show the stream.
    pub fn format(&self, json: bool) -> AttachFormat {
        self.format.unwrap_or(if json { AttachFormat::Ndjson } else { AttachFormat::Text })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn cli(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_the_contract_promises_is_understood() {
        for line in [
            "mainstay serve",
            "mainstay serve --listen 127.0.0.1:0 --workers 0 --token s3cret",
            "mainstay --db x.db --config c.toml run --session a --agent demo --workspace default hello",
            "mainstay run",
            "mainstay run -",
            "mainstay send a hello --when-busy interrupt --priority -5",
            "mainstay attach a --after 7 --follow --format sse",
            "mainstay attach 0192f0c1-2345-7000-8000-0123456789ab --json",
            "mainstay cancel a --wait",
            "mainstay close a --cancel",
            "mainstay sessions --json -vv",
            "mainstay runs --session a --status timed_out --limit 5",
            "mainstay messages a",
            "mainstay slots",
            "mainstay workers -q",
            "mainstay show a",
            "mainstay sweep --log-format json",
        ] {
            if let Err(error) = cli(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_wrong_usage() {
        for line in [
            "mainstay",
            "mainstay serv",
            "mainstay serve --workers 1025",
            "mainstay serve --listen localhost",
            "mainstay send a",
            "mainstay send a/b hello",
            "mainstay send a hello --when-busy never",
            "mainstay send a hello --priority 1001",
            "mainstay attach a --after -1",
            "mainstay runs --status done",
            "mainstay sessions --limit 0",
            "mainstay sessions -v -q",
        ] {
            let error = cli(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn a_target_may_be_a_run_or_a_session_with_a_uuid() {
        let target: Target = "0192f0c1-2345-7000-8000-0123456789ab".parse().unwrap();
        assert_eq!(target.run.unwrap().to_string(), target.session.as_str());
        assert_eq!("web:1".parse::<Target>().unwrap().run, None);
        assert!("a b".parse::<Target>().is_err());
    }

    #[test]
    fn a_daemon_is_talkative_and_the_others_are_not() {
        for (line, expected) in [
            ("mainstay serve", 0),
            ("mainstay serve -vv", 2),
            ("mainstay serve -q", -1),
            ("mainstay slots", -1),
            ("mainstay slots -v", 0),
            ("mainstay -qq slots", -3),
        ] {
            assert_eq!(cli(line).unwrap().verbosity(), expected, "{line}");
        }
    }
}
