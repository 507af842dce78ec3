//! The arguments of `mainstay torture`, and those of its agents.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use mainstay::cli::exit::Exit;
use mainstay::cli::plain::plain;
use mainstay::cli::signals::StopSignals;
use mainstay::cli::{GlobalArgs, table};
use mainstay::config::duration;
use mainstay::telemetry;
use tokio_util::sync::CancellationToken;

use super::agent::{self, Agent, Stray};
use super::fake::acp::script;
use super::journal::Report;
use super::protocol::Protocol;
use super::run::{self, Plan};

/// The number of kills if neither a number nor a duration is given.
const DEFAULT_KILLS: u64 = 200;
/// The longest duration of a torture without a limit of its own.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Kill engines and agents at random on a database made for it, and check that nothing is lost
#[derive(Debug, Parser)]
#[command(name = "mainstay-torture", bin_name = "mainstay torture", max_term_width = 100)]
// `mainstay` passes on the options given before the word `torture`, which may be repeated after it.
#[command(args_override_self = true)]
#[command(
    after_help = "Makes a database of its own; --db and --config are not used. Exit status: 0 all promises were \
                        kept; 1 one was broken, and everything is kept for you to look at."
)]
pub(super) struct TortureArgs {
    /// What all faults are drawn from: the same seed gives the same faults in the same order [default: a random one]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// End after so many kills of engines, agents and what holds or reaches them [default: 200, or no limit with --for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    kills: Option<u64>,

    /// End after this time at the latest, such as 30s or 8m
    #[arg(long = "for", value_name = "DURATION", value_parser = limit)]
    limit: Option<Duration>,

    /// Engines on the one database
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=32))]
    engines: u16,

    /// Sessions, each with a writer
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..=500))]
    sessions: u16,

    /// Readers who follow sessions and runs
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(0..=500))]
    readers: u16,

    /// Where a directory for it is made: on the disk that is in question [default: the temporary directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Keep that directory also when all is well
    #[arg(long)]
    keep: bool,

    /// The program that is tortured [default: the one beside this program, else on PATH]
    #[arg(long, value_name = "PROGRAM", hide = true)]
    mainstay: Option<PathBuf>,

    #[command(flatten)]
    pub(super) global: GlobalArgs,
}

/// What an agent of a torture is started with.
#[derive(Debug, Parser)]
pub(super) struct AgentArgs {
    #[arg(long, required_unless_present_any = ["stray", "scripted"])]
    record: Option<PathBuf>,
    #[arg(long, requires = "record")]
    seed: Option<u64>,
    #[arg(long, requires = "record", default_value = "openclaw")]
    speaks: Protocol,
    #[arg(long, conflicts_with = "record")]
    stray: Option<Stray>,
    /// Speak ACP and do what prompts say, for Mainstay's own tests.
    #[arg(long, conflicts_with_all = ["record", "stray"])]
    scripted: bool,
    /// What a driver adds.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    arguments: Vec<String>,
}

fn limit(text: &str) -> Result<Duration, &'static str> {
    duration::parse(text).filter(|limit| !limit.is_zero()).ok_or("a duration such as 30s or 1m30s is needed")
}

/// An empty `TMPDIR` counts as unset.
fn default_dir() -> PathBuf {
    Some(std::env::temp_dir()).filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| "/tmp".into())
}

impl TortureArgs {
    /// Runs the torture and prints the report.
    pub(super) async fn run(&self) -> anyhow::Result<Exit> {
        let mut signals = StopSignals::new()?;
        let interrupted = CancellationToken::new();
        let tell = |line: &str| telemetry::say(&format!("torture: {line}\n"));
        let plan = self.plan()?;
        let torture = run::run(&plan, interrupted.clone(), tell);
        tokio::pin!(torture);
        let report = loop {
            tokio::select! {
                report = &mut torture => break report?,
                () = signals.next() => interrupted.cancel(),
            }
        };
        let Some(report) = report else { return Ok(Exit::Interrupted) };
        show(&report, self.global.json, &mut std::io::stdout())?;
        Ok(if report.violations_total == 0 { Exit::Done } else { Exit::Failed })
    }

