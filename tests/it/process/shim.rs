//! Shims: an agent outlives its engine, and a shim that fails takes its agent along.

use std::time::Duration;

use mainstay::driver::Driver;
use mainstay::process::reap::{self, Liveness};
use mainstay::process::{Adoption, End, Prompt};
use mainstay::run::{Attempt, Cause};
use mainstay::worker::Shim;

use testkit::{until, within};

use super::{NEVER, Turn, adopt, at, attempt, per_turn, prompt, shims, spec};

#[tokio::test]
async fn adopted_agent_is_read_on_where_it_was_left() {
    let dir = tempfile::tempdir().unwrap();
    let script = "echo one; echo two; until [ -e go ]; do sleep 0.01; done; echo three; exit 4";
    let backend = per_turn(spec(&["sh", "-c", script]), NEVER);
    let mut left = Turn::start(&backend, at(dir.path().to_owned(), prompt(""))).await;
    left.hear(2).await;
    let offset = left.records.last().unwrap().offset;
    left.reply.records.close();
    assert_eq!(within(&mut left.reply.end).await.unwrap(), End::Left);

    let mut next = adopt(&backend, &left, offset).await;
    std::fs::write(dir.path().join("go"), "").unwrap();
    assert_eq!(next.end().await.code, Some(4));
    assert_eq!(next.texts(), ["three"]);

    // Its shim has exited; its output is still there, from any offset on.
    for (offset, texts) in [(0, vec!["one", "two", "three"]), (4, vec!["two", "three"]), (14, vec![])] {
        let mut late = adopt(&backend, &left, offset).await;
        assert_eq!(late.end().await.code, Some(4));
        assert_eq!(late.texts(), texts);
    }
}

#[tokio::test]
async fn only_the_newest_lease_is_served() {
    let backend = per_turn(spec(&["sh", "-c", "echo ready; exec sleep 1000"]), NEVER);
    let mut old = Turn::start(&backend, prompt("")).await;
    old.hear(1).await;
    let mut new = adopt(&backend, &old, 0).await;
    new.hear(1).await;
    assert_eq!(within(&mut old.reply.end).await.unwrap(), End::Left, "the older one is let go");
    let host = old.reply.host.clone().unwrap();
    for (number, secret) in [(old.attempt.number, host.secret.clone()), (9, "guessed".to_owned())] {
        let host = Shim { secret, ..host.clone() };
        let attempt = Attempt { number, ..old.attempt };
        let refused = backend.adopt(Adoption { attempt, host, offset: 0 }).await.unwrap();
        assert_eq!(within(refused.end).await.unwrap(), End::Left, "{number}");
    }
    new.reply.control.stop(Cause::Cancelled);
    let report = new.end().await;
    assert_eq!((report.signal, report.stopped), (Some(15), Some(Cause::Cancelled)));
}

#[tokio::test]
async fn cause_of_a_stop_is_known_to_the_next_engine() {
    let script =
        "trap 'until [ -e go ]; do sleep 0.01; done; echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done";
    let dir = tempfile::tempdir().unwrap();
    let backend = per_turn(spec(&["sh", "-c", script]), NEVER);
    let mut left = Turn::start(&backend, at(dir.path().to_owned(), prompt(""))).await;
    left.hear(1).await;
    left.reply.control.stop(Cause::IdleTimeout);
    let spool = shims().dir_of(left.attempt).join("spool");
    until(|| std::fs::read(&spool).is_ok_and(|spool| spool.windows(12).any(|w| w == b"idle_timeout"))).await;
    left.reply.control.leave();
    assert_eq!(within(&mut left.reply.end).await.unwrap(), End::Left);
    let mut next = adopt(&backend, &left, 6).await;
    next.reply.control.stop(Cause::Cancelled);
    std::fs::write(dir.path().join("go"), "").unwrap();
    let report = next.end().await;
    assert_eq!((report.code, report.stopped), (Some(0), Some(Cause::IdleTimeout)));
    assert_eq!(next.texts(), ["bye"]);
}

