//! Recorded output of agents, and what readers get from it: `tests/cases/`. `UPDATE_CASES=1` rewrites the expected
//! results.

use std::fs;
use std::path::{Path, PathBuf};

use mainstay::chunk::Chunk;
use mainstay::driver::openclaw;
use mainstay::engine::decide::decide;
use mainstay::engine::turn::Turn;
use mainstay::process::decode;
use mainstay::run::{Cause, ExitReport, Outcome};
use serde_json::Value;

use crate::rules;

/// How a case ended, from its `.args.json` and `.stderr`.
struct End {
    asked: Option<Cause>,
    exit: ExitReport,
}

impl End {
    fn of(case: &Path) -> Self {
        let args: Value = serde_json::from_str(&fs::read_to_string(case.with_extension("args.json")).unwrap()).unwrap();
        let code = match args["args"].as_array().unwrap().as_slice() {
            [] => 0,
            [flag, code] if flag == "--exit-code" => code.as_str().unwrap().parse().unwrap(),
            other => panic!("not understood: {other:?}"),
        };
        let signal = args["signal"].as_i64().map(|signal| i32::try_from(signal).unwrap());
        let asked = args["asked"].as_str();
        let asked = asked.map(|word| Cause::ALL.into_iter().find(|cause| cause.as_str() == word).unwrap());
        let stderr = fs::read(case.with_extension("stderr")).ok();
        let stderr = stderr.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let code = signal.is_none().then_some(code);
        Self { asked, exit: ExitReport { code, signal, stderr, ..ExitReport::default() } }
    }
}

/// The chunks after `start`, the outcome, and the turn afterwards.
fn run(case: &Path) -> (Vec<Chunk>, Outcome, Turn) {
    let output = fs::read(case).unwrap();
    let mut turn = Turn::default();
    let mut chunks = Vec::new();
    for record in decode([&output[..]], 1024 * 1024, openclaw::parser()) {
        chunks.extend(record.events.into_iter().flat_map(|event| turn.hear(event)));
    }
    let end = End::of(case);
    let outcome = decide(end.asked, &turn, &end.exit, false);
    chunks.extend(turn.close(&outcome));
    (chunks, outcome, turn)
}

/// A JSON text with a line for each chunk and each part.
fn written(chunks: &[Chunk], outcome: &Outcome, turn: &Turn) -> String {
    let chunks: Vec<_> = chunks.iter().map(Chunk::to_json).collect();
    let parts: Vec<Value> = serde_json::from_str(&turn.fold().parts_json()).unwrap();
    let parts: Vec<_> = parts.iter().map(Value::to_string).collect();
    let error = outcome.error.as_ref().map_or(Value::Null, |error| error.as_str().into());
    let outcome =
        format!(r#"{{"status":"{}","cause":"{}","error":{error}}}"#, outcome.status().as_str(), outcome.cause.as_str());
    let list = |lines: &[String]| {
        if lines.is_empty() { "[]".to_owned() } else { format!("[\n{}\n]", lines.join(",\n")) }
    };
    format!("{{\"chunks\":{},\n\"outcome\":{outcome},\n\"parts\":{}}}\n", list(&chunks), list(&parts))
}

fn cases() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/openclaw");
    let mut cases: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|path| path.extension().is_some_and(|extension| extension == "ndjson"));
    cases.sort();
    cases
}

#[test]
fn readers_get_what_the_cases_say() {
    let update = std::env::var_os("UPDATE_CASES").is_some();
    let mut wrong = Vec::new();
    for case in cases() {
        let (chunks, outcome, turn) = run(&case);
        rules::check(&chunks).unwrap_or_else(|error| panic!("{}: {error}", case.display()));
        let written = written(&chunks, &outcome, &turn);
        let file = case.with_extension("expected.json");
        if update {
            fs::write(&file, &written).unwrap();
        } else if fs::read_to_string(&file).unwrap_or_default() != written {
            wrong.push(format!("{}\n{written}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "not as expected:\n{}", wrong.join("\n"));
}
