//! Readers: every reader gets the same stream, whenever and wherever it attaches.

use std::time::Duration;

use mainstay::engine::{Engine, EngineError, Follower};
use mainstay::run::Status;

use crate::scene::{Scene, read_all, says, within};

fn counting(lines: usize) -> String {
    format!(
        "i=0; while [ $i -lt {lines} ]; do i=$((i+1)); \
         echo \"{{\\\"event\\\":\\\"agent\\\",\\\"stream\\\":\\\"assistant\\\",\\\"data\\\":{{\\\"delta\\\":\\\"$i \\\"}}}}\"; done"
    )
}

#[tokio::test]
async fn a_reader_gets_the_same_stream_whenever_it_attaches() {
    let scene = Scene::new(&[("count", &counting(500))], "").await;
    let run = scene.send("count", "s", "hi").await;
    let early = tokio::spawn(read_all(scene.engine.follow_run(run.id, 0).await.unwrap()));
    scene.said(run.id, "100").await;
    let midway = tokio::spawn(read_all(scene.engine.follow_run(run.id, 0).await.unwrap()));
    scene.settled(run.id).await;
    let late = read_all(scene.engine.follow_run(run.id, 0).await.unwrap()).await;
    let seqs: Vec<_> = late.iter().map(|(seq, _)| seq.unwrap()).collect();
    assert_eq!(seqs, (1..=i64::try_from(late.len()).unwrap()).collect::<Vec<_>>());
    assert_eq!(early.await.unwrap(), late);
    assert_eq!(midway.await.unwrap(), late);
}

#[tokio::test]
async fn a_cut_at_any_place_loses_and_repeats_nothing() {
    let scene = Scene::new(&[("count", &counting(20))], "").await;
    scene.turn("count", "s", "an earlier turn, so that seq does not begin at 1").await;
    let run = scene.turn("count", "s", "hi").await;
    let whole = read_all(scene.engine.follow_run(run.id, 0).await.unwrap()).await;
    let first = run.first_seq.unwrap();
    for (index, (seq, _)) in whole.iter().enumerate() {
        let rest = read_all(scene.engine.follow_run(run.id, seq.unwrap()).await.unwrap()).await;
        assert_eq!(rest, whole[index + 1..]);
    }
    assert_eq!(read_all(scene.engine.follow_run(run.id, first - 1).await.unwrap()).await, whole);
    let ahead = scene.engine.follow_run(run.id, run.last_seq.unwrap() + 1).await.err().unwrap();
    assert!(matches!(ahead, EngineError::CursorAhead { .. }));
}

#[tokio::test]
async fn a_session_is_followed_across_its_runs() {
    let scene = Scene::new(&[("count", &counting(3))], "").await;
    let first = scene.turn("count", "s", "1").await;
    let mut follower = scene.engine.follow_session(&"s".parse().unwrap(), 0).await.unwrap();
    let second = scene.send("count", "s", "2").await;
    let mut seen = Vec::new();
    while seen.iter().filter(|(_, event): &&(_, String)| event.contains("\"finish\"")).count() < 2 {
        let events = within(follower.next_events()).await.unwrap().unwrap();
        seen.extend(events.into_iter().map(|followed| (followed.run_id, followed.event)));
    }
    let mut runs: Vec<_> = seen.iter().map(|(run, _)| *run).collect();
    runs.dedup();
    assert_eq!(runs, [first.id, second.id]);
}

#[tokio::test]
async fn a_reader_that_lags_gets_everything_all_the_same() {
    let scene = Scene::new(&[("count", &counting(20_000))], "").await;
    let run = scene.send("count", "s", "hi").await;
    let mut slow = scene.engine.follow_run(run.id, 0).await.unwrap();
    let first = within(slow.next_events()).await.unwrap().unwrap();
    // It reads nothing more until the run is over: far more commits than a ring holds.
    assert_eq!(scene.settled(run.id).await.status, Status::Completed);
    let mut all: Vec<_> = first.into_iter().map(|followed| (followed.seq, followed.event)).collect();
    all.extend(read_all(slow).await);
    assert_eq!(all, read_all(scene.engine.follow_run(run.id, 0).await.unwrap()).await);
}

