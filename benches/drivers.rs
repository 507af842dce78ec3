//! The time from an agent's line to its committed row, for each driver, compared with a hand-written reader and writer for the
//! same agent; and the cost of parsing a line.
//!
//! The agent is this program itself ([`agent`]): it writes lines as the driver's agents write them, each with the time at
//! which it was written.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use mainstay::agent_event::LineParser;
use mainstay::config::Config;
use mainstay::driver::{acp, claude, codex, opencode};
use mainstay::engine::{Engine, SendMessage, turn::Turn};
use mainstay::id::MessageId;
use mainstay::message::UserMessage;
use mainstay::process::decode;
use mainstay::run::Status;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::runtime::Runtime;

use crate::sample::{Sample, Side, line};
use crate::{raw, scene};

type Parser = fn() -> LineParser;

/// The argument that makes this program an agent; the driver's word is the next one.
pub const AGENT: &str = "agent";
/// The ACP agent is behind a relay and a bridge.
const DRIVERS: [&str; 4] = ["openclaw", "claude", "codex", "acp"];
/// What the hand-written client asks an ACP agent, in this order.
const REQUESTS: [&str; 3] = ["initialize", "session/new", "session/prompt"];
const ROUNDS: usize = 5;
/// Lines per round, and the time between two of them.
const LINES: u32 = 800;
const EVERY: Duration = Duration::from_millis(5);
/// Lines before those that count: the start of the first run is not part of a line's cost.
const WARM_UP: u32 = 40;

/// Prints the tables.
pub fn measure(runtime: &Runtime) {
    line("ms from line to row, 200 lines/s", &["p50", "by hand", "p99", "by hand", "added p50", "added p99"]);
    for driver in DRIVERS {
        let (mut ours, mut by_hand) = (Side::default(), Side::default());
        for _ in 0..ROUNDS {
            ours.push(Sample { rate: 0.0, times: runtime.block_on(driven(driver)) });
            by_hand.push(Sample { rate: 0.0, times: runtime.block_on(read_by_hand(driver)) });
        }
        let [p50, hand50, p99, hand99] =
            [(&ours, 50), (&by_hand, 50), (&ours, 99), (&by_hand, 99)].map(|(side, p)| side.percentile(p));
        let columns = [p50, hand50, p99, hand99, p50 - hand50, p99 - hand99].map(|ms| format!("{ms:.2}"));
        line(driver, &columns.each_ref().map(String::as_str));
    }
    line("µs a recorded line", &["understood", "as JSON", "and heard"]);
    let parsers: [(&str, Parser); 4] =
        [("acp", acp::parser), ("claude", claude::parser), ("codex", codex::parser), ("opencode", opencode::parser)];
    for (driver, parser) in parsers {
        let columns = cost(driver, parser).map(|us| format!("{us:.1}"));
        line(driver, &columns.each_ref().map(String::as_str));
    }
}

/// Nanoseconds on a clock that all processes share.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

/// A text that contains the time at which it was written.
fn dated() -> String {
    format!("{} and so the tests pass again, once the missing index is there; ", now())
}

fn age(text: &str) -> Option<Duration> {
    let date: u64 = text.split(' ').next()?.parse().ok()?;
    Some(Duration::from_nanos(now() - date))
}

/// Runs as an agent: it writes its lines, each in time.
pub fn agent(driver: &str) {
    let mut stdout = std::io::stdout();
    let mut say = |value: Value| {
        writeln!(stdout, "{value}").unwrap();
        stdout.flush().unwrap();
    };
    let event =
        |event: Value| json!({"type": "stream_event", "event": event, "session_id": "s", "parent_tool_use_id": null});
    if driver == "claude" {
        say(event(json!({"type": "message_start", "message": {"id": "m"}})));
        say(event(json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})));
    }
    let prompt = if driver == "acp" { until_prompted(&mut say) } else { Value::Null };
    let began = Instant::now();
    for number in 0..LINES {
        std::thread::sleep((EVERY * number).saturating_sub(began.elapsed()));
        let text = dated();
        say(match driver {
            "claude" => {
                event(json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}))
            }
            "codex" => {
                json!({"type": "item.completed", "item": {"id": format!("item_{number}"), "type": "agent_message", "text": text}})
            }
            "acp" => {
                let update = json!({"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}});
                json!({"jsonrpc": "2.0", "method": "session/update", "params": {"sessionId": "s", "update": update}})
            }
            _ => json!({"event": "agent", "stream": "assistant", "data": {"delta": text}}),
        });
    }
    match driver {
        "claude" => say(json!({"type": "result", "subtype": "success", "is_error": false, "result": ""})),
        "codex" => say(json!({"type": "turn.completed", "usage": {}})),
        "acp" => say(json!({"jsonrpc": "2.0", "id": prompt, "result": {"stopReason": "end_turn"}})),
        _ => {}
    }
}

