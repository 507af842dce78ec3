//! `torture`: replaces this process by `mainstay-torture`, which is installed with Mainstay and is not part of the
//! library.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use clap::{Args, ValueEnum};

use super::global::GlobalArgs;

/// The program of the torture.
const PROGRAM: &str = "mainstay-torture";

/// `torture`
#[derive(Debug, Args)]
pub struct TortureArgs {
    /// Passed on as they are.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    arguments: Vec<OsString>,
}

/// Executes that program. Returns only the reason why that failed.
pub(super) fn exec(args: &TortureArgs, global: &GlobalArgs) -> anyhow::Error {
    let own = match std::env::current_exe().context("failed to find this program") {
        Ok(own) => own,
        Err(error) => return error,
    };
    let beside = own.with_file_name(PROGRAM);
    let program = if beside.is_file() { beside } else { PathBuf::from(PROGRAM) };
    let mut command = Command::new(&program);
    command.arg("--mainstay").arg(&own).args(given(global)).args(&args.arguments);
    // A name without a slash is looked up on PATH.
    let error = command.exec();
    if error.kind() == io::ErrorKind::NotFound {
        return anyhow::anyhow!(
            "{PROGRAM} is neither in {} nor on PATH: it is installed with mainstay (`cargo install --path .` in the \
             repository); where mainstay was copied from there, copy it too",
            own.parent().unwrap_or(&own).display()
        );
    }
    anyhow::Error::from(error).context(format!("failed to execute {}", program.display()))
}

/// The global options that were parsed before the arguments to pass on. If an option is given twice, the program uses the last.
fn given(global: &GlobalArgs) -> Vec<String> {
    let mut given = vec!["--verbose".to_owned(); global.verbose.into()];
    given.extend(vec!["--quiet".to_owned(); global.quiet.into()]);
    given.extend(global.json.then(|| "--json".to_owned()));
    given.extend(global.log_format.to_possible_value().map(|format| format!("--log-format={}", format.get_name())));
    given
}
