//! What must hold for any input from outside: one function per kind of input. `fuzz_targets/` generates inputs,
//! `tests/it/fuzz_corpus.rs` of the engine runs those that were kept in `corpus/`.
//!
//! A new kind needs a function here, a file in `fuzz_targets/` with its entry in `Cargo.toml`, a folder in `corpus/` and a
//! line in that test.

use std::path::Path;

use axum::http::{HeaderMap, HeaderValue, Uri};
use mainstay::agent_event::{AgentEvent, LineParser};
use mainstay::chunk::Chunk;
use mainstay::config::{Config, limits};
use mainstay::driver::acp::bridge::{Frames, Heard};
use mainstay::driver::{acp, claude, codex, openclaw, openclaw_gateway, opencode};
use mainstay::engine::turn::Turn;
use mainstay::engine::{SendMessage, fold::Fold};
use mainstay::http::{ChatRequest, Error, read_chat, read_cursor, read_new_run};
use mainstay::options::SessionOptions;
use mainstay::process::shim::frame::{Decoder, Frame, encode};
use mainstay::process::shim::wire::{FromEngine, FromShim, MAX_FROM_ENGINE_BYTES, MAX_FROM_SHIM_BYTES};
use mainstay::process::{Record, decode};
use mainstay::run::{Cause, Outcome};
use serde_json::Value;
use serde_json::value::RawValue;

#[path = "../../tests/it/rules.rs"]
pub mod rules;

/// The output of an agent: see [`lines`].
pub fn agent_lines(data: &[u8]) {
    lines(data, openclaw::parser);
}

/// The output of an agent of any driver: a byte for the driver, then as for [`lines`].
pub fn drivers(data: &[u8]) {
    let [driver, data @ ..] = data else { return };
    lines(data, PARSERS[usize::from(*driver) % PARSERS.len()]);
}

/// The drivers by the first byte of an input; a new one goes to the end.
const PARSERS: [fn() -> LineParser; 6] =
    [openclaw::parser, claude::parser, codex::parser, opencode::parser, acp::parser, openclaw_gateway::parser];

/// A byte for the size of the reads, one for the longest line, one for the end of the run, then the output. The size of the
/// reads does not change what is parsed; readers get a well-formed stream; and an engine that adopts the run at any point, from
/// what is stored, emits the same.
fn lines(data: &[u8], parser: fn() -> LineParser) {
    let [cut, longest, end, output @ ..] = data else { return };
    let longest = 16 * (1 + usize::from(*longest));
    let pieces = || output.chunks(1 + usize::from(*cut));
    let records = decode([output], longest, parser());
    assert!(said(&records).eq(said(&decode(pieces(), longest, parser()))));
    let (before, after) = records.split_at(records.len() / 2);
    assert!(records.is_sorted_by_key(|record| record.offset));
    assert_eq!(records.last().map(|record| record.offset), Some(output.len() as u64));

    let cause = Cause::ALL[usize::from(*end) % Cause::ALL.len()];
    let outcome = Outcome::of(cause, None);
    let mut turn = Turn::default();
    let first: Vec<_> = before.iter().flat_map(|record| &record.events).flat_map(|e| turn.hear(e.clone())).collect();
    let stored = first.iter().map(|chunk| serde_json::from_str(&chunk.to_json()).expect("a stored chunk is a chunk"));
    let mut successor = Turn::replay(stored);
    successor.hear_again(said(before).cloned().collect(), true);
    let mut rest = Vec::new();
    for event in after.iter().flat_map(|record| &record.events) {
        let said = turn.hear(event.clone());
        assert_eq!(said, successor.hear(event.clone()));
        rest.extend(said);
    }
    let closed = turn.close(&outcome);
    assert_eq!(closed, successor.close(&outcome));
    let chunks: Vec<Chunk> = first.into_iter().chain(rest).chain(closed).collect();
    assert_eq!(rules::check(&chunks), Ok(()), "{chunks:#?}");

    let mut fold = Fold::default();
    chunks.iter().for_each(|chunk| fold.apply(chunk));
    assert_eq!(&fold, turn.fold());
    assert!(serde_json::from_str::<Vec<Value>>(&fold.parts_json()).is_ok());
}

