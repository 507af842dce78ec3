//! The binary: flags → config → telemetry → command → exit code; or, hidden, the shim of an agent, the relay of a turn, the
//! bridge to an ACP agent, or the demo agent.
//!
//! Always: errors are printed here, once, on stderr. Nothing in this binary uses `println!`, which would panic when the reader
//! of our output goes away; and commands write to stderr through [`telemetry`], which never blocks.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use mainstay::cli::Cli;
use mainstay::cli::exit::{self, Exit, Usage, reader_is_gone};
use mainstay::driver::acp::bridge;
use mainstay::driver::{demo, open, relay};
use mainstay::process::shim;
use mainstay::telemetry;

/// At exit, the process waits this long for abandoned work on the thread pool.
const ABANDONED_WORK_TIMEOUT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    // First of all: a shim is small because nothing else of the program is ever touched.
    if let Some(dir) = shim::asked_for(std::env::args_os()) {
        return match shim::run(&dir) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "mainstay: failed to hold an agent: {error}");
                ExitCode::FAILURE
            }
        };
    }
    if let Some(driver) = relay::asked_for(std::env::args_os()) {
        return open::relay(&driver).unwrap_or_else(|error| {
            let _ = writeln!(std::io::stderr(), "mainstay: failed to relay a turn: {error}");
            ExitCode::FAILURE
        });
    }
    if let Some(command) = bridge::asked_for(std::env::args_os()) {
        return bridge::run(&command).unwrap_or_else(|error| {
            let _ = writeln!(std::io::stderr(), "mainstay: failed to hold an ACP agent: {error}");
            ExitCode::FAILURE
        });
    }
    if demo::is_asked_for(std::env::args_os()) {
        return demo::run().unwrap_or_else(|error| {
            let _ = writeln!(std::io::stderr(), "mainstay: failed to be the demo agent: {error}");
            ExitCode::FAILURE
        });
    }
    let _flush = telemetry::FlushOnDrop;
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Parsing failed, so the flag is looked for by hand.
            let json = std::env::args_os().any(|argument| argument == "--json");
            let Some(report) = exit::report_usage(&error, json) else { error.exit() };
            telemetry::say(&report);
            return Exit::Usage.into();
        }
    };
    match run(&cli) {
        Ok(exit) => exit,
        Err(error) if reader_is_gone(&error) => Exit::Done.into(),
        Err(error) => {
            telemetry::flush();
            telemetry::say(&exit::report(&error, cli.global.json));
            Exit::of(&error).into()
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    if let Some(exit) = cli.execute_alone()? {
        return Ok(exit);
    }
    // Before the config, which may log a warning.
    let bad_filter = |error| Usage(format!("failed to read the log filter in {}: {error}", telemetry::FILTER_VARIABLE));
    telemetry::init(cli.global.log_format, cli.verbosity()).map_err(bad_filter)?;
    let mut config = cli.load_config()?;
    cli.check_found_database()?;
    // The running program, even if its file was replaced since.
    config.engine.shim_program = "/proc/self/exe".into();
    // Names only: the commands and environments of agents may contain keys.
    tracing::debug!(agents = ?config.agents.keys(), workspaces = ?config.workspaces.keys(), "configured");
    let runtime = tokio::runtime::Runtime::new().context("failed to start the async runtime")?;
    let exit = runtime.block_on(cli.execute(config));
    // Work that was abandoned after a failure of the engine may hang.
    runtime.shutdown_timeout(ABANDONED_WORK_TIMEOUT);
    Ok(exit?.into())
}
