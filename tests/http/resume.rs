//! A client that was cut off gets the rest, and every end says its reason.

use reqwest::Method;
use serde_json::{Value, json};

use crate::chat::{chat, user};
use crate::scene::{Scene, Streaming, chunks, read, said, tell};

const UNKNOWN_ID: &str = "0192f0c1-2345-7000-8000-0123456789ab";

impl Scene {
    /// What a client gets when it resumes a chat.
    async fn resumed(&self, query: &str, cursor: Option<i64>) -> (u16, String) {
        let request = self.ask(Method::GET, &format!("/api/chat/s/stream{query}"));
        let request = cursor.into_iter().fold(request, |request, id| request.header("last-event-id", id.to_string()));
        let stream = Streaming::open(request).await;
        (stream.status, stream.rest().await.unwrap())
    }

    /// The metadata of the newest message.
    async fn stored_metadata(&self) -> Value {
        let messages = self.get("/v1/sessions/s/messages").await.body;
        messages["items"].as_array().unwrap().last().unwrap()["metadata"].clone()
    }
}

#[tokio::test]
async fn the_rest_comes_also_when_the_run_has_ended_meanwhile() {
    let scene = Scene::executing().await;
    let whole = scene.chat_to_end(&chat(&[user("m", "/slow 5")], json!({}))).await;
    let events = chunks(&whole);
    let (answer, run) =
        (events[0]["messageId"].as_str().unwrap(), events[0]["messageMetadata"]["run_id"].as_str().unwrap());
    let last = i64::try_from(events.len()).unwrap();
    for named in [format!("?run={run}"), format!("?message={answer}"), "?message=m".to_owned()] {
        assert_eq!(scene.resumed(&named, None).await, (200, whole.clone()), "{named}");
        let (status, rest) = scene.resumed(&named, Some(last - 1)).await;
        assert_eq!((status, tell(&rest)), (200, format!("retry {last}:finish [DONE]")), "{named}");
        assert_eq!(tell(&scene.resumed(&named, Some(last)).await.1), "retry [DONE]", "{named}");
    }
    let (status, rest) = scene.resumed("", Some(last - 1)).await;
    assert_eq!((status, tell(&rest)), (200, format!("retry {last}:finish [DONE]")));
    // The client has all of it, and names no run.
    assert_eq!(scene.resumed("", Some(last)).await.0, 204);
    assert_eq!(scene.resumed("", None).await.0, 204);
    let refused = async |query: &str| {
        let answer = scene.get(&format!("/api/chat/s/stream{query}")).await;
        (answer.status, answer.code().to_owned())
    };
    scene.post("/v1/sessions/other/runs", json!({"message": {"id": "o", "text": "x"}})).await;
    let other = scene.get("/v1/sessions/other/runs").await.each("id").remove(0);
    for unknown in [
        format!("?run={UNKNOWN_ID}"),
        format!("?run={other}"),
        format!("?message=msg-{other}"),
        format!("?message=msg-{UNKNOWN_ID}"),
        "?message=o".to_owned(),
    ] {
        assert_eq!(refused(&unknown).await, (404, "not_found".to_owned()), "{unknown}");
    }
    assert_eq!(refused("?run=x").await, (400, "invalid_id".to_owned()));
    assert_eq!(refused("?message=a%20b").await, (400, "invalid_id".to_owned()));
    let nowhere = scene.get(&format!("/api/chat/nowhere/stream?run={run}")).await;
    assert_eq!(nowhere.refused(), (404, "not_found"));
    let ahead = read(scene.ask(Method::GET, "/api/chat/s/stream").header("last-event-id", "9999")).await;
    assert_eq!(ahead.refused(), (400, "cursor_ahead"));
}

#[tokio::test]
async fn the_rest_of_one_answer_comes_before_the_next() {
    let scene = Scene::executing().await;
    let first = scene.chat_to_end(&chat(&[user("a", "one")], json!({}))).await;
    let last = i64::try_from(chunks(&first).len()).unwrap();
    let running = scene.send("s", "/slow 200").await;
    let (_, rest) = scene.resumed("", Some(last - 1)).await;
    assert_eq!(tell(&rest), format!("retry {last}:finish [DONE]"));
    // Behind the end of the first run, the stream of the next one follows.
    let mut next =
        Streaming::open(scene.ask(Method::GET, "/api/chat/s/stream").header("last-event-id", last.to_string())).await;
    next.until("text-delta", 1).await;
    assert_eq!(chunks(&next.text)[0]["messageMetadata"]["run_id"], running.as_str());
    scene.cancel(&running).await;
    next.rest().await.unwrap();
}

#[tokio::test]
async fn a_finished_answer_says_how_it_ended() {
    let scene = Scene::executing().await;
    let ended = |status: &str, cause: &str| json!({"status": status, "cause": cause});
    for (text, outcome, kinds) in [
        ("hello", ended("completed", "finished"), &["finish-step", "finish"][..]),
        ("/fail no", ended("failed", "agent_error"), &["finish-step", "message-metadata", "error", "finish"]),
        (
            "/exit 3",
            json!({"status": "failed", "cause": "exit_code", "error_class": "crashed"}),
            &["finish-step", "message-metadata", "error", "finish"],
        ),
    ] {
        let told = chunks(&scene.chat_to_end(&chat(&[user(&format!("m{}", text.len()), text)], json!({}))).await);
        let end = &told[told.len() - kinds.len()..];
        assert_eq!(end.iter().map(|chunk| chunk["type"].as_str().unwrap()).collect::<Vec<_>>(), kinds, "{text}");
        let mut metadata = end.last().unwrap()["messageMetadata"].clone();
        for chunk in end.iter().filter(|chunk| chunk["type"] == "message-metadata") {
            assert_eq!(chunk["messageMetadata"], metadata, "{text}");
        }
        // The metadata that the client got is what is stored.
        let mut expected = told[0]["messageMetadata"].clone();
        expected.as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
        assert_eq!(scene.stored_metadata().await, expected, "{text}");
        let advice = metadata.as_object_mut().unwrap().remove("advice");
        assert_eq!(advice.is_some(), outcome["error_class"].is_string(), "{text}");
        assert_eq!(metadata, outcome, "{text}");
    }
}

#[tokio::test]
async fn a_cancelled_answer_is_marked_after_a_reload() {
    let scene = Scene::executing().await;
    let mut stream =
        Streaming::open(scene.ask(Method::POST, "/api/chat").json(&chat(&[user("m", "/slow 500")], json!({})))).await;
    stream.until("text-delta", 3).await;
    scene.post_nothing("/api/chat/s/stop?wait=30").await;
    let told = chunks(&stream.rest().await.unwrap());
    let outcome = json!({"status": "cancelled", "cause": "cancelled"});
    assert_eq!(told.last().unwrap()["messageMetadata"], outcome);
    let stored = scene.stored_metadata().await;
    assert_eq!((&stored["status"], &stored["cause"]), (&outcome["status"], &outcome["cause"]));
    assert_eq!(stored["run_id"], told[0]["messageMetadata"]["run_id"]);
    // The same for a run that never began.
    let queued = Scene::new().await;
    let run = queued.send("s", "hello").await;
    queued.cancel(&run).await;
    let told = queued.stream(&format!("/v1/runs/{run}/events")).await.rest().await.unwrap();
    assert_eq!(chunks(&told).last().unwrap()["messageMetadata"], outcome);
    assert_eq!(said(&told), "");
}
