//! Every stored input of the fuzzing goes through the same checks again: `fuzz/`, `docs/reliability.md`.

#[path = "../../fuzz/src/lib.rs"]
pub mod targets;

use std::path::Path;

fn run(target: &str, check: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut inputs = 0;
    for entry in std::fs::read_dir(&corpus).unwrap() {
        let path = entry.unwrap().path();
        // Shown when the check fails.
        println!("{}", path.display());
        check(&std::fs::read(&path).unwrap());
        inputs += 1;
    }
    assert!(inputs > 5, "{} holds next to nothing", corpus.display());
}

#[test]
fn what_agents_write_becomes_a_well_formed_stream() {
    run("agent_lines", targets::agent_lines);
}

#[test]
fn what_agents_of_any_driver_write_becomes_a_well_formed_stream() {
    run("drivers", targets::drivers);
}

#[test]
fn a_config_is_legal_or_a_clear_error() {
    run("config", targets::config);
}

#[test]
fn a_message_is_sendable_or_refused() {
    run("new_run", targets::new_run);
}

#[test]
fn a_chat_is_sendable_or_refused() {
    run("chat", targets::chat);
}

#[test]
fn a_cursor_is_a_seq_or_refused() {
    run("cursor", targets::cursor);
}

#[test]
fn a_spool_is_believed_as_far_as_it_is_whole() {
    run("spool", targets::spool);
}

#[test]
fn a_host_takes_whatever_is_said_at_its_door() {
    run("host_socket", targets::host_socket);
}

#[test]
fn acp_messages_are_objects_on_one_line() {
    run("acp_messages", targets::acp_messages);
}

#[test]
fn a_turn_goes_on_from_damaged_events() {
    run("stored", targets::stored);
}

#[test]
fn options_are_storable_or_refused() {
    run("options", targets::options);
}
