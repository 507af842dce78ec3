//! Cancel: in every state, also with agents that do not stop.

use mainstay::engine::{MessageCursor, SendMessage};
use mainstay::id::MessageId;
use mainstay::message::UserMessage;
use mainstay::run::{Status, WhenBusy};
use serde_json::json;

use crate::scene::{NOTHING, Scene, marked, read_all, says, tell, until};

#[tokio::test]
async fn a_queued_run_is_cancelled_at_once() {
    let scene = Scene::idle(&[("echo", &says("x"))], "").await;
    let run = scene.send("echo", "s", "hi").await;
    let (cancelled, was_settled) = scene.engine.cancel_run(run.id).await.unwrap();
    assert_eq!((cancelled.status, was_settled), (Status::Cancelled, false));
    assert_eq!(scene.story(run.id).await, "start abort finish=other");
    let (again, was_settled) = scene.engine.cancel_run(run.id).await.unwrap();
    assert_eq!((again.status, was_settled), (Status::Cancelled, true));
}

#[tokio::test]
async fn run_cancelled_before_its_first_word_leaves_a_marked_answer() {
    let scene = Scene::new(&[("mute", "echo > begun; exec tail -f /dev/null")], "").await;
    let run = scene.send("mute", "s", "hi").await;
    until(|| scene.dir.path().join("begun").exists()).await;
    scene.engine.cancel_run(run.id).await.unwrap();
    assert_eq!(scene.settled(run.id).await.status, Status::Cancelled);
    let session = "s".parse().unwrap();
    let page = scene.engine.list_messages(&session, MessageCursor::START, 500, false).await.unwrap();
    let answer = serde_json::to_value(&page.messages[1]).unwrap();
    assert_eq!((&answer["role"], &answer["parts"]), (&json!("assistant"), &json!([{"type": "step-start"}])));
    assert_eq!(answer["metadata"]["status"], "cancelled");
}

#[tokio::test]
async fn a_run_queued_behind_another_is_cancelled_at_once_and_its_reader_is_told() {
    let script = format!("{}; exec tail -f /dev/null", says("working"));
    let scene = Scene::new(&[("hang", &script)], "").await;
    let first = scene.send("hang", "s", "1").await;
    let second = scene.send("hang", "s", "2").await;
    scene.said(first.id, "working").await;
    let follower = scene.engine.follow_run(second.id, 0).await.unwrap();
    let reader = tokio::spawn(read_all(follower));
    scene.engine.cancel_run(second.id).await.unwrap();
    assert_eq!(scene.engine.run(second.id).await.unwrap().status, Status::Cancelled);
    let seen = reader.await.unwrap();
    assert_eq!(tell(seen.iter().map(|(_, event)| serde_json::from_str(event).unwrap())), "start abort finish=other");
    scene.engine.cancel_run(first.id).await.unwrap();
    scene.settled(first.id).await;
    let stored = read_all(scene.engine.follow_run(second.id, 0).await.unwrap()).await;
    let without_seq =
        |events: Vec<(Option<i64>, String)>| events.into_iter().map(|(_, event)| event).collect::<Vec<_>>();
    assert_eq!(without_seq(seen), without_seq(stored), "what the reader was told is what was stored");
    let log = scene.engine.session_events(&"s".parse().unwrap(), 0, 100).await.unwrap();
    let runs: Vec<_> = log.iter().map(|event| event.run_id).collect();
    let mut blocks = runs.clone();
    blocks.dedup();
    assert_eq!(blocks, [first.id, second.id], "the spans do not interleave");
}

#[tokio::test]
async fn message_cancelled_behind_a_running_run_is_shown() {
    let script = format!("{}; exec tail -f /dev/null", says("working"));
    let scene = Scene::new(&[("hang", &script)], "").await;
    let first = scene.send("hang", "s", "1").await;
    let second = scene.send("hang", "s", "2").await;
    scene.said(first.id, "working").await;
    let session = "s".parse().unwrap();
    let shown = async |partial: bool| {
        let pages = [
            scene.engine.list_messages(&session, MessageCursor::START, 500, partial).await.unwrap(),
            scene.engine.list_messages(&session, MessageCursor::START, 1, partial).await.unwrap(),
        ];
        let ids = pages.map(|page| page.messages.iter().map(|message| message.id.clone()).collect::<Vec<_>>());
        assert_eq!(ids[0][..1], ids[1][..]);
        let queued = scene.engine.list_messages(&session, MessageCursor::START, 500, partial).await.unwrap().queued;
        (ids[0].clone(), queued.len())
    };
    let (asked, waiting, answer) = (first.message_id, second.message_id, first.response_id);
    assert_eq!(shown(false).await, (vec![asked.clone()], 1));
    scene.engine.cancel_run(second.id).await.unwrap();
    // The run in progress comes last, so that the stream continues after it.
    assert_eq!(shown(false).await, (vec![waiting.clone(), asked.clone()], 0));
    assert_eq!(shown(true).await, (vec![asked.clone(), answer.clone(), waiting.clone()], 0));
    scene.engine.cancel_run(first.id).await.unwrap();
    scene.settled(first.id).await;
    assert_eq!(shown(false).await, (vec![asked, answer, waiting], 0));
}

#[tokio::test]
async fn a_starting_run_is_cancelled() {
    // Says nothing at all, so that only its claim is visible.
    let scene = Scene::new(&[("mute", "exec tail -f /dev/null")], "").await;
    let run = scene.send("mute", "s", "hi").await;
    scene.engine.cancel_run(run.id).await.unwrap();
    assert_eq!(scene.settled(run.id).await.status, Status::Cancelled);
    assert_eq!(scene.story(run.id).await, "start abort finish=other");
    assert_eq!(marked(run.id), NOTHING);
}

