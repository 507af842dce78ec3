//! Commands that run for an agent, in the directory of its session.
//!
//! Always: no command outlives its turn. The kept output is bounded.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_client_protocol::Error;
use agent_client_protocol::v1::schema::{
    CreateTerminalRequest, CreateTerminalResponse, KillTerminalRequest, KillTerminalResponse, ReleaseTerminalRequest,
    ReleaseTerminalResponse, TerminalExitStatus, TerminalId, TerminalOutputRequest, TerminalOutputResponse,
    WaitForTerminalExitRequest, WaitForTerminalExitResponse,
};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::{SessionDir, failed, refused};

/// Terminals of one turn at the same time.
const MAX_TERMINALS: usize = 32;
/// Maximum output kept of one command.
const MAX_OUTPUT_BYTES: usize = 1024 * 1024;
/// How long to wait after SIGKILL. A command ends at once, unless it sleeps in the kernel.
const CONFIRM: Duration = Duration::from_secs(2);

/// The terminals of a turn.
pub(in super::super) struct Terminals {
    dir: SessionDir,
    held: Mutex<HashMap<TerminalId, Terminal>>,
    /// The turn is over, and no more terminals are created.
    over: AtomicBool,
}

#[derive(Clone)]
struct Terminal {
    group: Option<Pid>,
    output: Arc<Mutex<Output>>,
    exited: watch::Receiver<Option<TerminalExitStatus>>,
}

#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    limit: usize,
    truncated: bool,
}

impl Terminals {
    /// No terminals yet.
    pub(in super::super) fn new(dir: SessionDir) -> Self {
        Self { dir, held: Mutex::default(), over: AtomicBool::new(false) }
    }

    /// The directory of the session.
    pub(super) fn dir(&self) -> &SessionDir {
        &self.dir
    }

    fn held(&self) -> MutexGuard<'_, HashMap<TerminalId, Terminal>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &TerminalId) -> Result<Terminal, Error> {
        self.held().get(id).cloned().ok_or_else(|| refused(format!("there is no terminal {id}")))
    }

    /// Runs a command.
    pub(super) fn create(&self, request: CreateTerminalRequest) -> Result<CreateTerminalResponse, Error> {
        if self.over.load(Ordering::Relaxed) {
            return Err(refused("the turn is over"));
        }
        if self.held().len() >= MAX_TERMINALS {
            return Err(refused(format!("a turn has {MAX_TERMINALS} terminals: release some")));
        }
        let dir = request.cwd.as_deref().unwrap_or(&self.dir.path).canonicalize().map_err(failed)?;
        if !dir.starts_with(self.dir.path.canonicalize().map_err(failed)?) {
            return Err(refused(format!("{} is not in the directory of the session", dir.display())));
        }
        let mut command = Command::new(&request.command);
        command.args(&request.args).current_dir(&dir).env("PWD", &dir);
        command.envs(request.env.iter().map(|variable| (&variable.name, &variable.value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let child = command.spawn().map_err(|error| failed(format!("{}: {error}", request.command)))?;
        let limit = request.output_byte_limit.and_then(|limit| usize::try_from(limit).ok());
        let limit = limit.unwrap_or(MAX_OUTPUT_BYTES).min(MAX_OUTPUT_BYTES);
        let output = Arc::new(Mutex::new(Output { limit, ..Output::default() }));
        let group = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let (sender, exited) = watch::channel(None);
        // The task ends with the command, which ends with the turn.
        tokio::spawn(watch_over(child, output.clone(), sender));
        let id = TerminalId::new(uuid::Uuid::new_v4().to_string());
        self.held().insert(id.clone(), Terminal { group, output, exited });
        Ok(CreateTerminalResponse::new(id))
    }

    /// What a command wrote so far.
    pub(super) fn output(&self, request: &TerminalOutputRequest) -> Result<TerminalOutputResponse, Error> {
        let terminal = self.find(&request.terminal_id)?;
        let output = terminal.output.lock().unwrap_or_else(PoisonError::into_inner);
        // A character that the cut splits is left out as a whole.
        let cut = output.bytes.iter().take(3).take_while(|byte| output.truncated && **byte & 0xc0 == 0x80).count();
        let text = String::from_utf8_lossy(&output.bytes[cut..]).into_owned();
        let status = terminal.exited.borrow().clone();
        Ok(TerminalOutputResponse::new(text, output.truncated).exit_status(status))
    }

    /// Waits for the end of a command and returns how it ended.
    pub(super) async fn wait_for_exit(
        &self,
        request: &WaitForTerminalExitRequest,
    ) -> Result<WaitForTerminalExitResponse, Error> {
        let mut exited = self.find(&request.terminal_id)?.exited;
        let status = exited.wait_for(Option::is_some).await.map_err(failed)?.clone();
        Ok(WaitForTerminalExitResponse::new(status.unwrap_or_default()))
    }

    /// Kills a command; its output stays available.
    pub(super) fn kill(&self, request: &KillTerminalRequest) -> Result<KillTerminalResponse, Error> {
        self.find(&request.terminal_id)?.kill();
        Ok(KillTerminalResponse::new())
    }

    /// Kills a command and removes it.
    pub(super) fn release(&self, request: &ReleaseTerminalRequest) -> Result<ReleaseTerminalResponse, Error> {
        self.find(&request.terminal_id)?.kill();
        self.held().remove(&request.terminal_id);
        Ok(ReleaseTerminalResponse::new())
    }

    /// Kills all commands. No more are created from now on.
    pub(in super::super) async fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
        let held = std::mem::take(&mut *self.held());
        held.values().for_each(Terminal::kill);
        for mut terminal in held.into_values() {
            // The shim ends what remains.
            let _ = tokio::time::timeout(CONFIRM, terminal.exited.wait_for(Option::is_some)).await;
        }
    }
}

impl Terminal {
    /// The child is reaped only when it ends, so its group id cannot be reused until then.
    fn kill(&self) {
        if let Some(group) = self.group.filter(|_| self.exited.borrow().is_none()) {
            // It may have ended just now.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

async fn watch_over(mut child: Child, output: Arc<Mutex<Output>>, exited: watch::Sender<Option<TerminalExitStatus>>) {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let status = {
        let mut read = std::pin::pin!(async { tokio::join!(keep(stdout, &output), keep(stderr, &output)) });
        let mut is_read = false;
        let status = loop {
            tokio::select! {
                status = child.wait() => break status,
                _ = &mut read, if !is_read => is_read = true,
            }
        };
        // Output written before the end is in the pipes; another process may hold them open.
        if !is_read {
            let _ = tokio::time::timeout(Duration::from_millis(100), read).await;
        }
        status
    };
    use std::os::unix::process::ExitStatusExt;
    let said = match status {
        Ok(status) => TerminalExitStatus::new()
            .exit_code(status.code().and_then(|code| u32::try_from(code).ok()))
            .signal(status.signal().map(|signal| signal.to_string())),
        Err(_) => TerminalExitStatus::new(),
    };
    exited.send_replace(Some(said));
}

async fn keep(pipe: Option<impl AsyncRead + Unpin>, output: &Mutex<Output>) {
    let Some(mut pipe) = pipe else { return };
    let mut piece = vec![0; 16 * 1024];
    while let Ok(read) = pipe.read(&mut piece).await
        && read > 0
    {
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        output.bytes.extend_from_slice(&piece[..read]);
        let excess = output.bytes.len().saturating_sub(output.limit);
        output.truncated |= excess > 0;
        output.bytes.drain(..excess);
    }
}
