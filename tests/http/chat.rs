//! `/api/chat`, as `useChat` speaks it.

use mainstay::http::Timeouts;
use reqwest::Method;
use serde_json::{Value, json};

use crate::scene::{Answer, Scene, Streaming, read, tell};

pub fn user(id: &str, text: &str) -> Value {
    json!({"id": id, "role": "user", "parts": [{"type": "text", "text": text}]})
}

pub fn chat(messages: &[Value], more: Value) -> Value {
    let mut body = json!({"id": "s", "messages": messages});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

impl Scene {
    /// Sends, cancels the run, and describes its stream.
    async fn turn(&self, body: &Value) -> String {
        let mut stream = Streaming::open(self.ask(Method::POST, "/api/chat").json(body)).await;
        assert_eq!(stream.status, 200);
        stream.until("retry", 1).await;
        self.post_nothing("/api/chat/s/stop").await;
        tell(&stream.rest().await.unwrap())
    }

    async fn refused_chat(&self, body: &Value) -> Answer {
        read(self.ask(Method::POST, "/api/chat").json(body)).await
    }

    async fn said(&self) -> String {
        let messages = self.get("/v1/sessions/s/messages").await.body;
        let texts = messages["items"].as_array().unwrap().iter().map(|message| message["parts"][0]["text"].clone());
        texts.map(|text| text.as_str().unwrap_or("-").to_owned()).collect::<Vec<_>>().join(" ")
    }

    async fn count_runs(&self) -> usize {
        self.get("/v1/sessions/s/runs").await.each("id").len()
    }
}

#[tokio::test]
async fn a_message_is_sent_and_sent_again() {
    let scene = Scene::new().await;
    // The history in the request, and fields of the application, do not matter.
    let history = json!({"id": "?", "role": "assistant", "parts": "anything"});
    let body = chat(&[history, user("m1", "hello")], json!({"trigger": "submit-message", "model": "x"}));
    assert_eq!(scene.turn(&body).await, "retry 1:start 2:abort 3:finish [DONE]");
    assert_eq!(scene.turn(&body).await, "retry 1:start 2:abort 3:finish [DONE]");
    assert_eq!((scene.count_runs().await, scene.said().await.as_str()), (1, "hello"));
    let without_id = json!({"role": "user", "parts": [{"type": "text", "text": "two"}]});
    assert_eq!(scene.turn(&chat(&[without_id], json!({}))).await, "retry 4:start 5:abort 6:finish [DONE]");
    assert_eq!((scene.count_runs().await, scene.said().await.as_str()), (2, "hello two"));
}

#[tokio::test]
async fn a_message_is_edited_and_answered_anew() {
    let scene = Scene::new().await;
    scene.turn(&chat(&[user("m1", "one")], json!({"messageId": "m1"}))).await;
    scene.turn(&chat(&[user("m1", "one"), user("m2", "two")], json!({}))).await;
    assert_eq!(scene.said().await, "one two");
    let edit = json!({"trigger": "submit-message", "messageId": "m1"});
    assert_eq!(scene.turn(&chat(&[user("m1", "better")], edit)).await, "retry 7:start 8:abort 9:finish [DONE]");
    assert_eq!((scene.count_runs().await, scene.said().await.as_str()), (3, "better"));
    let anew = json!({"trigger": "regenerate-message", "messageId": "an-answer"});
    let told = scene.turn(&chat(&[user("m1", "better")], anew)).await;
    assert_eq!(told, "retry 10:start 11:abort 12:finish [DONE]");
    assert_eq!((scene.count_runs().await, scene.said().await.as_str()), (4, "better"));
}

#[tokio::test]
async fn history_of_a_chat_does_not_count_as_body() {
    let scene = Scene::with("[server]\nmax_body_bytes = 65536", Timeouts::default()).await;
    let file = |bytes: usize| {
        let url = format!("data:image/png;base64,{}", "A".repeat(bytes));
        json!({"type": "file", "mediaType": "image/png", "url": url})
    };
    let mut pictures = user("m0", "look");
    pictures["parts"].as_array_mut().unwrap().push(file(100_000));
    let answer = json!({"id": "a", "role": "assistant", "parts": [{"type": "text", "text": "x".repeat(100_000)}]});
    let body = chat(&[pictures.clone(), answer, user("m1", "hello")], json!({}));
    assert_eq!(scene.turn(&body).await, "retry 1:start 2:abort 3:finish [DONE]");
    // The same without an announced length.
    let pieces: Vec<_> = body.to_string().into_bytes().chunks(10_000).map(|piece| Ok(piece.to_vec())).collect();
    let pieces = reqwest::Body::wrap_stream(futures_util::stream::iter::<Vec<std::io::Result<Vec<u8>>>>(pieces));
    let request = scene.ask(Method::POST, "/api/chat").header("content-type", "application/json").body(pieces);
    let again = Streaming::open(request).await;
    assert_eq!(tell(&again.rest().await.unwrap()), "retry 1:start 2:abort 3:finish [DONE]");
    assert_eq!((scene.count_runs().await, scene.said().await.as_str()), (1, "hello"));

    let refused = scene.refused_chat(&chat(&[pictures], json!({}))).await;
    assert_eq!(refused.refused(), (413, "body_too_large"));
    let said = refused.body["error"]["message"].as_str().unwrap();
    assert!(said.starts_with("the last message may have at most 65536 bytes; send fewer or smaller files"), "{said}");
    let endless = futures_util::stream::repeat_with(|| std::io::Result::Ok(vec![b' '; 1 << 20]));
    let endless = reqwest::Body::wrap_stream(endless);
    let request = scene.ask(Method::POST, "/api/chat").header("content-type", "application/json").body(endless);
    let refused = read(request).await;
    assert_eq!(refused.refused(), (413, "body_too_large"));
    let said = refused.body["error"]["message"].as_str().unwrap();
    assert!(said.ends_with("send that alone, as {id, message}, with prepareSendMessagesRequest"), "{said}");
}

#[tokio::test]
async fn a_long_body_is_refused_as_a_short_one_is() {
    let scene = Scene::with("[server]\nmax_body_bytes = 65536", Timeouts::default()).await;
    let filler = json!({"id": "a", "role": "assistant", "parts": [{"type": "text", "text": "x".repeat(100_000)}]});
    let send =
        |body: String| read(scene.ask(Method::POST, "/api/chat").header("content-type", "application/json").body(body));
    let cases = [
        (json!({"id": "s", "messages": [filler]}), (422, "invalid_message")),
        (json!({"id": "s", "messages": [filler, {"parts": []}]}), (422, "invalid_message")),
        (json!({"id": "s", "messages": [filler, {"role": "user"}]}), (422, "invalid_message")),
        (json!({"messages": [filler]}), (422, "invalid_body")),
        (json!({"id": "s", "messages": filler}), (422, "invalid_body")),
        (json!({"id": "s", "other": filler}), (422, "invalid_body")),
        (json!({"id": "x".repeat(5000), "messages": [filler]}), (422, "invalid_body")),
        (json!([filler]), (422, "invalid_body")),
    ];
    for (body, refused) in cases {
        assert_eq!(send(body.to_string()).await.refused(), refused);
    }
    let whole = json!({"id": "s", "messages": [filler]}).to_string();
    for malformed in [&whole[..whole.len() - 1], &format!("{whole}}}"), &whole.replace("\"id\"", "id")] {
        assert_eq!(send(malformed.to_owned()).await.refused(), (400, "malformed_json"));
    }
}

#[tokio::test]
async fn a_message_may_come_without_history() {
    let scene = Scene::new().await;
    let alone = json!({"id": "s", "message": user("m1", "hello")});
    assert_eq!(scene.turn(&alone).await, "retry 1:start 2:abort 3:finish [DONE]");
    assert_eq!(scene.turn(&chat(&[user("m1", "hello")], json!({}))).await, "retry 1:start 2:abort 3:finish [DONE]");
    assert_eq!((scene.count_runs().await, scene.said().await.as_str()), (1, "hello"));
    for (message, code) in [(json!(null), "invalid_message"), (json!({"role": "user"}), "invalid_message")] {
        let refused = scene.refused_chat(&json!({"id": "s", "message": message})).await;
        assert_eq!(refused.refused(), (422, code));
    }
}

#[tokio::test]
async fn what_cannot_be_sent_is_said() {
    let scene = Scene::new().await;
    let answered = json!({"id": "a", "role": "assistant", "parts": []});
    let with = |more: Value| chat(&[user("m", "hello")], more);
    let cases = [
        (chat(&[], json!({})), (422, "invalid_message")),
        (chat(&[user("m", "hello"), answered], json!({})), (422, "invalid_message")),
        (chat(&[json!({"role": "system", "parts": []})], json!({})), (422, "invalid_message")),
        (chat(&[json!({"role": "user"})], json!({})), (422, "invalid_message")),
        (chat(&[user("m", " ")], json!({})), (422, "invalid_message")),
        (chat(&[user("a b", "hello")], json!({})), (400, "invalid_id")),
        (chat(&[user("", "hello")], json!({"trigger": "regenerate-message"})), (422, "invalid_message")),
        (with(json!({"trigger": "resume"})), (422, "invalid_body")),
        (with(json!({"id": "a/b"})), (400, "invalid_id")),
        (with(json!({"workspace": "nowhere"})), (422, "unknown_workspace")),
        (with(json!({"workspace": "no/where"})), (422, "unknown_workspace")),
        (with(json!({"agent": "nobody"})), (422, "unknown_agent")),
        (json!({"id": "s"}), (422, "invalid_body")),
    ];
    for (body, refused) in cases {
        assert_eq!(scene.refused_chat(&body).await.refused(), refused, "{body}");
    }
    assert_eq!(scene.get("/v1/sessions/s").await.status, 404);
}

#[tokio::test]
async fn a_page_that_is_opened_finds_what_is_under_way() {
    let scene = Scene::new().await;
    for session in ["s", "unknown"] {
        if session == "s" {
            scene.post("/v1/sessions", json!({"id": "s"})).await;
        }
        let nothing = scene.get(&format!("/api/chat/{session}/stream")).await;
        assert_eq!((nothing.status, nothing.body), (204, json!("")));
        let stopped = scene.post_nothing(&format!("/api/chat/{session}/stop")).await;
        assert_eq!((stopped.status, stopped.body), (200, json!({"run": null})));
    }
    let earlier = scene.send("s", "one").await;
    scene.cancel(&earlier).await;
    let run = scene.send("s", "two").await;
    let mut pages = Vec::new();
    for cursor in [None, Some("3")] {
        let request = scene.ask(Method::GET, "/api/chat/s/stream").header("accept", "*/*");
        let request = cursor.into_iter().fold(request, |request, id| request.header("last-event-id", id));
        let mut page = Streaming::open(request).await;
        page.until("retry", 1).await;
        pages.push(page);
    }
    // A reader that disconnects changes nothing.
    drop(scene.stream("/api/chat/s/stream").await);
    let stopped = scene.post_nothing("/api/chat/s/stop?wait=10").await;
    assert_eq!((stopped.status, stopped.body["run"]["id"].as_str()), (200, Some(run.as_str())));
    for page in pages {
        assert_eq!(tell(&page.rest().await.unwrap()), "retry 4:start 5:abort 6:finish [DONE]");
    }
    assert_eq!(scene.get("/api/chat/s/stream").await.status, 204);
    assert_eq!(scene.get("/api/chat/a%20b/stream").await.refused(), (400, "invalid_id"));
}