#[tokio::test]
async fn a_streaming_run_is_cancelled_and_keeps_what_it_said() {
    let script = format!("{}; exec tail -f /dev/null", says("half an"));
    let scene = Scene::new(&[("hang", &script)], "").await;
    let run = scene.send("hang", "s", "hi").await;
    scene.said(run.id, "half an").await;
    scene.engine.cancel_session(&"s".parse().unwrap()).await.unwrap();
    let run = scene.settled(run.id).await;
    assert_eq!((run.status, run.exit_signal), (Status::Cancelled, Some(15)));
    assert_eq!(
        scene.story(run.id).await,
        "start start-step text-start text-delta=half an text-end finish-step abort finish=other"
    );
    assert_eq!(scene.messages("s").await[1].1[1]["text"], "half an");
}

#[tokio::test]
async fn an_agent_that_does_not_want_to_stop_is_ended_with_all_that_it_started() {
    let script = format!(
        "trap '' TERM; setsid sh -c 'trap \"\" TERM; while :; do sleep 1000; done' & \
         sh -c 'trap \"\" TERM; sleep 1000; sleep 1000' & {}; while :; do sleep 1000; done",
        says("never")
    );
    let scene = Scene::new(&[("stubborn", &script)], "").await;
    let run = scene.send("stubborn", "s", "hi").await;
    scene.said(run.id, "never").await;
    assert!(marked(run.id).len() >= 3);
    scene.engine.cancel_run(run.id).await.unwrap();
    let run = scene.settled(run.id).await;
    assert_eq!((run.status, run.exit_signal), (Status::Cancelled, Some(9)));
    assert_eq!(marked(run.id), NOTHING, "something is left in the process table");
}

#[tokio::test]
async fn what_an_agent_leaves_behind_is_ended_with_it() {
    let script = format!("setsid sleep 1000 > /dev/null 2>&1 & {}", says("done"));
    let scene = Scene::new(&[("litters", &script)], "").await;
    let run = scene.turn("litters", "s", "hi").await;
    assert_eq!(run.status, Status::Completed);
    assert_eq!(marked(run.id), NOTHING);
}

#[tokio::test]
async fn interrupt_cancels_the_running_one_and_goes_next() {
    let script = format!("case $1 in hang) {}; exec tail -f /dev/null;; *) {};; esac", says("working"), says("ok"));
    let scene = Scene::new(&[("agent", &script)], "").await;
    let first = scene.send("agent", "s", "hang").await;
    let second = scene.send("agent", "s", "later").await;
    scene.said(first.id, "working").await;
    let mut send = SendMessage::new("s".parse().unwrap(), UserMessage::text(MessageId::generate(), "now").unwrap());
    send.options.when_busy = WhenBusy::Interrupt;
    let third = scene.engine.send(send).await.unwrap().run;
    let (first, second, third) =
        (scene.settled(first.id).await, scene.settled(second.id).await, scene.settled(third.id).await);
    assert_eq!((first.status, second.status, third.status), (Status::Cancelled, Status::Completed, Status::Completed));
    assert!(third.first_seq < second.first_seq, "it goes before what waited");
}

#[tokio::test]
async fn closing_with_cancel_frees_the_slot_when_the_run_has_ended() {
    let script = format!("{}; exec tail -f /dev/null", says("working"));
    let scene = Scene::new(&[("hang", &script)], "").await;
    let run = scene.send("hang", "s", "hi").await;
    let queued = scene.send("hang", "s", "next").await;
    scene.said(run.id, "working").await;
    let id = "s".parse().unwrap();
    assert!(scene.engine.close_session(&id, false).await.is_err(), "a busy session is not closed");
    scene.engine.close_session(&id, true).await.unwrap();
    assert_eq!(scene.settled(run.id).await.status, Status::Cancelled);
    assert_eq!(scene.settled(queued.id).await.status, Status::Cancelled);
    assert!(scene.engine.session(&id).await.unwrap().assignment.is_none());
    assert!(scene.engine.list_slots().await.unwrap().iter().all(|slot| slot.state == "free"));
    let again = scene.send("hang", "s", "back").await;
    scene.said(again.id, "working").await;
    assert_eq!(scene.engine.run(again.id).await.unwrap().slot.as_deref(), Some("chat-slot-hang-1"));
    scene.engine.cancel_run(again.id).await.unwrap();
    scene.settled(again.id).await;
}

#[tokio::test]
async fn whoever_cannot_wait_for_the_grace_of_an_agent_kills_it() {
    let script = serde_json::Value::from(format!("trap '' TERM; {}; while :; do sleep 1000; done", says("working")));
    let more = format!(
        "[agents.deaf]\ndriver = \"openclaw\"\nkill_grace = \"10m\"\n\
         command = [\"sh\", \"-c\", {script}, \"agent\", \"{{message}}\"]\n[workspaces.deaf]\nagent = \"deaf\"\n"
    );
    let scene = Scene::new(&[], &more).await;
    let run = scene.send("deaf", "s", "hi").await;
    scene.said(run.id, "working").await;
    scene.engine.cancel_run(run.id).await.unwrap();
    scene.engine.kill_now();
    assert_eq!(scene.settled(run.id).await.status, Status::Cancelled);
    assert_eq!(marked(run.id), NOTHING);
}
