//! `mainstay-torture`, which `mainstay torture` executes: runs Mainstay under random faults on this machine's own disk, and
//! checks that it keeps its promises. As `mainstay-torture agent` it is one of the agents of a torture.
//!
//! Always: everything is observed from outside; the engines are processes of the tortured `mainstay`.

mod acp;
mod agent;
mod args;
mod backend_cap;
mod chaos;
mod check;
mod client;
// By its path: as a dependency, testkit would also be one of the library, and each edit of a fake would rebuild that.
#[path = "../testkit/src/fake/mod.rs"]
#[expect(dead_code, reason = "tests use the rest")]
mod fake;
mod fleet;
mod gateway;
mod journal;
mod opencode;
mod processes;
mod protocol;
mod reader;
mod record;
mod run;
mod turn;
mod voice;
mod workdir;
mod writer;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use mainstay::cli::exit::{self, Exit, Usage, reader_is_gone};
use mainstay::telemetry;

use self::args::{AgentArgs, TortureArgs};

/// The first argument of an agent.
const AGENT: &str = "agent";

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == AGENT) {
        return AgentArgs::parse_from(std::env::args_os().skip(1)).run().unwrap_or_else(|error| {
            let _ = writeln!(std::io::stderr(), "mainstay-torture: failed to be an agent: {error:#}");
            ExitCode::FAILURE
        });
    }
    let _flush = telemetry::FlushOnDrop;
    let args = match TortureArgs::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Parsing has failed, but `--json` still applies to the report of that.
            let json = std::env::args_os().any(|argument| argument == "--json");
            let Some(report) = exit::report_usage(&error, json) else { error.exit() };
            telemetry::say(&report);
            return Exit::Usage.into();
        }
    };
    match run(&args) {
        Ok(exit) => exit.into(),
        Err(error) if reader_is_gone(&error) => Exit::Done.into(),
        Err(error) => {
            telemetry::flush();
            telemetry::say(&exit::report(&error, args.global.json));
            Exit::of(&error).into()
        }
    }
}

fn run(args: &TortureArgs) -> anyhow::Result<Exit> {
    let bad_filter = |error| Usage(format!("failed to read the log filter in {}: {error}", telemetry::FILTER_VARIABLE));
    telemetry::init(args.global.log_format, args.global.verbosity()).map_err(bad_filter)?;
    let runtime = tokio::runtime::Runtime::new().context("failed to start the async runtime")?;
    runtime.block_on(args.run())
}
