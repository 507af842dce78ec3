//! Whether a process that speaks to us works for a run: it descends from the shim of an agent, or it or one of what it
//! descends from carries a run's marker. A shim is the sub-reaper of all that its agent starts, so that a new session, a
//! double fork and an empty environment change nothing.
//!
//! Always: bounded, by [`MAX_TIME`] and by what `/proc` lists. An answer that cannot be had is [`Peer::Unclear`], never a guess.
//!
//! Not found is what left the tree: moved under another parent by `ptrace`, started by a service manager, or reached through
//! a proxy. `docs/security.md` says so.
//! Proof: `tests/security/own_answer.rs`.

use std::collections::HashSet;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use procfs::net::TcpNetEntry;
use procfs::process::{Process, Stat};

use super::host::PROCESS_NAME;
use super::reap::{self, MAX_ENVIRON_BYTES};
use crate::id::RunId;
use crate::run::Attempt;

/// A scan of some thousand processes takes a tenth of a second.
const MAX_TIME: Duration = Duration::from_secs(5);
/// How often a walk to the ancestors begins anew that a process left in the midst of.
const MAX_WALKS: usize = 8;
/// Deeper trees are cut: no shell nests that far.
const MAX_DEPTH: usize = 1000;

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Another machine.
    Remote,
    /// A process of this machine that works for no run.
    Outside,
    /// A process that works for a run.
    Run(RunProcess),
    /// A process of this machine; which one cannot be told, and it may work for a run.
    Unclear,
}

/// A process that works for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunProcess {
    /// The process.
    pub pid: i32,
    /// The run, or the warm agent, where that can be read.
    pub run: Option<RunId>,
}

/// Which run this very process works for. Blocking work.
pub fn of_self() -> Option<RunProcess> {
    let pid = rustix::process::getpid().as_raw_pid();
    match walk(pid) {
        Walk::Run(run) => Some(RunProcess { pid, run }),
        Walk::Outside | Walk::Broken => None,
    }
}

/// Who is at the other end of a connection from `remote` to `local`, both addresses as this end sees them. Blocking work.
pub fn of_connection(local: SocketAddr, remote: SocketAddr) -> Peer {
    if !is_here(remote) {
        return Peer::Remote;
    }
    let give_up = Instant::now() + MAX_TIME;
    let socket = socket_of(local, remote);
    let mut hidden = HashSet::new();
    if let Some(socket) = &socket {
        match holder(socket.inode, give_up, &mut hidden) {
            Holder::Found(peer) => return peer,
            Holder::TooLate => return Peer::Unclear,
            Holder::NotFound => {}
        }
    }
    // Nothing that can be looked into holds it. Then it matters whether a process of a run could.
    let Some(suspects) = suspects() else { return Peer::Unclear };
    let (Some(socket), false) = (socket, suspects.is_empty()) else {
        return if suspects.is_empty() { Peer::Outside } else { Peer::Unclear };
    };
    let could_be = |pid: &i32| owner(*pid).is_none_or(|uid| uid == 0 || uid == socket.uid);
    if !suspects.iter().any(could_be) {
        return Peer::Outside;
    }
    let is_suspect = suspects.iter().any(|pid| hidden.contains(pid) && could_be(pid));
    let is_other = hidden.iter().any(|pid| !suspects.contains(pid) && owner(*pid) == Some(socket.uid));
    if is_other && !is_suspect { Peer::Outside } else { Peer::Unclear }
}

/// Whether an address is one of this machine's.
fn is_here(remote: SocketAddr) -> bool {
    let is_loopback = remote.ip().to_canonical().is_loopback();
    // Only an address of our own can be bound.
    is_loopback || UdpSocket::bind(with_port(remote, 0)).is_ok()
}

fn with_port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}

/// The other end's socket, as the kernel's table has it; none once its process has closed it.
fn socket_of(local: SocketAddr, remote: SocketAddr) -> Option<TcpNetEntry> {
    let plain = |address: SocketAddr| -> (IpAddr, u16) { (address.ip().to_canonical(), address.port()) };
    let is_it = |entry: &TcpNetEntry| {
        plain(entry.local_address) == plain(remote) && plain(entry.remote_address) == plain(local) && entry.inode != 0
    };
    let tables = [procfs::net::tcp(), procfs::net::tcp6()];
    tables.into_iter().flatten().flatten().find(is_it)
}

enum Holder {
    Found(Peer),
    NotFound,
    TooLate,
}

