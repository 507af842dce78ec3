//! The command line: its commands, and which config applies to them.
//!
//! Always: results go to stdout and everything else to stderr. Precedence: flag > environment variable > config file > default.
//! A new command gets a variant of [`Command`] and a file here.

mod agents;
mod allocator;
mod args;
mod attach;
mod backends;
mod backup;
mod cancel;
mod cell;
mod columns;
mod deciding;
mod doctor;
pub mod exit;
mod global;
mod ids;
mod init;
mod input;
mod list;
mod permissions;
pub mod plain;
mod read_only;
mod reading;
mod rows;
mod run;
mod send;
mod serve;
mod session;
pub mod signals;
mod stream;
mod supervisor;
pub mod table;
pub mod terminal;
mod token;
mod torture;
mod tree;
mod waiting;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::config::Config;
use crate::engine::{Engine, EngineError, StoreError, database_exists, descriptors};
pub use args::*;
pub use global::GlobalArgs;
pub use torture::TortureArgs;

/// The database if none is named.
const DEFAULT_DATABASE: &str = "mainstay.db";

const EXIT_STATUS: &str = "Exit status: 0 done; 1 the run ended other than completed, or the operation failed; 2 wrong \
                           usage or config; 130 interrupted by Ctrl-C.";

/// A durable run engine for chat agents: one binary, one SQLite file.
#[derive(Debug, Parser)]
#[command(name = "mainstay", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = EXIT_STATUS)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: GlobalArgs,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What can be asked for.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon: HTTP, workers and the sweep
    ///
    /// SIGTERM, SIGINT: running turns may finish for shutdown_grace, then they are ended. SIGUSR2: they are left to the
    /// next daemon, and their agents go on. SIGHUP does not reload the config: restart.
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
    Sessions(SessionsArgs),
    /// Show a session and what its agent is told; make it, change that, or have the agent forget it
    Session(SessionArgs),
    /// List runs, the newest first
    Runs(RunsArgs),
    /// List the messages of a session, in order
    Messages(MessagesArgs),
    /// List agents: what is found of each here, and how to get the others
    ///
    /// Starts the program of each, to ask its version.
    Agents,
    /// List slots and who sits in them
    Slots,
    /// List the processes that execute runs
    Workers,
    /// List the live agents that are kept warm, those that ended last behind them, or end one
    Backends(BackendsArgs),
    /// List what agents ask before they use a tool, or answer it
    Permissions(PermissionsArgs),
    /// Say where the token is that requests need, show it, or make a new one
    ///
    /// `serve` makes it where neither config, flag nor environment names one. A daemon that was started with --token or
    /// MAINSTAY_TOKEN takes that one, whatever is in the file.
    Token(TokenArgs),
    /// Show everything about one run or session
    Show(ShowArgs),
    /// Sweep once, now: free idle slots, settle the runs of dead workers; print what was done
    ///
    /// Agents that live on are left to a daemon, unless somebody cancelled their runs.
    Sweep,
    /// Check the database, and the processes, directories and programs that belong to it
    Doctor(DoctorArgs),
    /// Copy the database while it is in use
    Backup(BackupArgs),
    /// Kill engines and agents at random on a database made for it, and check that nothing is lost
    ///
    /// `mainstay torture --help` lists its options.
    #[command(disable_help_flag = true)]
    Torture(TortureArgs),
}

impl Cli {
    /// The path of the database file.
    fn database(&self) -> &Path {
        self.global.db.as_deref().unwrap_or(Path::new(DEFAULT_DATABASE))
    }

    /// How much to log. A daemon logs what it does; other commands log only when something is wrong.
    pub fn verbosity(&self) -> i8 {
        if matches!(self.command, Command::Serve(_)) { self.global.louder(0) } else { self.global.verbosity() }
    }
}

