//! PID 1 of a container: the daemon runs as its child, and this process does the work of an init. It forwards signals,
//! reaps every orphaned process, and exits with the daemon's status, which ends the container.
//!
//! Always: an orphan that has ended is reaped, whichever process started it. The daemon cannot do that itself: waiting for any
//! child would take away the exit statuses of the agents that it waits for.

use std::future::poll_fn;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::task::Poll;

use anyhow::Context;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use tokio::signal::unix::{SignalKind, signal};

/// Signals that are forwarded to the daemon. The kernel does not end PID 1 by a signal that it does not handle.
const PASSED_ON: [Signal; 6] = [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2];

/// Whether this process has to act as an init.
pub fn is_pid_1() -> bool {
    std::process::id() == 1
}

/// Starts this command again as a child and serves it until it ends. Returns its exit status; 128 and the number of the signal
/// if a signal ended it, as a shell would.
///
/// # Errors
/// If the child cannot be started, or signals cannot be handled.
pub fn run() -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let status = runtime.context("failed to start the async runtime")?.block_on(supervise())?;
    let code = status.exit_status().or_else(|| Some(128 + status.terminating_signal()?));
    Ok(code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

async fn supervise() -> anyhow::Result<WaitStatus> {
    // Before the child is started: earlier signals are lost.
    let mut ends = signal(SignalKind::child()).context("failed to listen for signals")?;
    let listen = |passed_on: Signal| Ok((passed_on, signal(SignalKind::from_raw(passed_on.as_raw()))?));
    let listeners: std::io::Result<Vec<_>> = PASSED_ON.into_iter().map(listen).collect();
    let mut listeners = listeners.context("failed to listen for signals")?;

    // The path may name another program by now, or none.
    let mut command = Command::new("/proc/self/exe");
    let mut words = std::env::args_os();
    command.arg0(words.next().unwrap_or_else(|| "mainstay".into())).args(words);
    // Ctrl-C at a terminal goes to its foreground group, this process's: so the daemon gets it once, forwarded from here.
    command.process_group(0);
    let child =
        Pid::from_child(&command.spawn().context("failed to start again as a child of PID 1: is /proc there?")?);
    loop {
        let received = poll_fn(|cx| {
            let mut each = listeners.iter_mut();
            let received = each.find_map(|(signal, listener)| listener.poll_recv(cx).is_ready().then_some(*signal));
            received.map_or(Poll::Pending, Poll::Ready)
        });
        tokio::select! {
            _ = ends.recv() => {
                if let Some(status) = reap(child) {
                    return Ok(status);
                }
            }
            // It fails if the child has just ended; SIGCHLD reports that next.
            signal = received => drop(kill_process(child, signal)),
        }
    }
}

/// Reaps all children that have ended. Returns the daemon's status if it is among them.
fn reap(daemon: Pid) -> Option<WaitStatus> {
    // One SIGCHLD may stand for several ended children.
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid == daemon {
            return Some(status);
        }
    }
    None
}