    fn plan(&self) -> anyhow::Result<Plan> {
        let kills = match self.limit {
            Some(_) => u64::MAX,
            None => DEFAULT_KILLS,
        };
        let own = std::env::current_exe().context("failed to find this program")?;
        let beside = own.with_file_name("mainstay");
        let beside_or_on_path = || if beside.is_file() { beside.clone() } else { "mainstay".into() };
        let mainstay = self.mainstay.clone().unwrap_or_else(beside_or_on_path);
        // A name without a slash is looked up on PATH; any other relative path would be resolved in the torture's directory.
        let is_name = mainstay.components().count() == 1;
        Ok(Plan {
            mainstay: if is_name { mainstay } else { std::path::absolute(mainstay)? },
            agent: own,
            seed: self.seed.unwrap_or_else(|| fastrand::u64(..1 << 32)),
            kills: self.kills.unwrap_or(kills),
            limit: self.limit.unwrap_or(LONGEST),
            engines: self.engines.into(),
            sessions: self.sessions.into(),
            readers: self.readers.into(),
            dir: self.dir.clone().unwrap_or_else(default_dir),
            keep: self.keep,
        })
    }
}

impl AgentArgs {
    /// Runs as an agent of a torture, or as a process that one left behind.
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        if self.scripted {
            return script::run().map(|()| ExitCode::SUCCESS);
        }
        let status = match (self.stray, self.record) {
            (Some(stray), _) => agent::stray(stray).map(|()| 0)?,
            (None, Some(record)) => {
                agent::run(&Agent { record, seed: self.seed, protocol: self.speaks, arguments: self.arguments })?
            }
            // The parser allows no other combination.
            (None, None) => 2,
        };
        Ok(status.into())
    }
}

fn show(report: &Report, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    if json {
        return Ok(table::record(out, report, true)?);
    }
    // Violations are sentences: each gets a line of its own.
    table::record(out, &Report { violations: Vec::new(), ..report.clone() }, false)?;
    for violation in &report.violations {
        writeln!(out, "BROKEN: {}: {}", violation.promise, plain(&violation.detail))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(line: &str) -> Option<Plan> {
        TortureArgs::try_parse_from(line.split(' ')).ok()?.plan().ok()
    }

    #[test]
    fn kills_and_time_end_a_torture_whichever_is_first() {
        let limits = |line: &str| plan(line).map(|plan| (plan.kills, plan.limit));
        assert_eq!(limits("mainstay-torture"), Some((DEFAULT_KILLS, LONGEST)));
        assert_eq!(limits("mainstay-torture --kills 7"), Some((7, LONGEST)));
        assert_eq!(limits("mainstay-torture --for 1m30s"), Some((u64::MAX, Duration::from_secs(90))));
        assert_eq!(limits("mainstay-torture --kills 7 --for 8m"), Some((7, Duration::from_secs(480))));
        for wrong in ["--for soon", "--for 0s", "--kills 0", "--engines 0", "--sessions 0", "--readers many"] {
            assert_eq!(limits(&format!("mainstay-torture {wrong}")), None, "{wrong}");
        }
    }

    #[test]
    fn an_agent_has_a_record_and_a_seed_and_a_stray_has_neither() {
        let parses = |line: &str| AgentArgs::try_parse_from(line.split(' ')).is_ok();
        assert!(
            parses("agent --record r --seed 7")
                && parses("agent --stray ignores-sigterm")
                && parses("agent --scripted")
        );
        for wrong in ["", " --seed 7", " --stray mute", " --stray ignores-sigterm --record r --seed 7"] {
            assert!(!parses(&format!("agent{wrong}")), "{wrong}");
        }
    }

    #[test]
    fn global_options_may_be_given_twice() {
        let line = "mainstay-torture --json --verbose --seed 7 --json --log-format json --log-format human";
        let args = TortureArgs::try_parse_from(line.split(' ')).unwrap();
        assert!(args.global.json && args.global.verbose == 1);
    }
}
