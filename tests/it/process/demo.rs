//! The demo agent.

use std::time::Duration;

use mainstay::agent_event::AgentEvent;
use mainstay::driver::demo::Demo;
use mainstay::run::{Cause, ExitReport};

use testkit::{until, within};

use super::{Turn, prompt};

#[tokio::test]
async fn the_demo_thinks_uses_a_tool_and_answers() {
    let mut turn = Turn::start(&Demo, prompt("how are you today")).await;
    assert_eq!(turn.end().await, ExitReport { code: Some(0), ..ExitReport::default() });
    let events = turn.events();
    let kind = |event: &AgentEvent| match event {
        AgentEvent::Reasoning(_) => "reasoning",
        AgentEvent::Text(_) => "text",
        AgentEvent::ToolStarted { .. } => "tool started",
        AgentEvent::ToolFinished { .. } => "tool finished",
        AgentEvent::Ended => "ended",
        other => panic!("{other:?}"),
    };
    let mut kinds: Vec<&str> = events.iter().map(kind).collect();
    kinds.dedup();
    assert_eq!(kinds, ["reasoning", "tool started", "tool finished", "text", "ended"]);
    assert!(turn.texts().len() > 5 && turn.texts().concat().contains("how are you today"));
    let counted = events.iter().find_map(|event| match event {
        AgentEvent::ToolFinished { result, .. } => result.clone().ok(),
        _ => None,
    });
    assert_eq!(counted.unwrap()["words"], 4);
}

#[tokio::test]
async fn the_demo_follows_directives() {
    let mut slow = Turn::start(&Demo, prompt("/slow 5")).await;
    let began = std::time::Instant::now();
    assert_eq!(slow.end().await.code, Some(0));
    assert_eq!(slow.texts().len(), 5);
    assert!(began.elapsed() >= Duration::from_millis(80));

    let mut tool = Turn::start(&Demo, prompt("/tool")).await;
    assert_eq!(tool.end().await.code, Some(0));
    assert!(tool.events().iter().any(|event| matches!(event, AgentEvent::ToolProgress { .. })));

    let mut fail = Turn::start(&Demo, prompt("/fail the disk is full")).await;
    assert_eq!(fail.end().await.code, Some(1));
    assert_eq!(fail.events(), [AgentEvent::Error("the disk is full".into())]);

    let mut exit = Turn::start(&Demo, prompt("/exit 3")).await;
    assert_eq!(exit.end().await.code, Some(3));
    assert!(!exit.texts().is_empty());

    let mut unknown = Turn::start(&Demo, prompt("/dance")).await;
    assert_eq!(unknown.end().await.code, Some(0));
    assert!(unknown.texts().concat().contains("/slow N"));
}

#[tokio::test]
async fn the_demo_stops_when_it_is_told_to() {
    let long = "word ".repeat(1000);
    for message in ["/hang", "/slow 100000", long.as_str()] {
        let mut cancelled = Turn::start(&Demo, prompt(message)).await;
        within(cancelled.reply.records.recv()).await.unwrap();
        if message == long {
            until(|| cancelled.reply.records.len() == cancelled.reply.records.max_capacity()).await;
        }
        cancelled.reply.control.stop(Cause::Cancelled);
        assert_eq!(cancelled.end_unread().await.signal, Some(15));

        let mut killed = Turn::start(&Demo, prompt(message)).await;
        killed.reply.control.kill(Cause::Cancelled);
        assert_eq!(killed.end_unread().await.signal, Some(9));

        let mut left = Turn::start(&Demo, prompt(message)).await;
        left.reply.records.close();
        assert_eq!(left.end_unread().await.signal, Some(9));
    }
}
