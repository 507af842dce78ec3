//! `doctor`: problems of the database and of what belongs to it, and what to do about them.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use serde_json::json;

use super::exit::Exit;
use super::plain::plain;
use super::{DoctorArgs, table};
use crate::audit::{Check, Verdict};
use crate::config::Config;
use crate::engine::{Depth, doctor};

pub(super) async fn run(
    db: &Path,
    config: &Config,
    args: &DoctorArgs,
    as_json: bool,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    let depth = if args.quick { Depth::Quick } else { Depth::Full };
    let audit = doctor::examine(db, config, depth).await.context("failed to examine the database")?;
    let is_well = audit.verdict() < Verdict::Error;
    if as_json {
        table::json(out, &json!({ "ok": is_well, "verdict": audit.verdict(), "checks": audit.checks }))?;
    } else {
        audit.checks.iter().try_for_each(|check| show(check, out))?;
    }
    Ok(if is_well { Exit::Done } else { Exit::Failed })
}

fn show(check: &Check, out: &mut impl Write) -> std::io::Result<()> {
    let verdict = match check.verdict {
        Verdict::Ok => "ok",
        Verdict::Warning => "warning",
        Verdict::Error => "ERROR",
    };
    let advice = check.advice.map(|advice| format!("  {advice}")).unwrap_or_default();
    writeln!(out, "{}", format!("{verdict:7}  {:12}{advice}", check.name).trim_end())?;
    for finding in &check.findings {
        writeln!(out, "           {}: {}", plain(&finding.subject), plain(&finding.detail))?;
    }
    if check.more {
        writeln!(out, "           … and more")?;
    }
    Ok(())
}
