//! The doctor: what is wrong with a database and with all that belongs to it on this machine: processes, directories, the
//! disk, the programs of the agents.
//!
//! Always: it only reads, whether a daemon runs or not, and changes nothing. What it examines may change meanwhile; so a
//! process or directory is listed first, then the file is asked about it, and then it is checked again that it is still there.
//!
//! Proof: `tests/cli/doctor.rs`.

mod queue;
mod rows;

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use tokio::task::spawn_blocking;

use super::agents::working_dir;
use super::{EngineError, READS_AT_MOST};
use crate::agent::DriverConfig;
use crate::audit::{Audit, Check, Finding, Verdict};
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::config::Config;
use crate::config::placeholder;
use crate::id::RunId;
use crate::process::Shims;
use crate::process::program::what_is_missing;
use crate::process::reap::{self, Liveness};
use crate::process::temp_dir;
use crate::run::Attempt;
use crate::store::audit::Depth;
use crate::store::reading::{Known, Reading};
use crate::store::worker::Registered;
use crate::store::{agents_dir, backup_note, files, newest_schema, token_file};

/// A write-ahead log that is truncated after each checkpoint grows beyond this only while a reader keeps its transaction open.
const MAX_WAL_BYTES: u64 = 256 * 1024 * 1024;
/// Less free space than this is reported.
const MIN_FREE_BYTES: u64 = 512 * 1024 * 1024;
/// Less than this share of the disk is reported too, in percent.
const MIN_FREE_PERCENT: u64 = 5;
/// Most directories of agents that are examined.
const HOMES_AT_ONCE: usize = 4096;
/// A worker without a heartbeat for this many lengths of its leases is silent.
const SILENT_LEASES: u32 = 3;

/// Examines the database at `path` and what belongs to it, as `config` describes that.
///
/// # Errors
/// [`EngineError::Store`] when there is no database of ours that could be examined.
pub async fn examine(path: &Path, config: &Config, depth: Depth) -> Result<Audit, EngineError> {
    let mut tries = 0;
    loop {
        let mut reading = Reading::open(path).await?;
        let audit = examine_open(&mut reading, config, depth).await;
        let is_outdated = reading.is_outdated();
        reading.close().await;
        tries += 1;
        if !is_outdated || tries == READS_AT_MOST {
            return audit;
        }
    }
}

async fn examine_open(reading: &mut Reading, config: &Config, depth: Depth) -> Result<Audit, EngineError> {
    let path = reading.path().to_owned();
    let (found, known) = (reading.schema_version().await?, newest_schema());
    let mut checks = vec![schema(reading, found, known).await?];
    if found == known {
        checks.extend(reading.audit(depth).await.checks);
        if depth == Depth::Full {
            checks.push(rows::check(&path, config).await);
        }
        // The audit reports unreadable rows; here each check that they prevent becomes a finding.
        let workers = reading.workers().await.unwrap_or_default();
        checks.push(stuck_runs(reading, &workers).await.unwrap_or_else(|error| unasked("runs", &error)));
        checks.push(workers_gone(&workers));
        checks.extend(match queue::checks(reading, config).await {
            Ok(checks) => checks.to_vec(),
            Err(error) => vec![unasked("queue", &error)],
        });
        checks.push(leftover_processes(reading).await.unwrap_or_else(|error| unasked("processes", &error)));
        checks.push(leftover_directories(reading, &path).await.unwrap_or_else(|error| unasked("directories", &error)));
    }
    let agents = config.clone();
    let of_the_machine = spawn_blocking(move || {
        let of_file = [log_size(&path), disk(&path), temp(), permissions(&path)];
        [&of_file[..], &[programs(&agents), workspaces(&agents), placeholders(&agents)]].concat()
    });
    // It fails only when the runtime goes down.
    checks.extend(of_the_machine.await.into_iter().flatten());
    Ok(Audit { checks })
}

/// A check that could not be made because a row cannot be read.
fn unasked(name: &'static str, error: &EngineError) -> Check {
    let finding = Finding::new("the database", format!("cannot be asked: {error}"));
    Check::new(name, Verdict::Error, "first put right what the checks above name", vec![finding])
}

