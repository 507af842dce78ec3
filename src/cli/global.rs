//! The options of every command, also of `mainstay-torture`.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use crate::telemetry::LogFormat;

const GLOBAL: &str = "Global options";

/// Options that may stand before and behind every command.
#[derive(Debug, Args)]
pub struct GlobalArgs {
    /// The database file [default: mainstay.db in the working directory]
    #[arg(long, global = true, help_heading = GLOBAL, env = "MAINSTAY_DB", value_name = "PATH")]
    pub db: Option<PathBuf>,

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
}

impl GlobalArgs {
    /// How much a command logs that is not a daemon: only when something is wrong.
    pub fn verbosity(&self) -> i8 {
        self.louder(-1)
    }

    /// The verbosity, given the usual one of the command.
    pub(super) fn louder(&self, usual: i16) -> i8 {
        let wanted = i16::from(self.verbose) - i16::from(self.quiet) + usual;
        i8::try_from(wanted).unwrap_or(if wanted < 0 { i8::MIN } else { i8::MAX })
    }
}
