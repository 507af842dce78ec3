//! Determines whether a connected process works for a run: it descends from the shim of an agent, or it or an ancestor
//! carries a run's marker. A shim is the sub-reaper of everything that its agent starts, so a new session, a double
//! fork and an empty environment change nothing.
//!
//! Always: bounded, by `MAX_TIME` and by what `/proc` lists. An unknown answer is [`Peer::Unclear`], never a guess.
//!
//! A connection whose process cannot be found is [`Peer::Outside`] only if no process of a run could have hidden it.
//!
//! Not found is a process that left the tree: moved under another parent by `ptrace`, started by a service manager, or
//! reached through a proxy. `docs/security.md` documents that.
//! Proof: `tests/security/own_answer.rs`.

use std::collections::HashSet;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use procfs::ProcError;
use procfs::net::TcpNetEntry;
use procfs::process::{Process, Stat};

use super::reap::{self, MAX_ENVIRON_BYTES};
use super::shim::PROCESS_NAME;
use crate::failure::is_shortage;
use crate::id::RunId;
use crate::run::Attempt;

/// A scan of some thousand processes takes a tenth of a second.
const MAX_TIME: Duration = Duration::from_secs(5);
/// How often a walk to the ancestors is restarted because a process exited during it.
const MAX_WALKS: usize = 8;
/// Deeper trees are cut off: no shell nests that far.
const MAX_DEPTH: usize = 1000;

/// The process at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Another machine.
    Remote,
    /// A process of this machine that works for no run.
    Outside,
    /// A process that works for a run.
    Run(RunProcess),
    /// A process of this machine that cannot be identified and may work for a run.
    Unclear,
}

/// A process that works for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunProcess {
    /// The process.
    pub pid: i32,
    /// The run, or the backend, if that can be read.
    pub run: Option<RunId>,
}

/// The run that this process itself works for, as far as its ancestors can be seen. Blocking work.
///
/// # Errors
/// `/proc` cannot be read, for want of file descriptors or memory for example.
pub fn of_self() -> io::Result<Option<RunProcess>> {
    let pid = rustix::process::getpid().as_raw_pid();
    Ok(match walk(pid)? {
        Walk::Run(run) => Some(RunProcess { pid, run }),
        Walk::Outside | Walk::Hidden => None,
    })
}

/// Determines the process at the other end of a connection from `remote` to `local`, both as this end sees them.
/// Blocking work.
pub fn of_connection(local: SocketAddr, remote: SocketAddr) -> Peer {
    peer(local, remote, Instant::now() + MAX_TIME).unwrap_or(Peer::Unclear)
}

/// An error means that `/proc` gave no answer: not in time, or for want of descriptors or memory.
fn peer(local: SocketAddr, remote: SocketAddr, give_up: Instant) -> io::Result<Peer> {
    if !is_here(remote)? {
        return Ok(Peer::Remote);
    }
    // Collected before the socket is looked up, so that a process of a run that ends meanwhile still counts.
    let suspects = suspects(give_up)?;
    // A client that disconnected may have been any process, also of a run that has ended since.
    let Some(socket) = socket_of(local, remote) else { return Ok(Peer::Unclear) };
    if let Some(peer) = holder(socket.inode, give_up)? {
        return Ok(peer);
    }
    // No process that can be inspected holds the socket. A process of a run can hide it, for example in a message in
    // transit between its own sockets.
    let could_be = |pid: &i32| owner(*pid).is_none_or(|uid| uid == 0 || uid == socket.uid);
    Ok(if suspects.iter().any(could_be) { Peer::Unclear } else { Peer::Outside })
}

/// Whether an address belongs to this machine.
fn is_here(remote: SocketAddr) -> io::Result<bool> {
    let mut address = remote;
    address.set_ip(remote.ip().to_canonical());
    address.set_port(0);
    if address.ip().is_loopback() {
        return Ok(true);
    }
    // Only a local address can be bound.
    match UdpSocket::bind(address) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Ok(false),
        Err(error) => Err(error),
    }
}