impl Cli {
    /// Executes what needs neither config nor log nor runtime: replacing this process by the torture, and acting as PID 1 of a
    /// container, where a child executes the command. None for everything else; a daemon continues from here with an allocator
    /// that returns freed memory.
    ///
    /// # Errors
    /// Why it failed.
    pub fn execute_alone(&self) -> anyhow::Result<Option<ExitCode>> {
        match &self.command {
            Command::Torture(args) => Err(torture::exec(args, &self.global)),
            Command::Serve(_) if init::is_pid_1() => init::run().map(Some),
            Command::Serve(_) => {
                allocator::give_back_what_is_freed();
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// Executes the command.
    ///
    /// # Errors
    /// Why it failed, for the person who gave the command.
    pub async fn execute(&self, config: Config) -> anyhow::Result<exit::Exit> {
        let mut out = std::io::stdout();
        let makes_a_database = match &self.command {
            Command::Session(args) => args.new,
            command => matches!(command, Command::Serve(_) | Command::Run(_) | Command::Send(_)),
        };
        let is_there = makes_a_database || database_exists(self.database()).context("failed to open the database")?;
        match &self.command {
            Command::Agents if !is_there => return agents::without_database(&config, self.global.json, &mut out).await,
            _ if !is_there => return Err(StoreError::Absent(self.database().to_owned()).into()),
            command if command.only_reads() => {
                let read = reading::run(self.database(), config, command, self.global.json, &mut out).await;
                return read.map_err(|error| self.name_damaged(error));
            }
            Command::Doctor(args) => {
                return doctor::run(self.database(), &config, args, self.global.json, &mut out).await;
            }
            Command::Token(args) => {
                return token::run(self.database(), &config, args, self.global.json, &mut out).await;
            }
            Command::Backup(args) => return backup::run(self.database(), args, self.global.json, &mut out).await,
            _ => {}
        }
        // Before the database is created: a command without a message leaves nothing behind.
        let message = match &self.command {
            Command::Run(args) => Some(args.message(config.server.max_body_bytes)?),
            Command::Send(args) => Some(args.message(config.server.max_body_bytes)?),
            _ => None,
        };
        if matches!(self.command, Command::Serve(_) | Command::Run(_))
            && let Err(error) = descriptors::raise_limit()
        {
            tracing::warn!(%error, "failed to raise the limit of file descriptors to the hard one");
        }
        let engine = match &self.command {
            Command::Serve(_) => serve::open(self.database(), config).await,
            _ => Engine::open(self.database(), config).await,
        };
        let engine = engine.context("failed to open the database")?;
        let done = match (&self.command, message) {
            (Command::Serve(_), _) => return serve::run(engine).await,
            (Command::Run(args), Some(message)) => run::run(&engine, args, message, self.global.json).await,
            (Command::Send(args), Some(message)) => send::run(&engine, args, message, self.global.json, &mut out).await,
            (Command::Cancel(args), _) => cancel::cancel(&engine, args, self.global.json, &mut out).await,
            (Command::Close(args), _) => cancel::close(&engine, args, self.global.json, &mut out).await,
            (Command::Backends(args), _) => backends::run(&engine, args, self.global.json, &mut out).await,
            (Command::Permissions(args), _) => permissions::run(&engine, args, self.global.json, &mut out).await,
            (Command::Session(args), _) => session::run(&engine, args, self.global.json, &mut out).await,
            (listing, _) => list::run(&engine, listing, self.global.json, &mut out).await,
        };
        engine.drain(std::time::Duration::ZERO).await;
        engine.close().await;
        done.map_err(|error| self.name_damaged(error))
    }

    /// Adds to an error about invalid content of the database that the file is damaged, since Mainstay did not write that.
    fn name_damaged(&self, error: anyhow::Error) -> anyhow::Error {
        match error.downcast_ref() {
            Some(EngineError::Store(StoreError::Invalid(_))) => {
                error.context(format!("failed to read {}, which is damaged", self.database().display()))
            }
            _ => error,
        }
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
            "mainstay sessions --tree",
            "mainstay session a --set model=x=y --unset extra.effort --reset",
            "mainstay session a --new --spawned-by b --label tests --oneshot --set mode=plan",
            "mainstay runs --session a --status timed_out --limit 5",
            "mainstay messages a",
            "mainstay slots",
            "mainstay workers -q",
            "mainstay backends --json",
            "mainstay backends stop 0192f0c1-2345-7000-8000-0123456789ab --force",
            "mainstay permissions --state denied --session a",
            "mainstay permissions --answer 0192f0c1-2345-7000-8000-0123456789ab allow --reason why",
            "mainstay token",
            "mainstay token show --json",
            "mainstay token rotate",
            "mainstay show a",
            "mainstay sweep --log-format json",
            "mainstay doctor --quick --json",
            "mainstay backup copy.db",
            "mainstay -v torture --json --kills 7 --for 8m --json",
            "mainstay torture --help",
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
            "mainstay permissions --state open",
            "mainstay permissions --answer 0192f0c1-2345-7000-8000-0123456789ab",
            "mainstay permissions --reason why",
            "mainstay backends end",
            "mainstay backends stop",
            "mainstay sessions --limit 0",
            "mainstay session",
            "mainstay session a --label x",
            "mainstay session a --set model",
            "mainstay backup",
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
