//! Finds and ends what a run left running: every process that carries the run's marker in its environment or is in its
//! process group, and their descendants. A process group alone is not enough, because agents start their tools in
//! sessions of their own.
//!
//! Always: a signal goes through a pidfd to the very process that was found (its start time is compared once the pidfd
//! holds it), so a reused pid is never signalled. This process itself is never found.
//!
//! Linux 5.3 or newer only: `/proc` and pidfds. Not found is a process that left the group, cleared its environment and
//! lost its parent before the first scan; a cgroup would find that too.

use std::collections::HashSet;
use std::io::{self, Read};
use std::sync::OnceLock;
use std::time::Duration;

use procfs::process::{Process, Stat, StatFlags};
use procfs::{ProcError, ProcResult};
use rustix::param::clock_ticks_per_second;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid};
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use crate::failure::is_shortage;
use crate::id::RunId;
use crate::run::Attempt;
use crate::worker::ProcessIdentity;

/// The variable that holds the run's id in every process that the run starts.
pub const MARKER: &str = "MAINSTAY_RUN";

/// The variable that holds the number of the attempt. A process without it counts as one of the earliest attempt.
pub const ATTEMPT_MARKER: &str = "MAINSTAY_ATTEMPT";

/// Selects processes: those of a run, from a range of attempts. A worker that lost its lease must not end what the next
/// one started, and no worker may end what belongs to the same run in a copy of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    run: RunId,
    first: i64,
    last: i64,
}

impl Mark {
    /// Everything that attempts before this one started.
    pub fn before(attempt: Attempt) -> Self {
        Self { run: attempt.run, first: attempt.origin(), last: attempt.number - 1 }
    }

    /// Everything that attempts up to this one started.
    pub fn up_to(attempt: Attempt) -> Self {
        Self { run: attempt.run, first: attempt.origin(), last: attempt.number }
    }

    /// Whether an environment carries a marker in this range.
    fn is_in(self, environ: &[u8]) -> bool {
        let found = attempt_in(environ);
        found.is_some_and(|found| found.run == self.run && (self.first..=self.last).contains(&found.number))
    }
}

/// The attempt whose marker an environment carries.
fn attempt_in(environ: &[u8]) -> Option<Attempt> {
    let number = variable(environ, ATTEMPT_MARKER).and_then(|number| number.parse().ok());
    Some(Attempt { run: marker_in(environ)?.parse().ok()?, number: number.unwrap_or_default() })
}

/// The run's marker in an environment.
pub(super) fn marker_in(environ: &[u8]) -> Option<String> {
    variable(environ, MARKER)
}

fn variable(environ: &[u8], name: &str) -> Option<String> {
    let is_it = |entry: &[u8]| Some(entry.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?.to_owned());
    String::from_utf8(environ.split(|byte| *byte == 0).find_map(is_it)?).ok()
}

impl From<Attempt> for Mark {
    fn from(attempt: Attempt) -> Self {
        Self { run: attempt.run, first: attempt.number, last: attempt.number }
    }
}

/// How long to wait after SIGKILL. A process ends at once, unless it sleeps in the kernel, and then after any length of
/// time.
const CONFIRM: Duration = Duration::from_secs(5);

/// SIGKILL is repeated at this interval, for a fork that escaped the previous pass.
const KILL_AGAIN: Duration = Duration::from_millis(100);

/// How long an `execve` may take. It takes about a millisecond, but a loaded machine may suspend it halfway; a process
/// without a visible environment for longer hides it.
const EXEC_LASTS: Duration = Duration::from_secs(2);

/// The kernel allows 6 MiB for arguments and environment together.
pub(super) const MAX_ENVIRON_BYTES: u64 = 8 * 1024 * 1024;

/// Whether a process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It runs.
    Alive,
    /// It is gone, or only its exit status is left.
    Dead,
    /// It belongs to another boot or pid namespace, or `/proc` gives no answer.
    Unknown,
}

/// The result of ending a run's processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Processes that were found and are gone.
    pub ended: usize,
    /// Processes that survive SIGKILL.
    pub remaining: usize,
    /// Nothing is left, as far as this pid namespace shows.
    pub is_certain: bool,
}

/// The identity of this process.
///
/// # Errors
/// `/proc` cannot be read.
pub fn own_identity() -> io::Result<ProcessIdentity> {
    let stat = Process::myself().and_then(|process| process.stat()).map_err(io::Error::other)?;
    Ok(identity(host()?, &stat))
}

