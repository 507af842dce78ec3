//! Out of file descriptors, processes and memory: what was accepted waits, and completes once there is enough again.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use crate::place::until_ready;
use crate::scene::{Answer, Count, Daemon, Scene, counted, until, within};
use crate::shim::{EAGAIN, EMFILE, ENOMEM, Fault, SPAWN};

/// More than run at once.
const MESSAGES: usize = 12;

fn limit_descriptors(daemon: &Daemon, limit: &str) {
    let pid = daemon.child.id().to_string();
    let set = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={limit}")]).status();
    assert!(set.unwrap().success());
}

/// Sends from a process of its own, which needs no connection.
fn send_by_command(scene: &Scene, session: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command.args(["send", session, "count", "--db"]).arg(&scene.db).arg("--config").arg(&scene.config);
    let sent = command.output().unwrap();
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
}

fn runs_by_status(scene: &Scene, status: &str) -> usize {
    let count = "SELECT count(*) FROM runs WHERE status = ?1";
    scene.open().query_row(count, [status], |row| row.get::<_, i64>(0)).unwrap().try_into().unwrap()
}

async fn until_stalled(daemon: &Daemon, why: &str) {
    within(async {
        loop {
            let Answer { status, body, .. } = daemon.get("/readyz").await;
            if status == 503 && body["error"]["message"].as_str().is_some_and(|message| message.contains(why)) {
                return assert_eq!(body["error"]["code"], "stalled");
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
}

/// Claims that were given back because of the shortage do not count as attempts.
async fn complete_at_the_first_attempt(scene: &Scene, daemon: &Daemon, runs: &[String]) {
    for run in runs {
        let settled = within(daemon.settled(run)).await;
        assert_eq!(settled["status"], "completed", "{settled}");
        let tries = "SELECT attempts - shortages FROM runs WHERE id = ?1";
        assert_eq!(scene.open().query_row(tries, [run], |row| row.get::<_, i64>(0)).unwrap(), 1, "{settled}");
        assert_eq!(daemon.follow(run, |_, _| ()).await, counted());
    }
    until_ready(daemon).await;
}

#[tokio::test]
async fn readers_on_every_connection_leave_runs_a_reserve() {
    let scene = Scene::new("");
    let daemon = scene.ready(scene.serve_limited("256:256").spawn().unwrap()).unwrap();
    let url = daemon.request(reqwest::Method::GET, "/").build().unwrap().url().clone();
    let address: SocketAddr = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap()).parse().unwrap();
    send_by_command(&scene, "s");
    let mut readers = Vec::new();
    // More than are served, and not more than the kernel queues.
    for _ in 0..200 {
        let mut reader = TcpStream::connect(address).unwrap();
        // The connection of a refused reader is closed.
        let _ = write!(
            reader,
            "GET /v1/sessions/s/events HTTP/1.1\r\nhost: {address}\r\naccept: text/event-stream\r\n\r\n"
        );
        readers.push(reader);
    }
    for number in 1..MESSAGES {
        send_by_command(&scene, &format!("s{number}"));
    }
    until(|| runs_by_status(&scene, "queued") + runs_by_status(&scene, "running") == 0).await;
    assert_eq!(runs_by_status(&scene, "completed"), MESSAGES, "{}", scene.logged());
    assert!(scene.logged().contains("fewer connections than max_connections"), "{}", scene.logged());
    drop(readers);
    daemon.stop();
}

#[tokio::test]
async fn agents_keep_the_soft_limit_of_descriptors() {
    let scene = Scene::with_agent("ulimit -Sn > limits; ulimit -Hn >> limits; exit 0", "");
    let daemon = scene.ready(scene.serve_limited("200:300").spawn().unwrap()).unwrap();
    let run = daemon.count("s", "m").await.run();
    within(daemon.settled(&run)).await;
    let limits = std::fs::read_to_string(scene.config.with_file_name("limits")).unwrap();
    assert_eq!(limits.split_whitespace().collect::<Vec<_>>(), ["200", "300"]);
    let own = std::fs::read_to_string(format!("/proc/{}/limits", daemon.child.id())).unwrap();
    let own = own.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(own.split_whitespace().nth(3), Some("300"));
    daemon.stop();
}

#[tokio::test]
async fn starts_wait_for_file_descriptors() {
    let scene = Scene::new("");
    let daemon = scene.daemon();
    let first = daemon.count("s", "first").await.run();
    within(daemon.settled(&first)).await;
    // What is open stays open, and nothing else can be opened; that includes the client's connection.
    limit_descriptors(&daemon, "3:4096");
    let mut runs = Vec::new();
    for number in 0..MESSAGES {
        runs.push(daemon.count(&format!("s{number}"), "m").await.run());
    }
    until_stalled(&daemon, "Too many open files").await;
    assert_eq!(runs_by_status(&scene, "completed"), 1);
    assert_eq!(runs_by_status(&scene, "failed"), 0, "{}", scene.logged());
    limit_descriptors(&daemon, "4096:4096");
    complete_at_the_first_attempt(&scene, &daemon, &runs).await;
    let metrics = daemon.request(reqwest::Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
    let retried = metrics.lines().find_map(|line| line.strip_prefix("mainstay_starts_retried_total ")).unwrap();
    assert!(retried.parse::<u64>().unwrap() > 0, "{metrics}");
    daemon.stop();
}

/// A program that cannot be started for a while: `exe` is the shim, `sh` the agent.
async fn wait_out(program: &'static str, error: i32, words: &str) {
    let scene = Scene::new("");
    let daemon = scene.daemon();
    scene.shim.fail(Fault { files: program, ..Fault::all(SPAWN, error) });
    let mut runs = Vec::new();
    for number in 0..3 {
        runs.push(daemon.count(&format!("s{number}"), "m").await.run());
    }
    until_stalled(&daemon, words).await;
    assert_eq!(runs_by_status(&scene, "failed"), 0, "{}", scene.logged());
    scene.shim.heal();
    complete_at_the_first_attempt(&scene, &daemon, &runs).await;
    daemon.stop();
}

#[tokio::test]
async fn starts_wait_for_processes() {
    wait_out("exe", EAGAIN, "Resource temporarily unavailable").await;
    wait_out("sh", EAGAIN, "Resource temporarily unavailable").await;
}

#[tokio::test]
async fn starts_wait_for_memory() {
    wait_out("exe", ENOMEM, "Cannot allocate memory").await;
    wait_out("sh", ENOMEM, "Cannot allocate memory").await;
}

#[tokio::test]
async fn hosts_wait_for_descriptors_of_the_machine() {
    wait_out("sh", EMFILE, "Too many open files").await;
}

/// Runs of a workspace that cannot start leave the only worker to those of another one, and end when they are cancelled.
async fn is_left_to_others(agent: &str) -> (Scene, Daemon, Vec<String>) {
    let scene = Scene::new(
        "[engine]\nworkers = 1\n[workspaces.other]\nagent = \"demo\"\n\
         [agents.warm]\ndriver = \"acp\"\nmax_concurrent = 100\ncommand = [\"sh\"]\n\
         [workspaces.warm]\nagent = \"warm\"\nslots = 8",
    );
    let daemon = scene.daemon();
    let create = async |session: &str, workspace: &str| {
        let body = serde_json::json!({"id": session, "workspace": workspace});
        let created = daemon.request(reqwest::Method::POST, "/v1/sessions").json(&body).send().await.unwrap();
        assert!(created.status().is_success());
    };
    scene.shim.fail(Fault { files: "sh", ..Fault::all(SPAWN, ENOMEM) });
    let mut starved = Vec::new();
    for number in 0..3 {
        let session = format!("s{number}");
        create(&session, agent).await;
        starved.push(daemon.count(&session, "m").await.run());
    }
    // While none of them can start, another agent gets the only worker.
    create("other", "other").await;
    let other = daemon.count("other", "m").await.run();
    let other = within(daemon.settled(&other)).await;
    assert_eq!(other["status"], "completed", "{other}");
    until(|| {
        let resting =
            "SELECT count(*) FROM v_runs WHERE status = 'queued' AND short_of LIKE '%Cannot allocate memory%'";
        scene.open().query_row(resting, [], |row| row.get::<_, i64>(0)).unwrap() > 0
    })
    .await;
    // Other agents can start.
    until_ready(&daemon).await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    let listed = command.args(["runs", "--json", "--db"]).arg(&scene.db).arg("--config").arg(&scene.config);
    let listed = String::from_utf8(listed.output().unwrap().stdout).unwrap();
    assert!(listed.contains("Cannot allocate memory"), "{listed}");
    let cancelled = daemon.request(reqwest::Method::POST, &format!("/v1/runs/{}/cancel", starved[0])).send();
    assert!(cancelled.await.unwrap().status().is_success());
    assert_eq!(within(daemon.settled(&starved[0])).await["status"], "cancelled");
    (scene, daemon, starved)
}

#[tokio::test]
async fn starved_runs_leave_their_worker_to_others() {
    let (scene, daemon, starved) = is_left_to_others("default").await;
    scene.shim.heal();
    complete_at_the_first_attempt(&scene, &daemon, &starved[1..]).await;
    daemon.stop();
}

#[tokio::test]
async fn starved_turns_of_warm_agents_leave_theirs_too() {
    let (_scene, daemon, _) = is_left_to_others("warm").await;
    daemon.stop();
}
