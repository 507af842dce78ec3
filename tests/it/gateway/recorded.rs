//! What a real gateway said, and how it is parsed.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use mainstay::driver::openclaw_gateway;
use mainstay::process::decode;

/// The events of each recorded conversation, one per line. `UPDATE_CASES=1` rewrites the expected ones.
#[test]
fn recorded_conversations_are_understood() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/openclaw-gateway");
    let mut seen = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "ndjson") {
            continue;
        }
        seen += 1;
        let output = fs::read(&path).unwrap();
        let mut events = String::new();
        // The size of the reads does not change the result.
        let whole = decode([&output[..]], 1024 * 1024, openclaw_gateway::parser());
        let pieces = decode(output.chunks(7), 1024 * 1024, openclaw_gateway::parser());
        assert_eq!(whole, pieces, "{}", path.display());
        whole.iter().flat_map(|record| &record.events).for_each(|event| writeln!(events, "{event:?}").unwrap());
        let expected = path.with_extension("events");
        if std::env::var_os("UPDATE_CASES").is_some() {
            fs::write(&expected, &events).unwrap();
        }
        assert_eq!(events, fs::read_to_string(&expected).unwrap_or_default(), "{}", path.display());
    }
    assert_eq!(seen, 4);
}
