//! How a process is ended, with everything that it started.

use std::time::Duration;

use mainstay::process::reap::{self, Liveness};
use mainstay::run::Cause;
use mainstay::worker::ProcessIdentity;

use testkit::until;

use super::{NEVER, Turn, at, attempt, per_turn, prompt, spec};

#[tokio::test]
async fn a_cancelled_agent_may_end_in_its_own_way() {
    let mut turn =
        Turn::script_with_grace("trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.02; done", NEVER).await;
    turn.hear(1).await;
    turn.reply.control.stop(Cause::Cancelled);
    assert_eq!(turn.end().await.code, Some(7));
    assert_eq!(turn.texts(), ["ready", "bye"]);
}

#[tokio::test]
async fn an_agent_that_ignores_sigterm_is_killed_with_its_tools() {
    let mut turn =
        Turn::script("trap '' TERM; setsid sleep 1000 & echo $!; echo ready; while :; do sleep 0.02; done").await;
    let tool = turn.hear_of_process().await;
    turn.hear(2).await;
    assert!(reap::survivors(turn.attempt.into(), None).contains(&tool));
    turn.reply.control.stop(Cause::Cancelled);
    assert_eq!(turn.end().await.signal, Some(9));
    assert_eq!(reap::is_alive(&tool), Liveness::Dead);
}

#[tokio::test]
async fn tool_outside_marker_and_group_ends_with_a_cancelled_agent() {
    let script = "setsid env -i sleep 1000 & echo $!
        until [ \"$(tr '\\0' ' ' </proc/$!/cmdline)\" = 'sleep 1000 ' ]; do :; done; echo ready; wait";
    let mut turn = Turn::script_with_grace(script, NEVER).await;
    let tool = turn.hear_of_process().await;
    turn.hear(2).await;
    turn.reply.control.stop(Cause::Cancelled);
    assert_eq!(turn.end().await.signal, Some(15));
    assert_eq!(reap::is_alive(&tool), Liveness::Dead);
}

#[tokio::test]
async fn a_killed_agent_gets_no_grace() {
    for when in ["before it was cancelled", "after it was cancelled"] {
        let mut turn = Turn::script_with_grace("trap '' TERM; echo ready; while :; do sleep 0.02; done", NEVER).await;
        turn.hear(1).await;
        if when == "after it was cancelled" {
            turn.reply.control.stop(Cause::Cancelled);
        }
        turn.reply.control.kill(Cause::Cancelled);
        assert_eq!(turn.end().await.signal, Some(9), "{when}");
    }
}

#[tokio::test]
async fn leftovers_of_a_finished_agent_get_sigterm_before_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let script = "
        (trap 'echo cleaned up >result; exit' TERM; : >ready; while :; do sleep 0.02; done) >/dev/null 2>&1 &
        (trap '' TERM; : >deaf; while :; do sleep 0.02; done) >/dev/null 2>&1 &
        until [ -e ready ] && [ -e deaf ]; do :; done
        echo done";
    let backend = per_turn(spec(&["sh", "-c", script]), Duration::from_millis(500));
    let mut turn = Turn::start(&backend, at(dir.path().to_owned(), prompt(""))).await;
    assert_eq!(turn.end().await.code, Some(0));
    assert_eq!(std::fs::read_to_string(dir.path().join("result")).unwrap(), "cleaned up\n");
}

/// A script that waits for the file `go`, so that its tool can be inspected.
async fn leaves_a_tool(script: &str) -> ProcessIdentity {
    let dir = tempfile::tempdir().unwrap();
    let script = format!("{script}; until [ -e go ]; do sleep 0.01; done; echo last");
    let backend = per_turn(spec(&["sh", "-c", &script]), Duration::from_millis(200));
    let mut turn = Turn::start(&backend, at(dir.path().to_owned(), prompt(""))).await;
    let tool = turn.hear_of_process().await;
    std::fs::write(dir.path().join("go"), "").unwrap();
    assert_eq!(turn.end().await.code, Some(0));
    assert_eq!(turn.texts().last().unwrap(), "last");
    tool
}

#[tokio::test]
async fn a_grandchild_that_holds_stdout_does_not_hold_the_end() {
    let tool = leaves_a_tool("setsid sleep 1000 & echo $!").await;
    assert_eq!(reap::is_alive(&tool), Liveness::Dead);
}

#[tokio::test]
async fn a_tool_that_starts_in_the_last_moment_is_found() {
    let mut runs = Vec::new();
    for _ in 0..20 {
        // It may be in the middle of an exec, without an environment, when its parent has already exited.
        let mut turn = Turn::script("setsid sleep 1000 & exit 0").await;
        assert_eq!(turn.end().await.code, Some(0));
        runs.push(turn.attempt);
    }
    for run in runs {
        assert_eq!(reap::survivors(run.into(), None), []);
    }
}

#[tokio::test]
async fn a_process_that_hides_in_every_way_is_ended_too() {
    let script = "setsid env -i sleep 1000 & echo $!
        until [ \"$(tr '\\0' ' ' </proc/$!/cmdline)\" = 'sleep 1000 ' ]; do :; done";
    let hidden = leaves_a_tool(script).await;
    // No group, marker or parent led to it: the shim became its parent when its own ended.
    assert_eq!(reap::is_alive(&hidden), Liveness::Dead);
}

#[tokio::test]
async fn cancelled_agent_ends_while_its_output_is_unread() {
    let mut turn = Turn::script("exec yes $(head -c 10000 /dev/zero | tr '\\0' y)").await;
    until(|| turn.reply.records.len() == turn.reply.records.max_capacity()).await;
    turn.reply.control.stop(Cause::Cancelled);
    let host = turn.reply.host.clone().unwrap().process;
    until(|| reap::is_alive(&host) == Liveness::Dead).await;
    // Its earlier output can still be read.
    assert_eq!(turn.end().await.signal, Some(15));
}

#[tokio::test]
async fn a_group_whose_pid_was_given_to_another_process_is_left_alone() {
    use std::os::unix::process::CommandExt;
    let mut other = std::process::Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
    let now = reap::identity_of(i32::try_from(other.id()).unwrap()).unwrap();
    let before = ProcessIdentity { started_at_ticks: now.started_at_ticks - 1, ..now.clone() };
    let elsewhere = ProcessIdentity { host: "another".to_owned(), ..now.clone() };
    let mark = reap::Mark::from(attempt());
    for stranger in [before, elsewhere] {
        assert_eq!(reap::survivors(mark, Some(&stranger)), []);
        assert_ne!(reap::is_alive(&stranger), Liveness::Alive);
    }
    assert_eq!(reap::survivors(mark, Some(&now)), [now]);
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn process_knows_itself_and_not_those_of_other_machines() {
    let own = reap::own_identity().unwrap();
    assert_eq!(reap::identity_of(own.pid), Some(own.clone()));
    assert_eq!(reap::is_alive(&own), Liveness::Alive);
    let former = ProcessIdentity { started_at_ticks: own.started_at_ticks - 1, ..own.clone() };
    assert_eq!(reap::is_alive(&former), Liveness::Dead);
    assert_eq!(reap::is_alive(&ProcessIdentity { host: "another boot".to_owned(), ..own }), Liveness::Unknown);
}