/// Whether the schema is that of this build, with everything that keeps its promises.
async fn schema(reading: &mut Reading, found: i64, known: i64) -> Result<Check, EngineError> {
    let detail = format!("its schema is version {found}, this build has {known}");
    let finding = vec![Finding::new(reading.path().display(), detail)];
    let check = |severity, advice, findings| Check::new("schema", severity, advice, findings);
    if let Some(said) = reading.other_build().await {
        let finding = Finding::new(reading.path().display(), said.to_string());
        return Ok(check(Verdict::Error, "use the build that made it, or begin anew", vec![finding]));
    }
    Ok(match found.cmp(&known) {
        std::cmp::Ordering::Less => {
            let advice = "`mainstay backup` it, then start the daemon, which migrates it; its rows were not checked";
            check(Verdict::Warning, advice, finding)
        }
        std::cmp::Ordering::Greater => {
            check(Verdict::Error, "use a newer build of mainstay; its rows were not checked", finding)
        }
        std::cmp::Ordering::Equal => {
            let altered = reading.altered_schema().await?.into_iter();
            let findings = altered.map(|what| Finding::new(what, "is missing, or not as mainstay makes it"));
            check(Verdict::Error, "another program altered the schema: restore a backup", findings.collect())
        }
    })
}

/// Running runs that no worker moves.
async fn stuck_runs(reading: &mut Reading, workers: &[Registered]) -> Result<Check, EngineError> {
    let workers: HashMap<_, _> = workers.iter().map(|worker| (worker.key, worker)).collect();
    let now = SystemClock.now();
    let stuck = reading.held().await?.into_iter().filter_map(|held| {
        let worker = workers.get(&held.worker);
        let detail = match worker.map(|worker| (worker, reap::is_alive(&worker.process))) {
            None => "is running, and its worker is not known".to_owned(),
            Some((worker, Liveness::Dead)) => format!("is running, and its worker {} is dead", worker.id),
            // Plus another length of the lease: other workers observe it that long before they take the run over.
            Some((worker, _)) if held.expires_at + worker.lease < now => {
                let since = if held.expires_at == Timestamp::from_millis(0) {
                    "was given back".to_owned()
                } else {
                    format!("ran out at {}", held.expires_at)
                };
                format!("is running, and the lease of its worker {} {since}", worker.id)
            }
            Some(_) => return None,
        };
        Some(Finding::new(held.run, detail))
    });
    let advice =
        "start the daemon, which goes on with them or settles them; `mainstay sweep` settles those that cannot go on";
    Ok(Check::new("runs", Verdict::Error, advice, stuck.collect()))
}

/// Workers that are dead, or have sent no heartbeat for long. A live one without heartbeats does not do its work.
fn workers_gone(workers: &[Registered]) -> Check {
    let now = SystemClock.now();
    let is_silent = |worker: &Registered| worker.heartbeat_at + worker.lease * SILENT_LEASES < now;
    let hangs = |worker: &Registered| is_silent(worker) && reap::is_alive(&worker.process) == Liveness::Alive;
    let severity = if workers.iter().any(hangs) { Verdict::Error } else { Verdict::Warning };
    let gone = workers.iter().filter_map(|worker| match reap::is_alive(&worker.process) {
        Liveness::Dead => Some(Finding::new(&worker.id, format!("process {} is dead", worker.process.pid))),
        Liveness::Alive | Liveness::Unknown if is_silent(worker) => Some(Finding::new(
            &worker.id,
            format!("process {}, last heard of at {}", worker.process.pid, worker.heartbeat_at),
        )),
        Liveness::Alive | Liveness::Unknown => None,
    });
    let advice = "the daemon or `mainstay sweep` removes those that are dead; look what keeps one that lives and is silent, and restart it";
    Check::new("workers", severity, advice, gone.collect())
}

/// Processes that runs of this file left: they carry the marker of a run that is not running.
async fn leftover_processes(reading: &mut Reading) -> Result<Check, EngineError> {
    let processes = spawn_blocking(reap::marked_processes).await.unwrap_or_default();
    let known = known(reading, processes.iter().map(|(attempt, _)| *attempt)).await?;
    let left = processes.into_iter().filter_map(|(attempt, process)| {
        let run = known.get(&attempt.run).filter(|run| !run.is_live)?;
        // In a copy of the file, the same run is another one.
        let is_of_this_file = attempt.origin() == Attempt { number: run.token, ..attempt }.origin();
        let lives = is_of_this_file && reap::is_alive(&process) == Liveness::Alive;
        let detail = || format!("was started by {}", run.what);
        lives.then(|| Finding::new(format!("process {}", process.pid), detail()))
    });
    let advice =
        "nothing needs them any more: `mainstay sweep` ends those that a host still holds; end the others by hand";
    Ok(Check::new("processes", Verdict::Error, advice, left.collect()))
}