/// The socket at the other end, from the kernel's table; none once its process has closed it.
fn socket_of(local: SocketAddr, remote: SocketAddr) -> Option<TcpNetEntry> {
    let plain = |address: SocketAddr| -> (IpAddr, u16) { (address.ip().to_canonical(), address.port()) };
    let is_it = |entry: &TcpNetEntry| {
        plain(entry.local_address) == plain(remote) && plain(entry.remote_address) == plain(local) && entry.inode != 0
    };
    let find = || [procfs::net::tcp(), procfs::net::tcp6()].into_iter().flatten().flatten().find(is_it);
    // The kernel may skip an entry while others are added and removed.
    find().or_else(find)
}

/// The process that holds a socket, among those whose descriptors can be read.
fn holder(inode: u64, give_up: Instant) -> io::Result<Option<Peer>> {
    let link = format!("socket:[{inode}]");
    let own = rustix::process::getpid().as_raw_pid();
    // A thread may have descriptors of its own; that is rare, and costs many times the work.
    for of_threads in [false, true] {
        let mut found = None;
        for process in procfs::process::all_processes().map_err(io::Error::other)? {
            let Some(process) = reap::unless_short(process)? else { continue };
            let pid = process.pid;
            if !holds(pid, &link, of_threads, give_up)? {
                continue;
            }
            // A program that embeds the engine and connects to it.
            if pid == own {
                found = found.or(Some(Peer::Outside));
                continue;
            }
            match walk(pid) {
                Ok(Walk::Run(run)) => return Ok(Some(Peer::Run(RunProcess { pid, run }))),
                Ok(Walk::Outside) => found = found.or(Some(Peer::Outside)),
                Ok(Walk::Hidden) | Err(_) => found = Some(Peer::Unclear),
            }
        }
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Whether a process has a descriptor of the file that `link` names.
fn holds(pid: i32, link: &str, of_threads: bool, give_up: Instant) -> io::Result<bool> {
    if !of_threads {
        return is_among(&format!("/proc/{pid}/fd"), link, give_up);
    }
    let Some(threads) = unless_short(std::fs::read_dir(format!("/proc/{pid}/task")))? else { return Ok(false) };
    for thread in threads {
        let Some(thread) = unless_short(thread)? else { continue };
        if is_among(&format!("{}/fd", thread.path().display()), link, give_up)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a directory of descriptors has one of the file that `link` names.
fn is_among(descriptors: &str, link: &str, give_up: Instant) -> io::Result<bool> {
    in_time(give_up)?;
    let Some(descriptors) = unless_short(std::fs::read_dir(descriptors))? else { return Ok(false) };
    for descriptor in descriptors {
        let Some(descriptor) = unless_short(descriptor)? else { continue };
        let target = unless_short(std::fs::read_link(descriptor.path()))?;
        if target.is_some_and(|target| target.as_os_str() == link) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What was read of a process; none if it has ended or may not be inspected.
fn unless_short<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Err(error) if is_shortage(&error) => Err(error),
        read => Ok(read.ok()),
    }
}

fn in_time(give_up: Instant) -> io::Result<()> {
    if Instant::now() < give_up { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
}

enum Walk {
    Run(Option<RunId>),
    Outside,
    /// An ancestor cannot be seen: `/proc` hides the processes of other users.
    Hidden,
}

/// Walks from a process up its ancestors, to the first one that works for a run. An error if ancestors keep exiting
/// during the walk.
fn walk(pid: i32) -> io::Result<Walk> {
    let mut unseen = None;
    'anew: for _ in 0..MAX_WALKS {
        let (mut at, mut child_started) = (pid, u64::MAX);
        for _ in 0..MAX_DEPTH {
            let found = Process::new(at).and_then(|process| process.stat().map(|stat| (process, stat)));
            let Some((process, stat)) = reap::unless_short(found)? else {
                // If the parent has ended, the next walk sees another one; the same pid again means that it is hidden.
                let is_same = unseen.replace((at, child_started)) == Some((at, child_started));
                if is_same && at != pid {
                    return Ok(Walk::Hidden);
                }
                continue 'anew;
            };
            // Younger than its child: the parent has ended, and another process reused its pid.
            if stat.starttime > child_started {
                continue 'anew;
            }
            if let Some(run) = marked(&process, &stat)? {
                return Ok(Walk::Run(run));
            }
            if stat.ppid <= 0 {
                return Ok(Walk::Outside);
            }
            (at, child_started) = (stat.ppid, stat.starttime);
        }
    }
    Err(io::Error::other("the ancestors of a process cannot be told"))
}

/// The marker of a process, or the run that a shim belongs to.
fn marked(process: &Process, stat: &Stat) -> io::Result<Option<Option<RunId>>> {
    if stat.comm == PROCESS_NAME {
        let words = reap::unless_short(process.cmdline())?;
        let home = words.and_then(|words| words.into_iter().nth(2));
        let name = home.as_deref().and_then(|home| home.rsplit('/').next());
        return Ok(Some(name.and_then(|name| name.parse::<Attempt>().ok()).map(|attempt| attempt.run)));
    }
    let Some(file) = reap::unless_short(process.open_relative("environ"))? else { return Ok(None) };
    let mut environ = Vec::new();
    if unless_short(file.take(MAX_ENVIRON_BYTES).read_to_end(&mut environ))?.is_none() {
        return Ok(None);
    }
    Ok(reap::marker_in(&environ).map(|run| run.parse().ok()))
}

/// All processes of this user that work for a run; it also starts the shims of this engine's agents. Agents of other
/// users have no question here that they could answer.
fn suspects(give_up: Instant) -> io::Result<HashSet<i32>> {
    let own = rustix::process::geteuid().as_raw();
    let (mut stats, mut closed, mut pids) = (Vec::new(), Vec::new(), HashSet::new());
    for process in procfs::process::all_processes().map_err(io::Error::other)? {
        in_time(give_up)?;
        let Some(process) = reap::unless_short(process)? else { continue };
        let stat = match process.stat() {
            Err(ProcError::PermissionDenied(_)) => {
                closed.push(process.pid);
                continue;
            }
            stat => reap::unless_short(stat)?,
        };
        let Some(stat) = stat else { continue };
        if owner(stat.pid) == Some(own) && marked(&process, &stat)?.is_some() {
            pids.insert(stat.pid);
        }
        stats.push(stat);
    }
    reap::add_descendants(&mut pids, &stats.iter().collect::<Vec<_>>());
    // A process whose parent cannot be read may descend from any of them.
    if !pids.is_empty() {
        pids.extend(closed);
    }
    Ok(pids)
}

/// The user of a process, even if its descriptors cannot be read.
fn owner(pid: i32) -> Option<u32> {
    // The `/proc` directory of a process that may not be inspected belongs to root, but its `status` still shows the user.
    let status = Process::new(pid).and_then(|process| process.status());
    status.map(|status| status.euid).ok().or_else(|| Some(std::fs::metadata(format!("/proc/{pid}")).ok()?.uid()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::mem::MaybeUninit;
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};

    #[test]
    fn own_connection_is_outside_and_another_machine_remote() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, remote) = listener.accept().unwrap();
        assert_eq!(of_connection(server.local_addr().unwrap(), remote), Peer::Outside);
        drop(client);
        assert_eq!(of_connection(server.local_addr().unwrap(), remote), Peer::Unclear, "it hung up");
        // An address of the documentation network, which no machine has.
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
        assert!(matches!(walk(pid), Ok(Walk::Run(Some(found))) if found == run));
        assert!(suspects(Instant::now() + MAX_TIME).unwrap().contains(&pid));
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL)
            .unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn descriptor_in_flight_is_unclear_while_a_run_lives() {
        let mut child =
            Command::new("sleep").arg("60").env(reap::MARKER, "0192f0c1-2345-7000-8000-0123456789ab").spawn().unwrap();
        let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, remote) = listener.accept().unwrap();
        let (sender, _receiver) = UnixStream::pair().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut message = SendAncillaryBuffer::new(&mut space);
        let descriptors = [client.as_fd()];
        assert!(message.push(SendAncillaryMessage::ScmRights(&descriptors)));
        sendmsg(&sender, &[io::IoSlice::new(b"x")], &mut message, SendFlags::empty()).unwrap();
        drop(client);
        assert_eq!(of_connection(server.local_addr().unwrap(), remote), Peer::Unclear);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn look_that_takes_too_long_is_no_answer() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let looked = peer(listener.local_addr().unwrap(), client.local_addr().unwrap(), Instant::now());
        assert_eq!(looked.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