#[tokio::test]
async fn a_large_event_is_read_in_pieces() {
    // The result of a tool is one event, whatever its size.
    let head = r#"printf '%s' '{"event":"agent","stream":"tool","data":{"phase":"result","toolCallId":"t","name":"sh","result":"'"#;
    let script = format!(r#"{head}; head -c 3000000 /dev/zero | tr '\0' x; echo '"}}}}'; {}"#, says("after"));
    let scene = Scene::new(&[("large", &script)], "").await;
    let run = scene.send("large", "s", "hi").await;
    let live = scene.engine.follow_run(run.id, 0).await.unwrap();
    let read = async |mut follower: Follower| {
        let mut text = Vec::new();
        while let Some(frames) = within(follower.next_frames()).await.unwrap() {
            assert!(frames.len() < 600_000, "{}", frames.len());
            text.extend_from_slice(&frames);
        }
        text
    };
    let live = read(live).await;
    let events = read_all(scene.engine.follow_run(run.id, 0).await.unwrap()).await;
    assert!(events.iter().any(|(_, event)| event.len() > 2_000_000), "no event is large");
    let frames = events.iter().map(|(seq, event)| format!("id: {}\ndata: {event}\n\n", seq.unwrap()));
    let wanted = frames.collect::<String>().into_bytes();
    assert!(live == wanted);
    assert!(read(scene.engine.follow_run(run.id, 0).await.unwrap()).await == wanted);
    assert!(read(scene.engine.follow_chat(run.id, 0).await.unwrap()).await == wanted);
}

#[tokio::test]
async fn a_thousand_readers_on_one_run_get_the_same() {
    let scene = Scene::new(&[("count", &counting(300))], "").await;
    let run = scene.send("count", "s", "hi").await;
    let mut readers = Vec::new();
    for number in 0..1000 {
        let mut follower = scene.engine.follow_run(run.id, 0).await.unwrap();
        readers.push(tokio::spawn(async move {
            if number % 10 == 0 {
                // A reader may disconnect early.
                let _ = within(follower.next_frames()).await.unwrap();
                return None;
            }
            let mut text = Vec::new();
            while let Some(frames) = within(follower.next_frames()).await.unwrap() {
                text.extend_from_slice(&frames);
            }
            Some(text)
        }));
    }
    let mut texts = Vec::new();
    for reader in readers {
        texts.extend(reader.await.unwrap());
    }
    assert_eq!(texts.len(), 900);
    assert!(texts.iter().all(|text| *text == texts[0]));
    let text = String::from_utf8(texts.swap_remove(0)).unwrap();
    assert!(text.starts_with("id: 1\ndata: {\"type\":\"start\""), "{}", &text[..60]);
    assert!(text.ends_with("\"messageMetadata\":{\"status\":\"completed\",\"cause\":\"finished\"}}\n\n"));
}

#[tokio::test]
async fn a_reader_in_another_process_follows_live() {
    let script = format!("{}; while [ ! -e go ]; do sleep 0.01; done; {}", says("first"), says("second"));
    let scene = Scene::new(&[("gated", &script)], "").await;
    // A second engine shares nothing with the first but the file.
    let other = Engine::open(&scene.dir.path().join("m.db"), scene.engine.config().clone()).await.unwrap();
    let run = scene.send("gated", "s", "hi").await;
    let mut follower = other.follow_run(run.id, 0).await.unwrap();
    let mut seen = String::new();
    while !seen.contains("first") {
        let frames = within(follower.next_frames()).await.unwrap().unwrap();
        seen.push_str(std::str::from_utf8(&frames).unwrap());
    }
    assert!(!seen.contains("second"));
    std::fs::write(scene.dir.path().join("go"), "").unwrap();
    while let Some(frames) = within(follower.next_frames()).await.unwrap() {
        seen.push_str(std::str::from_utf8(&frames).unwrap());
    }
    let mut replay = scene.engine.follow_run(run.id, 0).await.unwrap();
    let mut whole = String::new();
    while let Some(frames) = within(replay.next_frames()).await.unwrap() {
        whole.push_str(std::str::from_utf8(&frames).unwrap());
    }
    assert_eq!(seen, whole);
    other.drain(Duration::ZERO).await;
    other.close().await;
}

#[tokio::test]
async fn a_cancel_from_another_process_reaches_the_agent() {
    let script = format!("{}; exec tail -f /dev/null", says("working"));
    let scene = Scene::new(&[("hang", &script)], "").await;
    let other = Engine::open(&scene.dir.path().join("m.db"), scene.engine.config().clone()).await.unwrap();
    let run = scene.send("hang", "s", "hi").await;
    scene.said(run.id, "working").await;
    other.cancel_run(run.id).await.unwrap();
    assert_eq!(scene.settled(run.id).await.status, Status::Cancelled);
}

#[tokio::test]
async fn a_dropped_call_loses_nothing() {
    let scene = Scene::new(&[("hang", &format!("{}; exec tail -f /dev/null", says("w")))], "").await;
    let first = scene.send("hang", "s", "1").await;
    let second = scene.send("hang", "s", "2").await;
    scene.said(first.id, "w").await;
    scene.engine.cancel_run(second.id).await.unwrap();
    for polls in 0..40 {
        // The end of a run that never began, requested by a caller that drops the call after this many polls.
        let mut follower = scene.engine.follow_run(second.id, 0).await.unwrap();
        let mut early = None;
        {
            let mut call = Box::pin(follower.next_events());
            for _ in 0..polls {
                if let std::task::Poll::Ready(ready) = futures_util::poll!(&mut call) {
                    early = Some(ready.unwrap());
                    break;
                }
                tokio::time::sleep(Duration::from_micros(100)).await;
            }
        }
        let got = match early {
            Some(got) => got,
            None => within(follower.next_events()).await.unwrap(),
        };
        assert_eq!(got.map(|events| events.len()), Some(3), "dropped after {polls} polls");
        assert!(within(follower.next_events()).await.unwrap().is_none());
    }
    scene.engine.cancel_run(first.id).await.unwrap();
    scene.settled(first.id).await;
}
