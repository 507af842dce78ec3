//! A turn of an agent under a shim, compared with the same process started and read by hand.

use std::process::Stdio;
use std::time::{Duration, Instant};

use mainstay::agent::ProcessSpec;
use mainstay::agent_event::{AgentEvent, LineParser};
use mainstay::driver::Driver;
use mainstay::driver::per_turn::{Dialect, PerTurn};
use mainstay::id::RunId;
use mainstay::process::Shims;
use mainstay::process::{End, Prompt, TurnPlace};
use mainstay::run::Attempt;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::runtime::Runtime;

use crate::sample::{ROUNDS, Sample, Side, count, line};

/// Turns per round, one after the other: the benchmark measures how long each takes.
const TURNS: usize = 100;
/// Lines per round of the throughput.
const LINES: usize = 500_000;

fn lines() -> LineParser {
    Box::new(|line| Some(vec![AgentEvent::Text(line.to_owned())]))
}

pub fn measure(runtime: &Runtime) {
    let dir = tempfile::tempdir().unwrap();
    let hosts = Shims::new(env!("CARGO_BIN_EXE_mainstay").into(), dir.path().join("agents"));
    line("", &["hosted", "by hand", "ratio", "p50 ms", "p50 by hand"]);
    let turns = |script: &'static str, number: usize| {
        let (mut ours, mut theirs) = (Side::default(), Side::default());
        for _ in 0..ROUNDS {
            ours.push(runtime.block_on(hosted(&hosts, script, number)));
            theirs.push(runtime.block_on(by_hand(script, number)));
        }
        let times = [ours.percentile(50), theirs.percentile(50)].map(|ms| format!("{ms:.2}"));
        let columns = [count(ours.rate()), count(theirs.rate()), format!("{:.2}", ours.ratio(&theirs))];
        (columns, times)
    };
    let (columns, times) = turns("echo hello", TURNS);
    line("turns/s, one line each", &[&columns[0], &columns[1], &columns[2], &times[0], &times[1]]);
    let script: &'static str = Box::leak(format!("exec seq {LINES}").into_boxed_str());
    let (columns, times) = turns(script, 1);
    line(&format!("turns/s, {LINES} lines each"), &[&columns[0], &columns[1], &columns[2], &times[0], &times[1]]);
}

async fn hosted(hosts: &Shims, script: &str, turns: usize) -> Sample {
    let spec = ProcessSpec {
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: Default::default(),
        max_line_bytes: 1 << 20,
    };
    let backend = PerTurn::new(spec, Duration::from_secs(5), Dialect::of_lines(lines), hosts.clone());
    let mut times = Vec::new();
    let began = Instant::now();
    for _ in 0..turns {
        let turn = Instant::now();
        let attempt = Attempt { run: RunId::generate(), number: 1 };
        let prompt = Prompt {
            place: TurnPlace {
                attempt,
                session: "s".parse().unwrap(),
                slot: "slot".to_owned(),
                workspace: "w".parse().unwrap(),
                dir: "/".into(),
                agent_session: None,
                endpoint: None,
            },
            message: String::new(),
            start_by: Instant::now() + Duration::from_secs(60),
            limit: Duration::from_secs(60),
            attachments: Vec::new(),
            options: mainstay::options::SessionOptions::default(),
            rules: Default::default(),
            oneshot: false,
        };
        let mut reply = backend.prompt(prompt).await.unwrap();
        reply.control.begin();
        while reply.records.recv().await.is_some() {}
        assert!(matches!(reply.end.await.unwrap(), End::Exited(_)));
        hosts.forget(attempt).await;
        times.push(turn.elapsed());
    }
    Sample::new(turns, began.elapsed(), times)
}

async fn by_hand(script: &str, turns: usize) -> Sample {
    let mut times = Vec::new();
    let began = Instant::now();
    for _ in 0..turns {
        let turn = Instant::now();
        let mut child =
            Command::new("sh").args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        while output.next_line().await.unwrap().is_some() {}
        child.wait().await.unwrap();
        times.push(turn.elapsed());
    }
    Sample::new(turns, began.elapsed(), times)
}