/// Directories of agents whose run is not running, and unfinished copies of backups that were killed.
async fn leftover_directories(reading: &mut Reading, path: &Path) -> Result<Check, EngineError> {
    let shims = Shims::new(PathBuf::new(), agents_dir(path));
    let looked = shims.clone();
    let advice = "`mainstay sweep`, or the next sweep of the daemon, removes them";
    // The task fails only when the runtime goes down.
    let attempts = match spawn_blocking(move || looked.attempts(HOMES_AT_ONCE)).await.unwrap_or_else(|_| Ok(Vec::new()))
    {
        Ok(attempts) => attempts,
        Err(error) => {
            let finding = Finding::new(agents_dir(path).display(), format!("it cannot be looked into: {error}"));
            let advice = "examine it as the user who runs the daemon";
            return Ok(Check::new("directories", Verdict::Warning, advice, vec![finding]));
        }
    };
    let known = known(reading, attempts.iter().copied()).await?;
    let left = attempts.into_iter().filter_map(|attempt| {
        let run = known.get(&attempt.run);
        let detail = match run {
            Some(run) if run.is_live => return None,
            Some(run) => format!("it belongs to {}", run.what),
            None => "its run is not in this database".to_owned(),
        };
        let home = shims.dir_of(attempt);
        // What cannot be examined was there a moment before.
        home.try_exists().unwrap_or(true).then(|| Finding::new(home.display(), detail))
    });
    let mut left: Vec<_> = left.collect();
    let agents_dir = agents_dir(path);
    let copies = spawn_blocking(move || {
        let left = backup_note::unfinished(&agents_dir).into_iter().filter(backup_note::Unfinished::may_be_there);
        left.filter_map(|unfinished| unfinished.copy).collect::<Vec<_>>()
    });
    let copies = copies.await.unwrap_or_default().into_iter();
    left.extend(copies.map(|copy| Finding::new(copy.display(), "a backup that was killed left it unfinished")));
    Ok(Check::new("directories", Verdict::Warning, advice, left))
}

async fn known(
    reading: &mut Reading,
    attempts: impl Iterator<Item = Attempt>,
) -> Result<HashMap<RunId, Known>, EngineError> {
    Ok(reading.known_among(&attempts.map(|attempt| attempt.run).collect::<Vec<_>>()).await?)
}

fn log_size(path: &Path) -> Check {
    let [_, log, ..] = files(path);
    let detail = match std::fs::metadata(&log) {
        Ok(meta) if meta.len() > MAX_WAL_BYTES => {
            Some(format!("{} MiB, more than {}", meta.len() >> 20, MAX_WAL_BYTES >> 20))
        }
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Some(format!("it cannot be looked at: {error}")),
        _ => None,
    };
    let findings = detail.map(|detail| Finding::new(log.display(), detail));
    let advice = "somebody holds a read transaction open: close what reads the file, such as a forgotten sqlite3";
    Check::new("wal", Verdict::Warning, advice, findings.into_iter().collect())
}

fn disk(path: &Path) -> Check {
    let advice = "make room: when the disk is full nothing is accepted and agents are stopped short";
    let findings = match rustix::fs::statvfs(path) {
        Ok(disk) => {
            let free = disk.f_bavail.saturating_mul(disk.f_frsize);
            let percent = disk.f_bavail.saturating_mul(100) / disk.f_blocks.max(1);
            let detail = || format!("{} MiB are free on its disk, {percent} %", free >> 20);
            let is_little = free < MIN_FREE_BYTES || percent < MIN_FREE_PERCENT;
            is_little.then(|| Finding::new(path.display(), detail()))
        }
        Err(error) => Some(Finding::new(path.display(), format!("the free space could not be read: {error}"))),
    };
    Check::new("disk", Verdict::Warning, advice, findings.into_iter().collect())
}

