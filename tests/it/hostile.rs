//! Agents that write what no agent should: reading continues, memory stays bounded, the run ends as it should.

use mainstay::run::Status;

use crate::scene::{Scene, says};

#[tokio::test]
async fn random_bytes_are_counted_and_skipped() {
    let script = format!(
        "head -c 200000 /dev/urandom; echo; {}; printf '\\377\\376\\n{{\"event\":\\n[]\\nnull\\n'; {}",
        says("a"),
        says("b")
    );
    let scene = Scene::new(&[("noise", &script)], "").await;
    let run = scene.turn("noise", "s", "hi").await;
    assert_eq!(run.status, Status::Completed);
    assert!(run.malformed_lines >= 4, "{}", run.malformed_lines);
    let story = scene.story(run.id).await;
    assert!(story.contains("text-delta=a text-delta=b"), "{story}");
    let (_, sample) = scene.engine.run_diagnostics(run.id).await.unwrap();
    assert!(sample.unwrap().chars().count() <= 200);
}

#[tokio::test]
async fn json_that_is_not_understood_is_counted_and_quoted() {
    let line = r#"{"event":"agent","stream":"assistant","data":{"content":"hi"}}"#;
    let (other, mixed) = (format!("echo '{line}'; echo '{{}}'"), format!("echo '{line}'; {}", says("a")));
    let scene = Scene::new(&[("other", &other), ("mixed", &mixed)], "").await;
    let run = scene.turn("other", "s", "hi").await;
    assert_eq!((run.status, run.cause.as_deref(), run.malformed_lines), (Status::Failed, Some("no_output"), 2));
    assert!(run.error.as_ref().is_some_and(|error| error.ends_with(line)), "{run:?}");
    let run = scene.turn("mixed", "t", "hi").await;
    assert_eq!((run.status, run.malformed_lines), (Status::Completed, 1));
    let (_, sample) = scene.engine.run_diagnostics(run.id).await.unwrap();
    assert_eq!(sample.as_deref(), Some(line));
}

#[tokio::test]
async fn a_line_of_a_hundred_megabytes_is_skipped() {
    let script = format!("{}; head -c 100000000 /dev/zero | tr '\\0' x; echo; {}", says("before"), says("after"));
    let scene = Scene::new(&[("long", &script)], "").await;
    let run = scene.turn("long", "s", "hi").await;
    assert_eq!((run.status, run.malformed_lines), (Status::Completed, 1));
    assert!(scene.story(run.id).await.contains("text-delta=before text-delta=after"));
}

#[tokio::test]
async fn json_that_is_nested_too_deep_is_skipped() {
    let script = format!("head -c 100000 /dev/zero | tr '\\0' '['; echo; {}", says("ok"));
    let scene = Scene::new(&[("deep", &script)], "").await;
    let run = scene.turn("deep", "s", "hi").await;
    assert_eq!((run.status, run.malformed_lines), (Status::Completed, 1));
}

#[tokio::test]
async fn invalid_utf_8_becomes_a_replacement_character() {
    let script = r#"printf '{"event":"agent","stream":"assistant","data":{"delta":"a\377b"}}\n'"#;
    let scene = Scene::new(&[("latin", script)], "").await;
    let run = scene.turn("latin", "s", "hi").await;
    assert_eq!(run.status, Status::Completed);
    assert!(scene.story(run.id).await.contains("text-delta=a\u{fffd}b"));
}

#[tokio::test]
async fn an_agent_that_fills_stderr_is_bounded() {
    let script = format!("head -c 5000000 /dev/zero | tr '\\0' e >&2; {}; exit 1", says("x"));
    let scene = Scene::new(&[("loud", &script)], "").await;
    let run = scene.turn("loud", "s", "hi").await;
    assert_eq!(run.status, Status::Failed);
    let (stderr, _) = scene.engine.run_diagnostics(run.id).await.unwrap();
    assert!(stderr.unwrap().len() < 64 * 1024);
}

#[tokio::test]
async fn an_agent_that_says_too_much_is_ended() {
    let line = r#"{"event":"agent","stream":"assistant","data":{"delta":""#;
    let script = format!("while :; do printf '{line}'; head -c 8000000 /dev/zero | tr '\\0' x; echo '\"}}}}'; done");
    let scene = Scene::new(&[("endless", &script)], "").await;
    let run = scene.turn("endless", "s", "hi").await;
    assert_eq!((run.status, run.cause.as_deref()), (Status::Failed, Some("output_limit")));
}
