//! What is read from a process.

use std::time::Duration;

use mainstay::run::Cause;

use testkit::{until, within};

use super::{Turn, shims};

#[tokio::test]
async fn a_huge_line_is_counted_and_skipped_in_little_memory() {
    let most = || procfs::process::Process::myself().unwrap().status().unwrap().vmhwm.unwrap();
    let before = most();
    // Other tests allocate in the same process meanwhile, but nothing as long as this line.
    let mut turn = Turn::script("head -c 400000000 /dev/zero | tr '\\0' x; echo; echo after").await;
    let report = turn.end().await;
    assert_eq!((report.code, report.malformed_lines), (Some(0), 1));
    assert_eq!(report.malformed_sample, Some("x".repeat(200)));
    assert_eq!(turn.texts(), ["after"]);
    assert_eq!(turn.records.last().unwrap().offset, 400_000_007);
    let grown = most() - before;
    assert!(grown < 200 * 1024, "{grown} KiB");
}

#[tokio::test]
async fn lines_that_mean_nothing_never_end_anything() {
    let script = r"printf '\357\273\277first\r\n\n  \302\240\357\273\277\n?bad\nin\377valid\r?worse\n'";
    let mut turn = Turn::script(script).await;
    let report = turn.end().await;
    assert_eq!((report.malformed_lines, report.malformed_sample.as_deref()), (2, Some("?bad")));
    assert_eq!(turn.texts(), ["first", "in\u{fffd}valid"]);
    // The last line was ignored; its offset is reported nevertheless.
    assert_eq!(turn.records.last().unwrap().offset, 40);
}

#[tokio::test]
async fn lines_that_come_together_go_together() {
    let mut turn = Turn::script("seq 10000").await;
    assert_eq!(turn.end().await.code, Some(0));
    assert_eq!(turn.texts(), (1..=10_000).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(turn.records.iter().all(|record| record.events.len() <= 64));
    assert!(turn.records.len() < 2_000, "{} records", turn.records.len());
}

#[tokio::test]
async fn stderr_is_always_read_and_kept_at_both_ends() {
    let script = "echo beginning >&2; head -c 10000000 /dev/zero | tr '\\0' x >&2; echo ending >&2; echo done";
    let mut turn = Turn::script(script).await;
    let report = turn.end().await;
    let stderr = report.stderr.unwrap();
    assert!(stderr.starts_with("beginning\nxxx") && stderr.ends_with("xxxending\n"));
    assert!(stderr.contains(&format!("\n… {} bytes left out …\n", 10_000_017 - 16 * 1024)));
    assert!(stderr.len() < 17 * 1024);
    assert_eq!(turn.texts(), ["done"]);
}

#[tokio::test]
async fn output_before_the_end_is_read_by_the_slowest_reader() {
    let mut turn = Turn::script("seq 200000").await;
    let first = within(turn.reply.records.recv()).await.unwrap();
    turn.records.push(first);
    until(|| turn.reply.records.len() == turn.reply.records.max_capacity()).await;
    assert_eq!(turn.end().await.code, Some(0));
    assert_eq!(turn.texts().len(), 200_000);
}

#[tokio::test]
async fn unread_output_of_an_ended_agent_is_there_to_the_last_line() {
    let mut turn = Turn::script("seq 1 50000; while :; do sleep 0.02; done").await;
    let spool = shims().dir_of(turn.attempt).join("spool");
    until(|| std::fs::read(&spool).is_ok_and(|spool| spool.ends_with(b"\n50000\n"))).await;
    turn.reply.control.kill(Cause::IdleTimeout);
    // Longer than a shim may take to stop. This one stops at once; only its client does not read.
    tokio::time::sleep(Duration::from_secs(11)).await;
    let report = turn.end().await;
    assert_eq!((report.signal, report.stopped), (Some(9), Some(Cause::IdleTimeout)));
    let said: Vec<_> = (1..=50_000).map(|number| number.to_string()).collect();
    assert!(turn.texts() == said, "{} lines", turn.texts().len());
}
