//! `torture`: engines under random faults on this machine's own disk, and whether they keep what they promise.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::exit::Exit;
use super::plain::plain;
use super::signals::StopSignals;
use super::table;
use crate::config::duration;
use crate::telemetry;
use crate::torture::agent::{Agent, Stray};
use crate::torture::dialect::Dialect;
use crate::torture::{self, Plan, Report, agent};

/// Kills of a torture that was told neither how many nor for how long.
const DEFAULT_KILLS: u64 = 200;
/// A torture without a limit of its own is over after this time.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// `torture`
#[derive(Debug, Args)]
#[command(
    after_help = "Makes a database of its own; --db and --config are not used. Exit status: 0 all promises were \
                        kept; 1 one was broken, and everything is kept for you to look at."
)]
pub struct TortureArgs {
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

    /// Sessions, each with somebody who writes to it
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
}

/// `torture-agent`
#[derive(Debug, Args)]
pub struct TortureAgentArgs {
    #[arg(long, required_unless_present = "stray")]
    record: Option<PathBuf>,
    #[arg(long, requires = "record")]
    seed: Option<u64>,
    #[arg(long, requires = "record", default_value = "openclaw")]
    speaks: Dialect,
    #[arg(long, conflicts_with = "record")]
    stray: Option<Stray>,
    /// What a driver adds.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    arguments: Vec<String>,
}

fn limit(text: &str) -> Result<Duration, &'static str> {
    duration::parse(text).filter(|limit| !limit.is_zero()).ok_or("a duration such as 30s or 1m30s is needed")
}

/// An empty `TMPDIR` is none.
fn default_dir() -> PathBuf {
    Some(std::env::temp_dir()).filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| "/tmp".into())
}

impl TortureArgs {
    fn plan(&self) -> Plan {
        let kills = match self.limit {
            Some(_) => u64::MAX,
            None => DEFAULT_KILLS,
        };
        Plan {
            seed: self.seed.unwrap_or_else(|| fastrand::u64(..1 << 32)),
            kills: self.kills.unwrap_or(kills),
            limit: self.limit.unwrap_or(LONGEST),
            engines: self.engines.into(),
            sessions: self.sessions.into(),
            readers: self.readers.into(),
            dir: self.dir.clone().unwrap_or_else(default_dir),
            keep: self.keep,
        }
    }
}

pub(super) async fn run(args: &TortureArgs, json: bool) -> anyhow::Result<Exit> {
    let mut signals = StopSignals::new()?;
    let interrupted = CancellationToken::new();
    let tell = |line: &str| telemetry::say(&format!("torture: {line}\n"));
    let plan = args.plan();
    let torture = torture::run(&plan, interrupted.clone(), tell);
    tokio::pin!(torture);
    let report = loop {
        tokio::select! {
            report = &mut torture => break report?,
            () = signals.next() => interrupted.cancel(),
        }
    };
    let Some(report) = report else { return Ok(Exit::Interrupted) };
    show(&report, json, &mut std::io::stdout())?;
    Ok(if report.violations_total == 0 { Exit::Done } else { Exit::Failed })
}

/// Is an agent of a torture, or what one left behind.
pub(super) fn agent(args: &TortureAgentArgs) -> anyhow::Result<ExitCode> {
    let status = match (args.stray, args.record.clone()) {
        (Some(stray), _) => agent::stray(stray).map(|()| 0)?,
        (None, Some(record)) => {
            let arguments = args.arguments.clone();
            agent::run(&Agent { record, seed: args.seed, dialect: args.speaks, arguments })?
        }
        // The parser lets nothing else through.
        (None, None) => 2,
    };
    Ok(status.into())
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
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn plan(line: &str) -> Option<Plan> {
        match Cli::try_parse_from(line.split(' ')).ok()?.command {
            Command::Torture(args) => Some(args.plan()),
            _ => None,
        }
    }

    #[test]
    fn a_torture_ends_after_kills_or_after_a_time_or_after_what_comes_first() {
        let limits = |line: &str| plan(line).map(|plan| (plan.kills, plan.limit));
        assert_eq!(limits("mainstay torture"), Some((DEFAULT_KILLS, LONGEST)));
        assert_eq!(limits("mainstay torture --kills 7"), Some((7, LONGEST)));
        assert_eq!(limits("mainstay torture --for 1m30s"), Some((u64::MAX, Duration::from_secs(90))));
        assert_eq!(limits("mainstay torture --kills 7 --for 8m"), Some((7, Duration::from_secs(480))));
        for wrong in ["--for soon", "--for 0s", "--kills 0", "--engines 0", "--sessions 0", "--readers many"] {
            assert_eq!(limits(&format!("mainstay torture {wrong}")), None, "{wrong}");
        }
    }

    #[test]
    fn an_agent_has_a_record_and_a_seed_and_a_stray_has_neither() {
        let parses = |line: &str| Cli::try_parse_from(line.split(' ')).is_ok();
        assert!(parses("mainstay torture-agent --record r --seed 7") && parses("mainstay torture-agent --stray deaf"));
        for wrong in ["", " --seed 7", " --stray mute", " --stray deaf --record r --seed 7"] {
            assert!(!parses(&format!("mainstay torture-agent{wrong}")), "{wrong}");
        }
    }
}
