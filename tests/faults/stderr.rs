//! Logs must not stop the work: a daemon whose stderr is closed, full, broken or not read does all its work, and stops when
//! asked to.

use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use rustix::io::{ioctl_fionbio, ioctl_fionread};
use std::io::pipe;

use crate::scene::{Count, Daemon, Scene, until, within};

/// More than a pipe holds.
const PIPE_BYTES: u64 = 64 * 1024;
const SESSIONS: usize = 6;
const MESSAGES: usize = 4;

/// With an agent that says a word and ends.
fn scene() -> Scene {
    Scene::with_agent(r#"echo '{"event":"agent","stream":"assistant","data":{"delta":"word"}}'"#, "")
}

/// Sends many runs, all of which complete.
pub async fn does_its_work(daemon: &Daemon) {
    let mut runs = Vec::new();
    for number in 0..SESSIONS * MESSAGES {
        let session = format!("s{}", number % SESSIONS);
        runs.push(within(daemon.count(&session, &format!("m{number}"))).await.run());
    }
    for run in runs {
        let settled = within(daemon.settled(&run)).await;
        assert_eq!(settled["status"], "completed", "{settled}");
    }
    assert_eq!(within(daemon.get("/readyz")).await.status, 200);
}

async fn dropped(daemon: &Daemon) -> f64 {
    let text = daemon.request(reqwest::Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("mainstay_log_lines_dropped_total "));
    line.unwrap().parse().unwrap()
}

fn start(scene: &Scene, stderr: impl Into<Stdio>) -> Daemon {
    let mut command = scene.serve();
    command.arg("-vvv").stderr(stderr);
    scene.ready(command.spawn().unwrap()).unwrap()
}

#[tokio::test]
async fn a_full_disk_under_the_log_stops_nothing() {
    let scene = scene();
    let daemon = start(&scene, OpenOptions::new().write(true).open("/dev/full").unwrap());
    does_its_work(&daemon).await;
    assert!(dropped(&daemon).await > 10.0);
    daemon.stop();
}

#[tokio::test]
async fn a_log_whose_reader_has_gone_stops_nothing() {
    let scene = scene();
    let (reader, writer) = pipe().unwrap();
    let daemon = start(&scene, writer);
    drop(reader);
    does_its_work(&daemon).await;
    assert!(dropped(&daemon).await > 10.0);
    daemon.stop();
}

#[tokio::test]
async fn a_log_that_is_not_read_stops_nothing() {
    let scene = scene();
    let (reader, writer) = pipe().unwrap();
    let mut daemon = start(&scene, writer);
    let (mut round, full) = (0, || ioctl_fionread(&reader).unwrap() > PIPE_BYTES - 4096);
    while !full() {
        round += 1;
        assert!(round < 100, "the log is too short for this test");
        within(daemon.settled(&daemon.count("first", &format!("first{round}")).await.run())).await;
    }
    does_its_work(&daemon).await;
    daemon.signal("TERM");
    assert!(daemon.ended().await.success());
    drop(reader);
}

#[tokio::test]
async fn streams_that_are_closed_at_start_are_no_files_of_ours() {
    let scene = scene();
    let mut command = closing("<&- 2>&-", &scene.serve());
    let daemon = scene.ready(command.stdout(Stdio::piped()).spawn().unwrap()).unwrap();
    does_its_work(&daemon).await;
    for fd in [0, 2] {
        let target = std::fs::read_link(format!("/proc/{}/fd/{fd}", daemon.child.id())).unwrap();
        assert_eq!(target.to_str(), Some("/dev/null"));
    }
    daemon.stop();
}

#[tokio::test]
async fn a_daemon_needs_no_reader_of_its_address() {
    let scene = scene();
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    // A pipe that is full before the daemon starts.
    let (reader, writer) = pipe().unwrap();
    ioctl_fionbio(&writer, true).unwrap();
    while rustix::io::write(&writer, &[b'x'; 4096]).is_ok() {}
    ioctl_fionbio(&writer, false).unwrap();
    for (redirections, stdout) in [(">&- 2>&-", None), ("2>/dev/null", Some(writer))] {
        let address = free();
        let mut command = closing(redirections, &scene.serve_at(&address));
        command.stdout(stdout.map_or_else(Stdio::null, Stdio::from));
        let daemon = scene.reached_at(command.spawn().unwrap(), &address);
        until(|| std::net::TcpStream::connect(&address).is_ok()).await;
        does_its_work_again(&daemon, redirections).await;
        daemon.stop();
    }
    drop(reader);
}

async fn does_its_work_again(daemon: &Daemon, session: &str) {
    let session = if session.starts_with('>') { "closed" } else { "full" };
    let run = within(daemon.count(session, session)).await.run();
    assert_eq!(within(daemon.settled(&run)).await["status"], "completed");
}

/// The same command, started by a shell that redirects its streams.
fn closing(redirections: &str, serve: &Command) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec \"$0\" \"$@\" {redirections}")]);
    command.arg(serve.get_program()).args(serve.get_args());
    command.envs(serve.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::null()).stderr(File::open("/dev/null").unwrap());
    command
}