fn said(records: &[Record]) -> impl Iterator<Item = &AgentEvent> {
    records.iter().flat_map(|record| &record.events)
}

/// The stdout of an ACP agent: a byte for the longest object, then the output. Each message that is found is one JSON
/// object on one line, and nothing is found twice.
pub fn acp_messages(data: &[u8]) {
    let [longest, output @ ..] = data else { return };
    let output = String::from_utf8_lossy(output);
    let (mut frames, mut found) = (Frames::new(16 * (1 + usize::from(*longest))), 0);
    for line in output.split('\n') {
        if !frames.unfinished(line.as_bytes()) {
            frames.line(line);
        }
        while let Some(heard) = frames.pop() {
            if let Heard::Message(message) = heard {
                assert!(!message.contains('\n'), "{message:?}");
                assert!(serde_json::from_str::<&RawValue>(&message).is_ok_and(|json| json.get().starts_with('{')));
                found += 1;
            }
        }
    }
    assert!(found <= output.matches('{').count());
}

/// The events of a run as stored, one per line, damaged in any way: a turn continues from those that can be read, and its
/// message is JSON.
pub fn stored(data: &[u8]) {
    let [end, lines @ ..] = data else { return };
    let lines = String::from_utf8_lossy(lines);
    let chunks: Vec<Chunk> = lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    for chunk in &chunks {
        assert_eq!(serde_json::from_str::<Chunk>(&chunk.to_json()).ok().as_ref(), Some(chunk));
    }
    let mut turn = Turn::replay(chunks.into_iter());
    turn.hear(AgentEvent::Text("and on".to_owned()));
    turn.close(&Outcome::of(Cause::ALL[usize::from(*end) % Cause::ALL.len()], None));
    for parts in [turn.fold().parts_json(), turn.fold().ended_parts_json()] {
        assert!(serde_json::from_str::<Vec<Value>>(&parts).is_ok(), "{parts}");
    }
}

/// Two changes to the options of a session, one per line: each is refused with a printable error, or results in options
/// that can be stored, and that the same change leaves unchanged.
pub fn options(data: &[u8]) {
    let mut options = SessionOptions::default();
    for line in data.split(|byte| *byte == b'\n') {
        let Ok(Value::Object(patch)) = serde_json::from_slice(line) else { continue };
        match options.patched(&patch) {
            Ok(patched) => {
                let stored = serde_json::to_string(&patched).expect("options are JSON");
                assert_eq!(serde_json::from_str::<SessionOptions>(&stored).ok().as_ref(), Some(&patched));
                assert!(!patched.extra.values().chain(&patched.mode).any(|text| text.contains(char::is_control)));
                assert_eq!(patched.patched(&patch).as_ref(), Ok(&patched));
                options = patched;
            }
            Err(error) => assert!(!error.to_string().contains(char::is_control), "{error}"),
        }
    }
}

/// The frames of a shim, from its socket or its spool, damaged in any way: the size of the reads does not matter, and a frame
/// that was not written like that is not accepted.
pub fn spool(data: &[u8]) {
    frames(data, MAX_FROM_SHIM_BYTES, |frame| {
        if let Some(said) = FromShim::of(frame) {
            assert_eq!(FromShim::of(&only_frame(&said.to_frame(), MAX_FROM_SHIM_BYTES)), Some(said));
        }
    });
}

/// What any process may send to a shim's socket.
pub fn host_socket(data: &[u8]) {
    frames(data, MAX_FROM_ENGINE_BYTES, |frame| {
        if let Some(said) = FromEngine::of(frame) {
            let again = FromEngine::of(&only_frame(&said.to_frame(), MAX_FROM_ENGINE_BYTES));
            assert_eq!(again.map(|again| again.to_frame()), Some(said.to_frame()));
        }
    });
}

