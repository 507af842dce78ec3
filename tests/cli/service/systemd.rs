//! What systemd is told, what is not passed on to agents, and the unit file.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mainstay::config::Config;
use mainstay::engine::Engine;

use crate::service::scene::{MAINSTAY, Scene, TIMEOUT, block_until, skipped};

const UNIT: &str = include_str!("../../../dist/mainstay.service");

/// The socket of a service manager.
struct Manager {
    socket: UnixDatagram,
    path: String,
}

impl Manager {
    fn new(scene: &Scene) -> Self {
        let path = scene.path("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self { socket, path: path.to_str().unwrap().to_owned() }
    }

    /// The next message.
    fn told(&self) -> String {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap()
    }

    /// All messages up to one that contains this.
    fn told_until(&self, what: &str) -> Vec<String> {
        let mut told = vec![self.told()];
        while !told.last().unwrap().contains(what) {
            told.push(self.told());
        }
        told
    }
}

#[test]
fn systemd_is_told_of_readiness_and_of_the_stop() {
    let scene = Scene::new("[engine]\nshutdown_grace = \"20m\"\n[agents.demo]\nkill_grace = \"7s\"");
    let manager = Manager::new(&scene);
    let daemon = scene.start(&[MAINSTAY], &[("NOTIFY_SOCKET", &manager.path)]);
    let ready = manager.told();
    assert_eq!(ready, format!("READY=1\nSTATUS=serving on {}, 8 runs at once\n", daemon.url));
    daemon.stop();
    let stopping = manager.told();
    let limit = (20 * 60 + 7 + 30) * 1_000_000;
    assert!(stopping.starts_with("STOPPING=1\nSTATUS=waiting"), "{stopping}");
    assert!(stopping.ends_with(&format!("\nEXTEND_TIMEOUT_USEC={limit}\n")), "{stopping}");
    manager.socket.set_nonblocking(true).unwrap();
    assert!(manager.socket.recv(&mut [0; 1]).is_err(), "nobody asked for a watchdog");
}

#[test]
fn the_watchdog_hears_of_an_engine_whose_database_is_locked() {
    let scene = Scene::new("");
    let manager = Manager::new(&scene);
    let env = [("NOTIFY_SOCKET", manager.path.as_str()), ("WATCHDOG_USEC", "1000000")];
    let daemon = scene.start(&[MAINSTAY], &env);
    manager.told_until("READY=1");
    for _ in 0..2 {
        assert_eq!(manager.told(), "WATCHDOG=1\n");
    }
    let other = rusqlite::Connection::open(scene.path("mainstay.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    // With so short a limit the engine, which waits for the lock for five seconds, seems to hang at first.
    block_until(|| scene.log().contains("the engine does not answer"));
    manager.socket.set_nonblocking(true).unwrap();
    while manager.socket.recv(&mut [0; 64]).is_ok() {}
    manager.socket.set_nonblocking(false).unwrap();
    assert_eq!(manager.told(), "WATCHDOG=1\n", "while the lock is still held");
    other.execute_batch("ROLLBACK").unwrap();
    daemon.stop();
}

#[tokio::test]
async fn an_engine_without_its_loop_has_no_pulse() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Engine::open(&dir.path().join("m.db"), Config::builtin(dir.path())).await.unwrap();
    let writes = async {
        for _ in 0..3 {
            engine.check_ready().await.unwrap();
        }
    };
    tokio::select! {
        biased;
        () = engine.pulse() => panic!("the writer alone is no engine"),
        () = writes => {}
    }
    engine.start().await.unwrap();
    for _ in 0..3 {
        tokio::time::timeout(TIMEOUT, engine.pulse()).await.unwrap();
    }
    // A daemon that lets its turns finish is alive.
    engine.drain(Duration::ZERO).await;
    tokio::time::timeout(TIMEOUT, engine.pulse()).await.unwrap();
    engine.close().await;
}

#[test]
fn agents_do_not_speak_for_the_daemon() {
    let scene = Scene::with_agent("env > seen.new; mv seen.new seen", "");
    let manager = Manager::new(&scene);
    let own = [
        ("NOTIFY_SOCKET", manager.path.as_str()),
        ("WATCHDOG_USEC", "60000000"),
        ("MAINSTAY_TOKEN", "s3cret"),
        ("MAINSTAY_DB", "mainstay.db"),
        ("MAINSTAY_CONFIG", "mainstay.toml"),
        ("KEY_OF_THE_AGENT", "k"),
    ];
    let daemon = scene.start(&[MAINSTAY], &own);
    scene.send("s", "hi");
    block_until(|| scene.path("seen").exists());
    let seen = std::fs::read_to_string(scene.path("seen")).unwrap();
    assert!(seen.contains("KEY_OF_THE_AGENT=k"));
    let kept = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "MAINSTAY_TOKEN", "MAINSTAY_DB", "MAINSTAY_CONFIG"];
    for variable in kept {
        assert!(!seen.contains(variable), "{variable}");
    }
    daemon.stop();
}

#[test]
fn systemd_understands_the_unit() {
    let dir = tempfile::tempdir().unwrap();
    let unit = dir.path().join("mainstay.service");
    std::fs::write(&unit, UNIT.replace("/usr/local/bin/mainstay", MAINSTAY)).unwrap();
    let Ok(output) = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output() else {
        return skipped("systemd-analyze is not installed");
    };
    // It may complain about other units of this machine, too. Settings that it ignores in ours are no failure to it.
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("mainstay"), "{said}");
    assert!(output.status.success(), "{said}");
}

/// What a setting of the unit says.
fn setting(name: &str) -> &'static str {
    let mut values = UNIT.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let value = values.next().unwrap_or_else(|| panic!("{name} is not set"));
    assert_eq!(values.next(), None, "{name} is set twice");
    value
}

#[test]
fn the_unit_leaves_agents_alone_and_the_daemon_its_time() {
    assert_eq!((setting("KillMode"), setting("KillSignal")), ("process", "SIGTERM"));
    assert_eq!((setting("RestartKillSignal"), setting("OOMPolicy")), ("SIGUSR2", "continue"));
    let config = Config::builtin(Path::new("/"));
    let slowest = config.agents.values().map(|agent| agent.kill_grace).max().unwrap();
    let limit = Duration::from_secs(setting("TimeoutStopSec").parse().unwrap());
    assert!(limit > config.engine.shutdown_grace + slowest);
    assert!(!UNIT.lines().any(|line| line.starts_with("PrivateTmp=")));
}
