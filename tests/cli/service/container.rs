//! PID 1, in a pid namespace of its own.

use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;

use crate::service::scene::{Daemon, MAINSTAY, Scene, block_until, ignores_hangup, signal, skipped};

/// Killed together with the process that started it, if a test fails.
const CONTAINER: [&str; 6] = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"];

/// A daemon that is PID 1, and a child of its process that it has not started.
struct Container {
    scene: Scene,
    outside: Daemon,
    /// Pids as seen in the namespace of the tests.
    init: i32,
    orphan: i32,
    daemon: i32,
}

impl Container {
    /// None if this machine does not allow it.
    fn start(config: &str) -> Option<Self> {
        let probe = Command::new(CONTAINER[0]).args(&CONTAINER[1..]).args(["--mount-proc", "true"]).output();
        if !probe.is_ok_and(|output| output.status.success()) {
            skipped("user namespaces are needed (unshare --user --pid), and this machine does not let us have one");
            return None;
        }
        let scene = Scene::new(config);
        // The shell is PID 1, and stays its children's parent when it becomes the daemon.
        let script = "tail -f /dev/null & exec \"$0\" \"$@\"";
        let program = [&CONTAINER[..], &["--mount-proc", "sh", "-c", script, MAINSTAY]].concat();
        let outside = scene.start(&program, &[]);
        let init = only(children(outside.pid().try_into().unwrap()));
        let (mut orphan, mut daemon) = (0, 0);
        for child in children(init) {
            let is_tail = std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap() == "tail\n";
            *(if is_tail { &mut orphan } else { &mut daemon }) = child;
        }
        assert!(orphan != 0 && daemon != 0, "{:?}", children(init));
        Some(Self { scene, outside, init, orphan, daemon })
    }

    /// The processes in the container.
    fn inhabitants(&self, namespace: &PathBuf) -> Vec<i32> {
        let pids = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
        pids.filter(|pid| namespace_of(*pid).is_some_and(|found| found == *namespace)).collect()
    }
}

fn namespace_of(pid: i32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

fn children(pid: i32) -> Vec<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn only(pids: Vec<i32>) -> i32 {
    assert_eq!(pids.len(), 1, "{pids:?}");
    pids[0]
}

#[test]
fn pid_1_reaps_orphans_and_a_request_to_stop_leaves_nothing() {
    let Some(mut container) = Container::start("[engine]\nshutdown_grace = \"0s\"") else { return };
    signal(container.orphan, Signal::KILL);
    block_until(|| children(container.init) == [container.daemon]);

    container.scene.send("s", "/hang");
    // A turn that has said nothing would be queued again.
    block_until(|| container.scene.ask("SELECT count(*) FROM runs WHERE said = 1") == 1);
    let namespace = namespace_of(container.init).unwrap();
    assert_eq!(container.inhabitants(&namespace).len(), 4, "PID 1, the daemon, a host and its agent");
    signal(container.init, Signal::TERM);
    assert_eq!(container.outside.wait().code(), Some(0), "{}", container.scene.log());
    assert!(container.scene.mainstay(&["runs"]).contains("interrupted"), "the daemon had no time to end its turn");
    assert_eq!(container.inhabitants(&namespace), [0; 0]);
}

#[test]
fn every_signal_for_the_daemon_reaches_it_once() {
    let Some(mut container) = Container::start("[engine]\nshutdown_grace = \"1h\"") else { return };
    let group = |pid| rustix::process::getpgid(rustix::process::Pid::from_raw(pid)).unwrap();
    assert_ne!(group(container.daemon), group(container.init), "Ctrl-C at a terminal is for a whole group");
    container.scene.send("s", "/hang");
    block_until(|| container.scene.log().contains("run started"));
    // Without a closed terminal, SIGHUP is only logged; under `nohup` it is ignored.
    if !ignores_hangup() {
        signal(container.init, Signal::HUP);
        block_until(|| container.scene.log().contains("SIGHUP ignored"));
    }
    // The first signal starts an orderly stop, the second, of any kind, ends the turns.
    signal(container.init, Signal::TERM);
    block_until(|| container.scene.log().contains("stopping"));
    assert!(container.outside.child.try_wait().unwrap().is_none());
    signal(container.init, Signal::INT);
    assert_eq!(container.outside.wait().code(), Some(0), "{}", container.scene.log());
    assert_eq!(container.scene.log().matches("stopping;").count(), 1);
}

#[test]
fn the_container_ends_as_the_daemon_ends() {
    let Some(mut container) = Container::start("") else { return };
    signal(container.daemon, Signal::KILL);
    // `unshare` exits with its child's status, which for a process ended by SIGKILL is that of a shell.
    assert_eq!(container.outside.wait().code(), Some(128 + 9));

    let scene = Scene::new("[engine]\nleese = \"1s\"");
    let mut command = Command::new(CONTAINER[0]);
    command.args(&CONTAINER[1..]).args(["--mount-proc", MAINSTAY, "serve"]).current_dir(scene.dir.path());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.matches("unknown key engine.leese").count(), 1, "{said}");
}
