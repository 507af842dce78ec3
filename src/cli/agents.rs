//! `agents`: the known agents, what is found of each on this machine, and how to install the others.

use std::io::Write;

use super::exit::Exit;
use super::plain::plain;
use super::signals::StopSignals;
use super::table;
use crate::catalogue::AgentReport;
use crate::config::Config;
use crate::engine::{Engine, agents};

/// With the number of running runs, from the database.
pub(super) async fn run(engine: &Engine, as_json: bool, out: &mut impl Write) -> anyhow::Result<Exit> {
    let mut signals = StopSignals::new()?;
    tokio::select! {
        reports = engine.list_agents() => show_all(&reports?, as_json, out),
        () = signals.next() => Ok(Exit::Interrupted),
    }
}

/// If there is no database yet.
pub(super) async fn without_database(config: &Config, as_json: bool, out: &mut impl Write) -> anyhow::Result<Exit> {
    let mut signals = StopSignals::new()?;
    tokio::select! {
        reports = agents::survey(config) => show_all(&reports, as_json, out),
        // The programs that it has started are in process groups of their own, which Ctrl-C does not reach.
        () = signals.next() => Ok(Exit::Interrupted),
    }
}

fn show_all(reports: &[AgentReport], as_json: bool, out: &mut impl Write) -> anyhow::Result<Exit> {
    reports.iter().try_for_each(|report| if as_json { table::json(out, report) } else { show(report, out) })?;
    Ok(Exit::Done)
}

fn show(report: &AgentReport, out: &mut impl Write) -> std::io::Result<()> {
    let state = match (&report.found, report.configured) {
        (Some(_), true) => "ready",
        (Some(_), false) => "found",
        (None, _) => "missing",
    };
    let found = report.found.as_ref().map(|found| match &found.version {
        Some(version) => format!("{}, {version}", found.at),
        None => found.at.clone(),
    });
    let what = found.or_else(|| report.missing.clone()).unwrap_or_default();
    let running = if report.running > 0 { format!(", {} running", report.running) } else { String::new() };
    writeln!(out, "{state:8} {:18} {:17} {}{running}", plain(&report.name), report.driver, plain(&what))?;
    let mut hint = |what: &str, how: &str| writeln!(out, "{:45} {what}: {how}", "");
    if report.found.is_none() {
        report.install.map_or(Ok(()), |install| hint("install", install))?;
        report.log_in.map_or(Ok(()), |log_in| hint("log in", log_in))?;
    }
    let Some(config) = &report.config else { return Ok(()) };
    hint("configure", "add to mainstay.toml")?;
    config.lines().try_for_each(|line| writeln!(out, "{:49} {line}", ""))
}
