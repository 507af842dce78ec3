//! The arguments of each command.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand, ValueEnum};

use crate::config::limits;
use crate::event::Seq;
use crate::id::{AgentName, InvalidId, RunId, SessionId, WorkspaceName};
use crate::permission::PermissionState;
use crate::run::{Status, WhenBusy};

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

    /// A file to send along; may be given several times, and then the message may be left out
    #[arg(long, value_name = "FILE")]
    pub attach: Vec<PathBuf>,

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

    /// A file to send along; may be given several times, and then the message may be empty
    #[arg(long, value_name = "FILE")]
    pub attach: Vec<PathBuf>,

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
#[command(
    after_help = "Ctrl-C only detaches; the run goes on. Exit status: 0 the run, or the last one of the session, completed; \
                  1 it ended otherwise; 130 Ctrl-C."
)]
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

    /// Cancel also what the sessions below do: those that work for the session, and those that work for them
    #[arg(long)]
    pub children: bool,
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

/// What lists have in common
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Show this many at most
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
}

/// `sessions`
#[derive(Debug, Args)]
pub struct SessionsArgs {
    /// Show each session below the one that it works for, with what it is doing
    #[arg(long)]
    pub tree: bool,

    /// How many
    #[command(flatten)]
    pub list: ListArgs,
}

/// `session`
#[derive(Debug, Args)]
#[command(
    after_help = "Options: mode, model, cwd, permission_profile, timeout_seconds, and extra.KEY for one of the agent's \
                        own. They hold from the next turn on; no agent is started."
)]
pub struct SessionArgs {
    /// The session
    #[arg(value_name = "ID")]
    pub session: SessionId,

    /// Make it; it may exist with the same values
    #[arg(long)]
    pub new: bool,

    /// The agent of a new session [default: the agent of its workspace]
    #[arg(long, value_name = "NAME", requires = "new")]
    pub agent: Option<AgentName>,

    /// The workspace of a new session [default: default]
    #[arg(long, value_name = "NAME", requires = "new")]
    pub workspace: Option<WorkspaceName>,

    /// The session that a new session works for
    #[arg(long, value_name = "ID", requires = "new")]
    pub spawned_by: Option<SessionId>,

    /// What a new session is for, in a word or two
    #[arg(long, value_name = "TEXT", requires = "new")]
    pub label: Option<String>,

    /// The agent forgets a new session after each turn
    #[arg(long, requires = "new")]
    pub oneshot: bool,

    /// Set an option; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    pub set: Vec<(String, String)>,

    /// Clear an option; may be given several times
    #[arg(long, value_name = "KEY")]
    pub unset: Vec<String>,

    /// Have the agent forget the session: its next turn begins a new one of the agent
    #[arg(long)]
    pub reset: bool,
}

impl SessionArgs {
    /// The changes to the options.
    pub fn changes(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let set = self.set.iter().map(|(key, value)| (key.as_str(), Some(value.as_str())));
        set.chain(self.unset.iter().map(|key| (key.as_str(), None)))
    }
}

fn pair(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("KEY=VALUE is needed")?;
    Ok((key.to_owned(), value.to_owned()))
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

/// `permissions`
#[derive(Debug, Args)]
#[command(
    after_help = "The first answer counts. OPTION is the id of one of the options (--json lists them), or allow or deny."
)]
pub struct PermissionsArgs {
    /// Answer one
    #[arg(long, num_args = 2, value_names = ["ID", "OPTION"], conflicts_with_all = ["state", "all", "session", "run"])]
    pub answer: Vec<String>,

    /// Why it is answered so
    #[arg(long, value_name = "TEXT", requires = "answer")]
    pub reason: Option<String>,

    /// Only those in this state [default: pending]
    #[arg(long, value_parser = permission_state())]
    pub state: Option<PermissionState>,

    /// Those that are decided, too
    #[arg(long, conflicts_with = "state")]
    pub all: bool,

    /// Only those of this session
    #[arg(long, value_name = "ID")]
    pub session: Option<SessionId>,

    /// Only those of this run
    #[arg(long, value_name = "ID")]
    pub run: Option<String>,

    /// How many
    #[command(flatten)]
    pub list: ListArgs,
}

/// `backends`
#[derive(Debug, Args)]
pub struct BackendsArgs {
    /// What to do, when not to list them
    #[command(subcommand)]
    pub command: Option<BackendsCommand>,
}

/// What can be done with a live agent.
#[derive(Debug, Subcommand)]
pub enum BackendsCommand {
    /// End one, as soon as no turn is on it
    Stop {
        /// The backend
        #[arg(value_name = "ID")]
        id: String,

        /// Also when a turn is on it now: when that is over, it ends
        #[arg(long)]
        force: bool,
    },
}

/// `token`
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// What to do, when not to say where it is
    #[command(subcommand)]
    pub command: Option<TokenCommand>,
}

/// What can be done with the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum TokenCommand {
    /// Print the token that is in the file
    ///
    /// A daemon that was started with --token or MAINSTAY_TOKEN takes that one instead, which cannot be seen here.
    Show,
    /// Make a new one; a daemon takes it at once, and the old one is worth nothing any more
    Rotate,
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

/// `doctor`
#[derive(Debug, Args)]
#[command(
    after_help = "Changes nothing; a daemon may run. Exit status: 0 all is well, warnings aside; 1 something is wrong."
)]
pub struct DoctorArgs {
    /// Do not compare indexes with their tables, nor look at constraints and read each row, which takes most of the time
    #[arg(long)]
    pub quick: bool,
}

/// `backup`
#[derive(Debug, Args)]
#[command(after_help = "A daemon may run and write meanwhile. The copy is checked before it gets its name.")]
pub struct BackupArgs {
    /// The file to be made; it must not exist
    #[arg(value_name = "PATH")]
    pub to: PathBuf,
}

/// A run or a session. A session may be called by a UUID too, so what reads as a run id is looked up as a run first and
/// then as a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The run, if the text can be a run id.
    pub run: Option<RunId>,
    /// The text as a session id.
    pub session: SessionId,
}

impl FromStr for Target {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Ok(Self { run: text.parse().ok(), session: text.parse()? })
    }
}

/// The same words as in the config file's error; the standard library's do not say what is needed.
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

fn permission_state() -> impl TypedValueParser<Value = PermissionState> {
    let words = PossibleValuesParser::new(PermissionState::ALL.map(PermissionState::as_str));
    words.try_map(|word| word.parse::<PermissionState>())
}

impl AttachArgs {
    /// The format of the output.
    pub fn format(&self, json: bool) -> AttachFormat {
        self.format.unwrap_or(if json { AttachFormat::Ndjson } else { AttachFormat::Text })
    }
}
