//! Data in flight takes no more memory than `memory_limit` allows, whatever agents say.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use mainstay::run::{Run, Status};

use crate::scene::{Camp, Daemon, TIMEOUT};

const MIB: usize = 1024 * 1024;
/// Besides 256 MiB a daemon takes memory for itself, and for what SQLite and the allocator keep.
const MOST_BYTES: usize = 400_000_000;

/// Lines of an agent, written by a shell, with `$1` bytes of `$2`: a text, and the result of tool call `$3` between `$4` and `$5`.
const LINE: &str = r#"fill() { yes "$2" | tr -d '\n' | head -c $1; }
text() { printf '{"event":"agent","stream":"assistant","data":{"delta":"'; fill $1 "$2"; echo '"}}'; }
tool() {
    printf '{"event":"agent","stream":"tool","data":{"phase":"result","toolCallId":"%s","name":"sh","result":' $3
    printf '%s' "$4"; fill $1 "$2"; printf '%s' "$5"; echo '}}'
}
"#;

/// The peak memory of a process so far.
fn peak_bytes(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

fn config(more: &str) -> String {
    format!("[server]\ntoken = \"secret\"\n[engine]\nmemory_limit = \"256MiB\"\n{more}")
}

/// How long `/healthz` takes.
fn health(address: &str) -> Duration {
    let began = Instant::now();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    write!(stream, "GET /healthz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    began.elapsed()
}

/// Bytes of a run's answer, as JSON.
fn said(camp: &Camp, run: &Run) -> i64 {
    let db = rusqlite::Connection::open(&camp.db).unwrap();
    let bytes = "SELECT octet_length(m.parts) FROM messages m JOIN runs r ON r.key = m.run_key WHERE r.id = ?1";
    db.query_row(bytes, [run.id.to_string()], |row| row.get(0)).unwrap()
}

async fn completed(camp: &Camp, run: &Run, daemon: &Daemon) {
    let settled = tokio::time::timeout(20 * TIMEOUT, camp.watcher.wait_settled(run.id)).await.unwrap().unwrap();
    let peak = peak_bytes(daemon.pid());
    assert_eq!(settled.status, Status::Completed, "{settled:?} (peak {peak})");
    assert!(peak < MOST_BYTES, "{peak} bytes after {}", settled.agent.as_str());
}

#[tokio::test]
async fn large_turns_at_once_stay_within_the_memory_limit() {
    let part = 12 * MIB;
    let end = r#"echo '{"event":"agent","stream":"lifecycle","data":{"phase":"end"}}'"#;
    let agents = [
        ("text", format!("{LINE} text {part} x; text {part} x; {end}")),
        ("escapes", format!("{LINE} text {part} '\\t'; {end}")),
        ("tool", format!("{LINE} tool {part} x a '\"' '\"'; tool {part} y b '\"' '\"'; {end}")),
        ("nodes", format!("{LINE} tool {part} 1, a '{{\"details\":{{\"a\":[' '1]}}}}'; {end}")),
        ("small", format!("{LINE} text 100 x; {end}")),
    ];
    let agents: Vec<_> = agents.iter().map(|(name, script)| (*name, script.as_str())).collect();
    let camp = Camp::new(&agents, &config("")).await;
    let daemon = camp.daemon();
    let mut runs = Vec::new();
    for (agent, _) in agents.iter().cycle().take(2 * agents.len()) {
        runs.push((*agent, camp.send(agent, &format!("s{}", runs.len()), "go").await));
    }
    for (agent, run) in &runs {
        completed(&camp, run, &daemon).await;
        let expected = match *agent {
            "small" => 100,
            "tool" | "text" => 2 * part,
            _ => part,
        };
        assert!(said(&camp, run) > i64::try_from(expected).unwrap(), "{agent}: {}", said(&camp, run));
    }
}

/// Raises the limit of file descriptors as far as the system allows.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
}

#[tokio::test]
#[ignore = "takes minutes: .ci/long runs it"]
async fn full_turns_stay_within_the_memory_limit() {
    let (most, piece) = (60 * MIB, 15 * MIB);
    let end = r#"echo '{"event":"agent","stream":"lifecycle","data":{"phase":"end"}}'"#;
    let four = |line: &str| format!("{LINE} for i in 1 2 3 4; do {line}; done; {end}");
    let agents = [
        ("line", format!("{LINE} text {most} x; {end}")),
        ("text", four(&format!("text {piece} x"))),
        ("escapes", four(&format!("text {piece} '\\t'"))),
        ("words", format!("{LINE} yes \"$(text 90 x)\" | head -n {}; {end}", most / 90)),
        ("output", format!("{LINE} tool {most} x a '\"' '\"'; {end}")),
        ("outputs", four(&format!("tool {piece} x $i '\"' '\"'"))),
        ("nodes", four(&format!("tool {piece} 1, $i '{{\"details\":{{\"a\":[' '1]}}}}'"))),
        ("huge", format!("{LINE} text 1000000000 x; text 100 x; {end}")),
        ("small", format!("{LINE} text 100 x; {end}")),
    ];
    let agents: Vec<_> = agents.iter().map(|(name, script)| (*name, script.as_str())).collect();
    let long_lines = format!("max_line_bytes = {}\n", 64 * MIB);
    let camp = Camp::new(&agents, &config("workers = 8\n")).await;
    let text = fs::read_to_string(&camp.config).unwrap();
    fs::write(&camp.config, text.replace("driver = \"openclaw\"\n", &format!("driver = \"openclaw\"\n{long_lines}")))
        .unwrap();
    let daemon = camp.daemon();
    let address = daemon.address().to_owned();

    raise_descriptors();
    let mut idle = Vec::new();
    while idle.len() < 4096 {
        // Some may be refused: only their memory matters.
        idle.push(TcpStream::connect(&address));
    }
    let mut runs = Vec::new();
    for (agent, _) in agents.iter().chain(&agents[agents.len() - 1..]) {
        runs.push((*agent, camp.send(agent, &format!("s{}", runs.len()), "go").await));
    }
    let mut readers = Vec::new();
    for (number, (_, run)) in runs.iter().cycle().take(100).enumerate() {
        let Ok(mut reader) = TcpStream::connect(&address) else { continue };
        let path = if number % 2 == 0 { format!("runs/{}", run.id) } else { format!("sessions/{}", run.session_id) };
        let head = format!("host: {address}\r\nauthorization: Bearer secret\r\naccept: text/event-stream");
        let _ = write!(reader, "GET /v1/{path}/events HTTP/1.1\r\n{head}\r\n\r\n");
        readers.push(reader);
    }
    let healthy = tokio::spawn(stays_healthy(address));
    for (agent, run) in &runs {
        completed(&camp, run, &daemon).await;
        println!("{agent}: {} bytes, peak {} MB", said(&camp, run), peak_bytes(daemon.pid()) / 1_000_000);
    }
    assert!(!healthy.is_finished(), "it did not answer in time");
    healthy.abort();
    drop((idle, readers));
}

/// Panics once the daemon does not answer within ten seconds, which leave room for a busy machine.
async fn stays_healthy(address: String) {
    loop {
        let address = address.clone();
        let took = tokio::task::spawn_blocking(move || health(&address)).await.unwrap();
        assert!(took < Duration::from_secs(10), "{took:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