/// Whether agents get their temporary directories where they belong.
fn temp() -> Check {
    let findings = temp_dir::problem().map(|problem| Finding::new("TMPDIR", problem));
    let advice = "agents get their temporary directories beside the database: let TMPDIR of the daemon name a directory \
                  that can be written, or make room";
    Check::new("temp", Verdict::Warning, advice, findings.into_iter().collect())
}

/// Whether other users of the machine may read what was said. A group with access was chosen by the owner.
fn permissions(path: &Path) -> Check {
    // Not even the group may read the token of requests.
    let token = token_file(path).ok().map(|file| (file, 0o077));
    let open = files(path).into_iter().chain([agents_dir(path)]).map(|file| (file, 0o007)).chain(token);
    let open = open.filter_map(|(file, others)| {
        let mode = match std::fs::metadata(&file) {
            Ok(meta) => meta.permissions().mode() & 0o777,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => return Some(Finding::new(file.display(), format!("it cannot be looked at: {error}"))),
        };
        (mode & others != 0).then(|| Finding::new(file.display(), format!("its mode is {mode:o}: others may use it")))
    });
    // Others may replace the database with another file, unless the sticky bit keeps them from it.
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mode = std::fs::metadata(dir).map_or(0, |meta| meta.permissions().mode() & 0o7777);
    let replaceable = (mode & 0o1002 == 0o002)
        .then(|| Finding::new(dir.display(), format!("its mode is {mode:o}: others may replace the database")));
    let advice = "take the rights of others away with `chmod o=`, and those of the group from a token with `chmod 600`";
    Check::new("permissions", Verdict::Warning, advice, open.chain(replaceable).collect())
}

/// Whether agents can write in their working directories. A missing directory is reported with its agents.
fn workspaces(config: &Config) -> Check {
    let unwritable = config.workspaces.values().filter(|workspace| workspace.dir.is_dir()).filter_map(|workspace| {
        let denied = rustix::fs::access(&workspace.dir, Access::WRITE_OK | Access::EXEC_OK).err()?;
        let detail = format!("{} cannot be written ({})", workspace.dir.display(), std::io::Error::from(denied));
        Some(Finding::new(&workspace.name, detail))
    });
    let advice = "agents there can only read: let the user of the daemon write, or correct `dir` of the workspace";
    Check::new("workspaces", Verdict::Warning, advice, unwritable.collect())
}

/// Whether the agents that turns may be given to can be started in their directories. A built-in agent may be missing as long
/// as no workspace needs it.
fn programs(config: &Config) -> Check {
    let builtin = Config::builtin(Path::new("/"));
    let mut missing = BTreeMap::new();
    for agent in config.agents.values() {
        let Some(spec) = agent.driver.process() else { continue };
        let residents = config.workspaces.values().filter(|workspace| workspace.agent == agent.name);
        let mut dirs: Vec<_> = residents.map(|workspace| workspace.dir.as_path()).collect();
        if dirs.is_empty() {
            if builtin.agents.get(&agent.name) == Some(agent) {
                continue;
            }
            // A session may ask for it in any workspace.
            dirs.push(working_dir(agent, config));
        }
        for what in dirs.into_iter().filter_map(|dir| what_is_missing(spec, dir)) {
            missing.insert((agent.name.clone(), what.clone()), Finding::new(&agent.name, what));
        }
    }
    let advice = "`mainstay agents` says how to get it; or correct `command` of the agent or `dir` of the workspace";
    Check::new("agents", Verdict::Error, advice, missing.into_values().collect())
}

/// Text for agents that looks like a placeholder and is none.
fn placeholders(config: &Config) -> Check {
    let findings = config.agents.values().flat_map(|agent| {
        let templates: Vec<_> = match &agent.driver {
            DriverConfig::OpenclawGateway(spec) => vec![&spec.agent],
            driver => {
                driver.process().into_iter().flat_map(|spec| spec.command.iter().chain(spec.env.values())).collect()
            }
        };
        let unknown = templates.into_iter().flat_map(|text| placeholder::unknown(text));
        unknown.map(|name| Finding::new(&agent.name, format!("{{{name}}} is no placeholder, and is left as it is")))
    });
    let advice =
        "correct it in `command`, `env` or `gateway_agent`, if it is mistyped: docs/config.md names all placeholders";
    Check::new("placeholders", Verdict::Warning, advice, findings.collect())
}