/// The identity of the process that has this pid now.
pub fn identity_of(pid: i32) -> Option<ProcessIdentity> {
    look_up(pid).ok().flatten()
}

/// The identity of the process that has this pid now; `None` if no process has it.
///
/// # Errors
/// `/proc` cannot be read for want of file descriptors or memory.
pub(super) fn look_up(pid: i32) -> io::Result<Option<ProcessIdentity>> {
    let stat = unless_short(Process::new(pid).and_then(|process| process.stat()))?;
    stat.map(|stat| Ok(identity(host()?, &stat))).transpose()
}

/// What was read in `/proc`; `None` if the process is gone or hidden.
///
/// # Errors
/// This process is short of a resource, which says nothing about the other one.
pub(super) fn unless_short<T>(read: ProcResult<T>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(ProcError::Io(error, _)) if is_shortage(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Whether the pid of a process means something here: same boot, same pid namespace.
pub fn is_here(process: &ProcessIdentity) -> bool {
    host().ok() == Some(process.host.as_str())
}

/// Whether a process lives, as far as this pid namespace shows.
pub fn is_alive(process: &ProcessIdentity) -> Liveness {
    if !is_here(process) {
        return Liveness::Unknown;
    }
    match Process::new(process.pid).and_then(|found| found.stat()) {
        Ok(stat) if is_gone(&stat) || started_at(&stat) != process.started_at_ticks => Liveness::Dead,
        Ok(_) => Liveness::Alive,
        // `/proc` may hide the processes of other users (`hidepid`, `ProtectProc`), which looks as if they were gone.
        Err(_) if is_pid_free(process.pid) => Liveness::Dead,
        Err(_) => Liveness::Unknown,
    }
}

/// Whether no process has this pid, not even one hidden from this process.
fn is_pid_free(pid: i32) -> bool {
    let tested = Pid::from_raw(pid).map(rustix::process::test_kill_process);
    tested.is_none_or(|tested| tested == Err(rustix::io::Errno::SRCH))
}

/// The processes of a run that still live. `group` is the process that led it. Reads all of `/proc`: blocking work.
pub fn survivors(mark: Mark, group: Option<&ProcessIdentity>) -> Vec<ProcessIdentity> {
    scan(mark, group).unwrap_or_default().found
}

/// Every process that carries the marker of a run, from any database. Reads all of `/proc`: blocking work.
pub fn marked_processes() -> Vec<(Attempt, ProcessIdentity)> {
    let (Ok(host), Ok(processes)) = (host(), procfs::process::all_processes()) else { return Vec::new() };
    let marked = processes.flatten().filter_map(|process| {
        let stat = process.stat().ok().filter(|stat| !is_gone(stat) && stat.pid != own_pid())?;
        let mut environ = Vec::new();
        process.open_relative("environ").ok()?.take(MAX_ENVIRON_BYTES).read_to_end(&mut environ).ok()?;
        Some((attempt_in(&environ)?, identity(host, &stat)))
    });
    marked.collect()
}

/// How long ago a process was started.
pub fn age(process: &ProcessIdentity) -> Duration {
    let up = clock_gettime(ClockId::Boottime);
    let up = Duration::new(u64::try_from(up.tv_sec).unwrap_or(0), u32::try_from(up.tv_nsec).unwrap_or(0));
    let ticks = u64::try_from(process.started_at_ticks).unwrap_or(0);
    let per_second = clock_ticks_per_second().max(1);
    up.saturating_sub(Duration::from_millis(ticks.saturating_mul(1000) / per_second))
}

/// The living descendants of this process.
pub(super) fn descendants() -> Vec<ProcessIdentity> {
    let (Ok(host), Ok(processes)) = (host(), procfs::process::all_processes()) else { return Vec::new() };
    let stats: Vec<_> = processes.flatten().filter_map(|process| process.stat().ok()).collect();
    let mut pids = HashSet::from([own_pid()]);
    add_descendants(&mut pids, &stats.iter().collect::<Vec<_>>());
    pids.remove(&own_pid());
    let living = stats.iter().filter(|stat| pids.contains(&stat.pid) && !is_gone(stat));
    living.map(|stat| identity(host, stat)).collect()
}

/// Reaps children that have ended, except one. The others are descendants that were reparented to this process.
pub(super) fn take_away_zombies(except: i32) {
    for process in procfs::process::all_processes().into_iter().flatten().flatten() {
        let Ok(stat) = process.stat() else { continue };
        if stat.ppid == own_pid()
            && stat.pid != except
            && is_gone(&stat)
            && let Some(pid) = Pid::from_raw(stat.pid)
        {
            // Fails only if another caller has already reaped it.
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_pid()
}

/// Adds the descendants of the given pids.
pub(super) fn add_descendants(pids: &mut HashSet<i32>, stats: &[&Stat]) {
    loop {
        let known = pids.len();
        for stat in stats {
            if pids.contains(&stat.ppid) {
                pids.insert(stat.pid);
            }
        }
        if pids.len() == known {
            return;
        }
    }
}

/// Ends everything that a run left: SIGTERM, after `grace` SIGKILL, until a scan finds nothing. `group` is the process
/// that led the run. Bounded: a process that survives SIGKILL for long is counted as remaining.
pub async fn end(mark: Mark, group: Option<ProcessIdentity>, grace: Duration) -> Ended {
    let begun = Instant::now();
    let give_up = grace.saturating_add(CONFIRM);
    let mut seen = HashSet::new();
    let mut living = Vec::new();
    loop {
        let signal = if begun.elapsed() < grace { Signal::TERM } else { Signal::KILL };
        let group = group.clone();
        let pass = move || pass(mark, group.as_ref(), living, signal);
        // The task fails only when the runtime shuts down; the sweep of the next engine scans again.
        let scan = match tokio::task::spawn_blocking(pass).await {
            Ok(Ok(scan)) => scan,
            Ok(Err(error)) => {
                let run = mark.run;
                tracing::error!(run.id = %run, %error, "failed to look for the processes of a run: /proc cannot be read");
                return Ended { ended: seen.len(), remaining: 0, is_certain: false };
            }
            Err(_) => return Ended { ended: seen.len(), remaining: 0, is_certain: false },
        };
        let unclear = scan.unclear && begun.elapsed() < EXEC_LASTS;
        living = scan.found;
        seen.extend(living.iter().cloned());
        if (living.is_empty() && !unclear) || begun.elapsed() >= give_up {
            let (ended, remaining) = (seen.len() - living.len(), living.len());
            return Ended { ended, remaining, is_certain: remaining == 0 };
        }
        let next_look = if signal == Signal::TERM { grace } else { begun.elapsed() + KILL_AGAIN };
        until_gone(&living, next_look.saturating_sub(begun.elapsed())).await;
    }
}

/// Kills every process with a mark and does not wait for its end, for callers that cannot wait. Reads all of `/proc`:
/// blocking work.
pub fn kill(mark: Mark) {
    if let Err(error) = pass(mark, None, Vec::new(), Signal::KILL) {
        tracing::warn!(run.id = %mark.run, %error, "failed to look for the processes of a run: /proc cannot be read");
    }
}

/// Scans once and signals every process found, and also those of earlier scans that only their identity tells now.
fn pass(mark: Mark, group: Option<&ProcessIdentity>, known: Vec<ProcessIdentity>, signal: Signal) -> io::Result<Scan> {
    let mut scan = scan(mark, group)?;
    for process in known {
        if !scan.found.contains(&process) && is_alive(&process) == Liveness::Alive {
            scan.found.push(process);
        }
    }
    for process in &scan.found {
        send(process, signal);
    }
    Ok(scan)
}

/// Waits until all the processes are dead; at least for a moment, and at most for `limit`.
async fn until_gone(processes: &[ProcessIdentity], limit: Duration) {
    let begun = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        tokio::time::sleep(pause.min(limit)).await;
        pause = (pause * 2).min(Duration::from_millis(50));
        if begun.elapsed() >= limit || processes.iter().all(|process| is_alive(process) == Liveness::Dead) {
            return;
        }
    }
}

/// The result of one scan of `/proc`.
#[derive(Debug, Default)]
struct Scan {
    found: Vec<ProcessIdentity>,
    /// A process was in the middle of an `execve`, without an environment to read.
    unclear: bool,
}

fn scan(mark: Mark, leader: Option<&ProcessIdentity>) -> io::Result<Scan> {
    let host = host()?;
    let processes = procfs::process::all_processes().map_err(io::Error::other)?;
    let leader = leader.filter(|leader| leader.host == host);
    let mut environ = Vec::new();
    let mut unclear = false;
    let mut leaders_pid_is_reused = false;
    let mut candidates = Vec::new();
    for process in processes {
        // Processes come and go during the scan.
        let Some(process) = unless_short(process)? else { continue };
        let Some(stat) = unless_short(process.stat())? else { continue };
        // No process is older than its ancestors.
        let too_old = leader.is_some_and(|leader| started_at(&stat) < leader.started_at_ticks);
        if too_old || stat.pid == own_pid() {
            continue;
        }
        leaders_pid_is_reused |=
            leader.is_some_and(|leader| leader.pid == stat.pid && leader.started_at_ticks != started_at(&stat));
        if is_gone(&stat) {
            continue;
        }
        let marked = match marked(&process, mark, &mut environ)? {
            Marked::Yes => true,
            Marked::No => false,
            Marked::Unclear => {
                unclear = true;
                false
            }
        };
        candidates.push((stat, marked));
    }
    // A living group keeps its id from being reused as a pid: if the pid was reused, the group is gone.
    let group = leader.filter(|_| !leaders_pid_is_reused).map(|leader| leader.pid);
    let mut pids: HashSet<i32> = candidates
        .iter()
        // The leader may not have become the leader of its group yet.
        .filter(|(stat, marked)| *marked || Some(stat.pgrp) == group || Some(stat.pid) == group)
        .map(|(stat, _)| stat.pid)
        .collect();
    add_descendants(&mut pids, &candidates.iter().map(|(stat, _)| stat).collect::<Vec<_>>());
    let found =
        candidates.iter().filter(|(stat, _)| pids.contains(&stat.pid)).map(|(stat, _)| identity(host, stat)).collect();
    Ok(Scan { found, unclear })
}

enum Marked {
    Yes,
    No,
    Unclear,
}

/// Whether a process carries the marker. A process whose environment may not be read is not ours to end.
fn marked(process: &Process, mark: Mark, environ: &mut Vec<u8>) -> io::Result<Marked> {
    for _ in 0..2 {
        environ.clear();
        let Some(file) = unless_short(process.open_relative("environ"))? else { return Ok(Marked::No) };
        match file.take(MAX_ENVIRON_BYTES).read_to_end(environ) {
            Err(error) if is_shortage(&error) => return Err(error),
            Err(_) => return Ok(Marked::No),
            Ok(_) if environ.is_empty() => {}
            Ok(_) => return Ok(if mark.is_in(environ) { Marked::Yes } else { Marked::No }),
        }
        // Empty by choice, or not set up yet by an `execve` in progress: then its end is unset.
        match unless_short(process.stat())? {
            Some(stat) if is_gone(&stat) || is_kernels(&stat) => return Ok(Marked::No),
            Some(stat) if stat.env_end.is_some_and(|end| end != 0) && stat.env_end == stat.env_start => {
                return Ok(Marked::No);
            }
            Some(_) => {}
            None => return Ok(Marked::No),
        }
    }
    Ok(Marked::Unclear)
}

/// Sends a signal to exactly this process, if it lives.
pub(crate) fn send(process: &ProcessIdentity, signal: Signal) {
    let Some(pid) = Pid::from_raw(process.pid) else { return };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    if is_alive(process) == Liveness::Alive {
        // Fails if it is gone or belongs to another user; the next scan finds what is left.
        let _ = pidfd_send_signal(&pidfd, signal);
    }
}

/// Whether only its exit status is left. The first thread of a process may be gone before the others.
fn is_gone(stat: &Stat) -> bool {
    matches!(stat.state, 'Z' | 'X' | 'x') && stat.num_threads <= 1
}

fn is_kernels(stat: &Stat) -> bool {
    StatFlags::from_bits_truncate(stat.flags).contains(StatFlags::PF_KTHREAD)
}

fn identity(host: &str, stat: &Stat) -> ProcessIdentity {
    ProcessIdentity { host: host.to_owned(), pid: stat.pid, started_at_ticks: started_at(stat) }
}

fn started_at(stat: &Stat) -> i64 {
    i64::try_from(stat.starttime).unwrap_or(i64::MAX)
}

/// Boot id and pid namespace: the scope in which a pid means something.
fn host() -> io::Result<&'static str> {
    static HOST: OnceLock<String> = OnceLock::new();
    if let Some(host) = HOST.get() {
        return Ok(host);
    }
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let namespace = std::fs::read_link("/proc/self/ns/pid")?;
    Ok(HOST.get_or_init(|| format!("{} {}", boot.trim(), namespace.display())))
}