/// Frames of any bytes: the first byte says how they are split, and the payloads are tried as every kind.
fn frames(data: &[u8], longest: usize, check: impl Fn(&Frame)) {
    let [cut, stream @ ..] = data else { return };
    let decoded = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut decoder, mut found) = (Decoder::new(longest), Vec::new());
        for piece in pieces {
            decoder.push(piece);
            while let Ok(Some(frame)) = decoder.next_frame() {
                found.push(frame);
            }
        }
        found
    };
    let whole = decoded(&mut std::iter::once(stream));
    assert_eq!(whole, decoded(&mut stream.chunks(1 + usize::from(*cut))));
    whole.iter().for_each(&check);
    // Check sums reject made-up frames: with valid ones, every kind is reached.
    for kind in *b"hsxwboeqnz" {
        let mut bytes = Vec::new();
        encode(kind, stream, &mut bytes);
        check(&only_frame(&bytes, longest));
    }
}

fn only_frame(bytes: &[u8], longest: usize) -> Frame {
    let mut decoder = Decoder::new(longest);
    decoder.push(bytes);
    decoder.next_frame().expect("it was just written").expect("it is whole")
}

/// The text of a config file: it has only valid values, or is refused with a printable error.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::load(text, Path::new("mainstay.toml"), Path::new("/srv")) {
        Ok(config) => {
            assert!(limits::LEASE.contains(&config.engine.lease) && limits::WORKERS.contains(&config.engine.workers));
            assert!(config.agents.values().any(|agent| agent.name.as_str() == "demo"));
            for (name, workspace) in &config.workspaces {
                assert!(*name == workspace.name && config.agents.contains_key(&workspace.agent));
                assert!(workspace.dir.is_absolute());
            }
            assert_eq!(Config::load(text, Path::new("other.toml"), Path::new("/srv")), Ok(config));
        }
        Err(error) => {
            let error = error.to_string();
            assert!(error.starts_with("mainstay.toml") && !error.contains(char::is_control), "{error:?}");
        }
    }
}

/// The body of a request to send a message.
pub fn new_run(data: &[u8]) {
    is_sendable_or_refused(read_new_run("s".parse().expect("an id"), data));
}

/// The body of a `useChat` request.
pub fn chat(data: &[u8]) {
    match read_chat(data) {
        Ok(ChatRequest::Send { send, .. }) => is_sendable_or_refused(Ok(*send)),
        Ok(ChatRequest::Answers(_, answers)) => assert!(!answers.is_empty()),
        Err(error) => is_sendable_or_refused(Err(error)),
    }
}

fn is_sendable_or_refused(read: Result<SendMessage, Error>) {
    match read {
        Ok(send) => {
            assert!(!send.message.prompt().trim().is_empty());
            let parts: Vec<Value> = serde_json::from_str(&send.message.parts_json()).expect("parts are JSON");
            assert_eq!(mainstay::message::prompt(&parts), send.message.prompt());
            assert!(!send.message.title().is_some_and(|title| title.contains('\n')));
            let metadata = send.message.metadata_json();
            assert!(metadata.is_none_or(|metadata| serde_json::from_str::<Value>(&metadata).is_ok()));
        }
        Err(error) => {
            assert!(matches!(error.status().as_u16(), 400 | 422), "{error:?}");
            assert!(!error.to_string().is_empty());
        }
    }
}

/// Where a reader wants to continue: the query up to the first line end, then the header.
pub fn cursor(data: &[u8]) {
    let (query, header) = data.split_at(data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len()));
    let Ok(uri) = Uri::try_from([b"/v1/runs/r/events?", query].concat()) else { return };
    let mut headers = HeaderMap::new();
    if let Some(Ok(header)) = header.get(1..).map(HeaderValue::from_bytes) {
        headers.insert("last-event-id", header);
    }
    match read_cursor(&uri, &headers) {
        Ok(seq) => assert!(seq >= 0),
        Err(error) => assert_eq!(error.status(), 400),
    }
}