/// Which processes hold a socket. Those whose descriptors may not be looked at are `hidden`.
fn holder(inode: u64, give_up: Instant, hidden: &mut HashSet<i32>) -> Holder {
    let link = format!("socket:[{inode}]");
    let own = rustix::process::getpid().as_raw_pid();
    let mut found = None;
    for process in procfs::process::all_processes().into_iter().flatten().flatten() {
        if Instant::now() >= give_up {
            return Holder::TooLate;
        }
        let pid = process.pid;
        let descriptors = match std::fs::read_dir(format!("/proc/{pid}/fd")) {
            Ok(descriptors) => descriptors,
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                hidden.insert(pid);
                continue;
            }
            // It has ended.
            Err(_) => continue,
        };
        let holds = descriptors
            .flatten()
            .any(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target.as_os_str() == link.as_str()));
        if !holds {
            continue;
        }
        // A program that embeds the engine and speaks to it.
        if pid == own {
            found = found.or(Some(Peer::Outside));
            continue;
        }
        match walk(pid) {
            Walk::Run(run) => return Holder::Found(Peer::Run(RunProcess { pid, run })),
            Walk::Outside => found = found.or(Some(Peer::Outside)),
            Walk::Broken => found = Some(Peer::Unclear),
        }
    }
    found.map_or(Holder::NotFound, Holder::Found)
}

enum Walk {
    Run(Option<RunId>),
    Outside,
    /// A process left in the midst of it, again and again.
    Broken,
}

/// Goes from a process to its ancestors, up to one that works for a run.
fn walk(pid: i32) -> Walk {
    'anew: for _ in 0..MAX_WALKS {
        let mut at = pid;
        for _ in 0..MAX_DEPTH {
            let Ok((process, stat)) = Process::new(at).and_then(|process| process.stat().map(|stat| (process, stat)))
            else {
                continue 'anew;
            };
            if let Some(run) = marked(&process, &stat) {
                return Walk::Run(run);
            }
            if stat.ppid <= 0 {
                return Walk::Outside;
            }
            at = stat.ppid;
        }
    }
    Walk::Broken
}

/// Whether a process is a shim or carries a marker, and of which run.
fn marked(process: &Process, stat: &Stat) -> Option<Option<RunId>> {
    if stat.comm == PROCESS_NAME {
        let home = process.cmdline().ok().and_then(|words| words.into_iter().nth(2));
        let name = home.as_deref().and_then(|home| home.rsplit('/').next());
        return Some(name.and_then(|name| name.parse::<Attempt>().ok()).map(|attempt| attempt.run));
    }
    let mut environ = Vec::new();
    process.open_relative("environ").ok()?.take(MAX_ENVIRON_BYTES).read_to_end(&mut environ).ok()?;
    reap::marker_in(&environ).map(|run| run.parse().ok())
}

/// All processes that work for a run of our own user, who starts the shims of our agents; none where `/proc` cannot be read.
/// Agents of others have nothing to decide here that they could hide.
fn suspects() -> Option<HashSet<i32>> {
    let own = rustix::process::geteuid().as_raw();
    let processes: Vec<_> = procfs::process::all_processes().ok()?.flatten().collect();
    let stats: Vec<_> = processes.iter().filter_map(|process| Some((process, process.stat().ok()?))).collect();
    let is_marked = |process: &Process, stat: &Stat| owner(stat.pid) == Some(own) && marked(process, stat).is_some();
    let marked = stats.iter().filter(|(process, stat)| is_marked(process, stat));
    let mut pids: HashSet<i32> = marked.map(|(_, stat)| stat.pid).collect();
    reap::add_descendants(&mut pids, &stats.iter().map(|(_, stat)| stat).collect::<Vec<_>>());
    Some(pids)
}

/// The user of a process, also of one that lets nobody look into it.
fn owner(pid: i32) -> Option<u32> {
    // The directory of a process that must not be looked into belongs to root; its `status` tells the user all the same.
    let status = Process::new(pid).and_then(|process| process.status());
    status.map(|status| status.euid).ok().or_else(|| Some(std::fs::metadata(format!("/proc/{pid}")).ok()?.uid()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::process::{Command, Stdio};

    #[test]
    fn own_connection_is_outside_and_another_machine_remote() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, remote) = listener.accept().unwrap();
        assert_eq!(of_connection(server.local_addr().unwrap(), remote), Peer::Outside);
        drop(client);
        // Of the documentation's own network, which no machine is in.
        assert_eq!(of_connection(server.local_addr().unwrap(), "192.0.2.1:99".parse().unwrap()), Peer::Remote);
    }

    #[test]
    fn marker_is_found_in_the_process_and_its_descendants() {
        let run: RunId = "0192f0c1-2345-7000-8000-0123456789ab".parse().unwrap();
        let mut child = Command::new("sh")
            .args(["-c", "env -i sleep 60 & echo $!; wait"])
            .env(reap::MARKER, run.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
        let pid: i32 = line.trim().parse().unwrap();
        assert!(matches!(walk(pid), Walk::Run(Some(found)) if found == run));
        assert!(suspects().unwrap().contains(&pid));
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL)
            .unwrap();
        child.wait().unwrap();
    }
}