/// Answers the requests of an ACP client until the prompt; returns that request's id.
fn until_prompted(say: &mut impl FnMut(Value)) -> Value {
    for line in std::io::stdin().lines() {
        let request: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let result = match request["method"].as_str() {
            Some("session/prompt") => return request["id"].clone(),
            Some("initialize") => json!({"protocolVersion": 1, "agentCapabilities": {}}),
            _ => json!({"sessionId": "s"}),
        };
        say(json!({"jsonrpc": "2.0", "id": request["id"], "result": result}));
    }
    Value::Null
}

fn command(driver: &str) -> [String; 3] {
    [std::env::current_exe().unwrap().display().to_string(), AGENT.to_owned(), driver.to_owned()]
}

/// The ages of a run's rows when a reader in the engine gets them, which is a little after their commit.
async fn driven(driver: &str) -> Vec<Duration> {
    let dir = scene::tempdir();
    let text = format!(
        "[agents.measured]\ndriver = {driver:?}\ncommand = {}\n[workspaces.default]\nagent = \"measured\"\ndir = \".\"\n",
        json!(command(driver))
    );
    let mut config = Config::load(&text, Path::new("bench.toml"), dir.path()).unwrap();
    config.engine.shim_program = env!("CARGO_BIN_EXE_mainstay").into();
    let engine = Engine::open(&dir.path().join("m.db"), config).await.unwrap();
    engine.start().await.unwrap();
    let message = UserMessage::text(MessageId::generate(), "go on").unwrap();
    let run = engine.send(SendMessage::new("s".parse().unwrap(), message)).await.unwrap().run;
    let mut follower = engine.follow_run(run.id, 0).await.unwrap();
    let mut ages = Vec::new();
    while let Some(events) = follower.next_events().await.unwrap() {
        for event in events {
            let event: Value = serde_json::from_str(&event.event).unwrap();
            ages.extend(event.get("delta").and_then(Value::as_str).and_then(age));
        }
    }
    let run = engine.run(run.id).await.unwrap();
    assert_eq!(run.status, Status::Completed, "{:?}", run.error);
    engine.drain(Duration::from_secs(5)).await;
    engine.close().await;
    counted(ages)
}

/// The same agent on a pipe, read line by line, its text written by the hand-written writer.
async fn read_by_hand(driver: &str) -> Vec<Duration> {
    let dir = scene::tempdir();
    let (path, claimed) = scene::running(dir.path(), "raw.db", 1).await;
    let writer = raw::Writer::open(&path, |_, _| {});
    let [program, agent, word] = command(driver);
    let mut child = tokio::process::Command::new(program)
        .args([agent, word])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for method in REQUESTS.iter().filter(|_| driver == "acp") {
        let request = json!({"jsonrpc": "2.0", "id": method, "method": method, "params": {}});
        stdin.write_all(format!("{request}\n").as_bytes()).await.unwrap();
    }
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut ages = Vec::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        let line: Value = serde_json::from_str(&line).unwrap();
        let texts = ["/event/delta/text", "/item/text", "/data/delta", "/params/update/content/text"];
        let Some(text) = texts.iter().find_map(|text| line.pointer(text)?.as_str()) else { continue };
        let chunk = json!({"type": "text-delta", "id": "text-1", "delta": text}).to_string();
        writer.append(claimed[0].lease, vec![chunk]).await.unwrap();
        ages.extend(age(text));
    }
    drop(stdin);
    child.wait().await.unwrap();
    counted(ages)
}

fn counted(mut ages: Vec<Duration>) -> Vec<Duration> {
    assert_eq!(ages.len(), LINES as usize);
    ages.split_off(WARM_UP as usize)
}

/// Microseconds per line of everything that was recorded of a driver: with its parser, with a JSON parser alone, and including
/// what readers get of it.
fn cost(driver: &str, parser: fn() -> LineParser) -> [f64; 3] {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts").join(driver);
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let recorded: Vec<Vec<u8>> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "ndjson"))
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    let lines: usize = recorded.iter().map(|output| output.split(|byte| *byte == b'\n').count()).sum();
    let timed = |work: &dyn Fn(&[u8])| {
        let times = (0..50).map(|_| {
            let began = Instant::now();
            recorded.iter().for_each(|output| work(output));
            began.elapsed()
        });
        times.min().unwrap().as_secs_f64() * 1e6 / lines as f64
    };
    let read = |output: &[u8]| decode([output], 1 << 24, parser());
    [
        timed(&|output| _ = read(output)),
        timed(&|output| {
            for line in output.split(|byte| *byte == b'\n') {
                let _: Option<Value> = serde_json::from_slice(line).ok();
            }
        }),
        timed(&|output| {
            let mut turn = Turn::default();
            for event in read(output).into_iter().flat_map(|record| record.events) {
                turn.hear(event).iter().for_each(|chunk| _ = chunk.to_json());
            }
        }),
    ]
}