#[tokio::test]
async fn lost_shim_ends_its_agent_and_keeps_what_it_said() {
    for adopted in [false, true] {
        let script =
            "trap '' TERM HUP; echo oops >&2; setsid sleep 1000 & echo $!; echo ready; while :; do sleep 0.02; done";
        let backend = per_turn(spec(&["sh", "-c", script]), NEVER);
        let mut turn = Turn::start(&backend, prompt("")).await;
        let tool = turn.hear_of_process().await;
        turn.hear(2).await;
        let said = turn.texts();
        let host = turn.reply.host.clone().unwrap().process;
        if adopted {
            turn.reply.control.leave();
            assert_eq!(within(&mut turn.reply.end).await.unwrap(), End::Left);
        }
        rustix::process::kill_process(rustix::process::Pid::from_raw(host.pid).unwrap(), rustix::process::Signal::KILL)
            .unwrap();
        if adopted {
            until(|| reap::is_alive(&host) == Liveness::Dead).await;
            turn = adopt(&backend, &turn, 0).await;
            assert_eq!(turn.hear(2).await, said);
        }
        let end = turn.how_it_ended().await;
        let End::ShimLost(report) = end else { panic!("{end:?}") };
        assert_eq!((report.code, report.stderr.as_deref()), (None, Some("oops\n")));
        assert_eq!(reap::is_alive(&tool), Liveness::Dead);
    }
}

#[tokio::test]
async fn shim_that_does_not_obey_is_ended_with_its_agent() {
    let mut turn = Turn::script("setsid sleep 1000 & echo $!; echo ready; wait").await;
    let tool = turn.hear_of_process().await;
    turn.hear(2).await;
    let host = turn.reply.host.clone().unwrap().process;
    rustix::process::kill_process(rustix::process::Pid::from_raw(host.pid).unwrap(), rustix::process::Signal::STOP)
        .unwrap();
    turn.reply.control.kill(Cause::Cancelled);
    let end = turn.how_it_ended().await;
    assert!(matches!(end, End::ShimLost(_)), "{end:?}");
    assert_eq!(reap::is_alive(&tool), Liveness::Dead);
}

#[tokio::test]
async fn shim_that_reads_no_commands_is_ended_too() {
    let message = "x".repeat(4_000_000);
    let prompt = prompt(&message);
    let attempt = prompt.place.attempt;
    let backend = per_turn(spec(&["cat"]), NEVER);
    let mut turn = Turn { attempt, reply: backend.prompt(prompt).await.unwrap(), records: Vec::new(), known: 0 };
    let host = turn.reply.host.clone().unwrap().process;
    rustix::process::kill_process(rustix::process::Pid::from_raw(host.pid).unwrap(), rustix::process::Signal::STOP)
        .unwrap();
    turn.reply.control.begin();
    // The launch was sent, and does not arrive.
    let _ = tokio::time::timeout(Duration::from_millis(100), turn.reply.records.recv()).await;
    turn.reply.control.kill(Cause::Cancelled);
    let end = turn.how_it_ended().await;
    assert!(matches!(end, End::ShimLost(_)), "{end:?}");
}

#[tokio::test]
async fn turn_timeout_ends_a_turn_also_without_an_engine() {
    let backend = per_turn(spec(&["sh", "-c", "echo ready; exec sleep 1000"]), NEVER);
    let mut left = Turn::start(&backend, Prompt { limit: Duration::ZERO, ..prompt("") }).await;
    left.hear(1).await;
    left.reply.control.leave();
    let host = left.reply.host.clone().unwrap().process;
    until(|| reap::is_alive(&host) == Liveness::Dead).await;
    let mut next = adopt(&backend, &left, 6).await;
    let report = next.end().await;
    assert_eq!((report.signal, report.stopped), (Some(15), Some(Cause::TurnTimeout)));
}

#[tokio::test]
async fn what_a_dead_engine_left_is_found_and_ended_by_another() {
    let lost = attempt();
    let next = Attempt { number: lost.number + 1, ..lost };
    let mut left = std::process::Command::new("sh")
        .args(["-c", "trap '' TERM; setsid sleep 1000 & while :; do sleep 0.02; done"])
        .env(reap::MARKER, lost.run.to_string())
        .env(reap::ATTEMPT_MARKER, lost.number.to_string())
        .spawn()
        .unwrap();
    let identity = reap::identity_of(i32::try_from(left.id()).unwrap()).unwrap();
    until(|| reap::survivors(lost.into(), None).len() >= 2).await;
    assert_eq!(reap::survivors(next.into(), None), [], "the next try does not own them");
    assert_eq!(reap::survivors(reap::Mark::before(lost), None), [], "nor did one before");
    let ended = within(reap::end(reap::Mark::before(next), None, Duration::from_millis(50))).await;
    assert!(ended.ended >= 2 && ended.is_certain, "{ended:?}");
    assert_eq!(reap::is_alive(&identity), Liveness::Dead, "a zombie is gone");
    left.wait().unwrap();
    assert_eq!(within(reap::end(lost.into(), None, NEVER)).await.ended, 0);
}
