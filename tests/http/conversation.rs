//! Messages that a chat resends, replaces, or sends while the session is busy: which one is answered, and in which order.

use reqwest::Method;
use serde_json::{Value, json};

use crate::chat::{chat, user};
use crate::scene::{Answer, Scene, Streaming, read, said};

impl Scene {
    /// Sends as a chat does, and reads the answer to its end.
    pub async fn chat_to_end(&self, body: &Value) -> String {
        let stream = Streaming::open(self.ask(Method::POST, "/api/chat").json(body)).await;
        assert_eq!(stream.status, 200);
        stream.rest().await.unwrap()
    }

    /// Sends as a chat does, and disconnects as soon as the message is accepted.
    pub async fn chat_begun(&self, body: &Value) {
        let mut stream = Streaming::open(self.ask(Method::POST, "/api/chat").json(body)).await;
        assert_eq!(stream.status, 200);
        stream.until("retry", 1).await;
    }

    async fn chat_refused(&self, body: &Value) -> Answer {
        read(self.ask(Method::POST, "/api/chat").json(body)).await
    }

    /// The texts of the messages in one of the lists of a conversation.
    pub async fn texts(&self, list: &str) -> Vec<String> {
        let messages = self.get("/v1/sessions/s/messages").await.body;
        let text = |message: &Value| match message["role"].as_str() {
            Some("user") => message["parts"][0]["text"].as_str().unwrap().to_owned(),
            _ => "(answer)".to_owned(),
        };
        messages[list].as_array().unwrap().iter().map(text).collect()
    }

    /// The statuses of the runs, oldest first.
    pub async fn statuses(&self) -> Vec<String> {
        let mut statuses = self.get("/v1/sessions/s/runs").await.each("status");
        statuses.reverse();
        statuses
    }
}

fn regenerate() -> Value {
    json!({"trigger": "regenerate-message"})
}

#[tokio::test]
async fn regenerate_with_another_text_is_an_edit() {
    let scene = Scene::executing().await;
    assert!(said(&scene.chat_to_end(&chat(&[user("m", "One")], json!({}))).await).contains("One"));
    let told = said(&scene.chat_to_end(&chat(&[user("m", "One, better")], regenerate())).await);
    assert!(told.contains("One, better"), "{told}");
    assert_eq!(scene.texts("items").await, ["One, better", "(answer)"]);
    // Fields that a client keeps beside the text do not make it another text.
    let mut same = user("m", "One, better");
    same["parts"][0]["state"] = "done".into();
    same["parts"][0]["providerMetadata"] = json!({"app": {"seen": true}});
    assert!(said(&scene.chat_to_end(&chat(&[same.clone()], regenerate())).await).contains("One, better"));
    let stored = scene.get("/v1/sessions/s/messages").await.body;
    assert_eq!(stored["items"][0]["parts"], json!([{"type": "text", "text": "One, better"}]));
    assert_eq!(scene.statuses().await, ["completed"; 3]);
    // Nor do they turn a repeated edit into a new one.
    same["parts"][0]["state"] = "streaming".into();
    scene.chat_to_end(&chat(&[same], json!({"messageId": "m"}))).await;
    assert_eq!(scene.statuses().await.len(), 3);
}

#[tokio::test]
async fn regenerate_of_a_message_that_never_arrived_is_a_send() {
    let scene = Scene::executing().await;
    for (id, text, sent) in [("a", "new session", 1), ("b", "new message", 2)] {
        let told = said(&scene.chat_to_end(&chat(&[user(id, text)], regenerate())).await);
        assert!(told.contains(text), "{told}");
        assert_eq!(scene.statuses().await.len(), sent);
    }
    assert_eq!(scene.texts("items").await, ["new session", "(answer)", "new message", "(answer)"]);
}

#[tokio::test]
async fn a_known_id_with_other_parts_is_refused() {
    let scene = Scene::new().await;
    let file = |data: &str| json!({"type": "file", "mediaType": "text/plain", "url": format!("data:text/plain;base64,{data}")});
    let message = |text: &str, data: &str| json!({"id": "m", "role": "user", "parts": [{"type": "text", "text": text}, file(data)]});
    scene.chat_begun(&chat(&[message("one", "AAAA")], json!({}))).await;
    for other in [message("two", "AAAA"), message("one", "AAAB"), user("m", "one")] {
        let refused = scene.chat_refused(&chat(std::slice::from_ref(&other), json!({}))).await;
        assert_eq!(refused.refused(), (409, "message_differs"));
        let body = json!({"message": {"id": "m", "parts": other["parts"]}});
        assert_eq!(scene.post("/v1/sessions/s/runs", body).await.refused(), (409, "message_differs"));
    }
    let mut same = message("one", "AAAA");
    same["parts"][0]["state"] = "done".into();
    let again = scene.post("/v1/sessions/s/runs", json!({"message": {"id": "m", "parts": same["parts"]}})).await;
    assert_eq!(again.status, 200);
    scene.chat_begun(&chat(&[same], json!({}))).await;
    assert_eq!(scene.statuses().await, ["queued"]);
}

#[tokio::test]
async fn an_edit_of_a_queued_message_keeps_what_waits_behind_it() {
    let scene = Scene::new().await;
    for (id, text) in [("a", "one"), ("b", "two"), ("c", "three")] {
        scene.chat_begun(&chat(&[user(id, text)], json!({}))).await;
    }
    scene.chat_begun(&chat(&[user("b", "two, better")], json!({"messageId": "b"}))).await;
    assert_eq!(scene.texts("queued").await, ["one", "two, better", "three"]);
    scene.chat_begun(&chat(&[user("a", "one, better")], regenerate())).await;
    assert_eq!(scene.texts("queued").await, ["one, better", "two, better", "three"]);
    assert_eq!(scene.statuses().await, ["queued"; 3], "each has the run that it had");
    // A message that goes next leaves its position in the queue; the others stay.
    let interrupt = json!({"messageId": "b", "when_busy": "interrupt"});
    scene.chat_begun(&chat(&[user("b", "two, now")], interrupt)).await;
    // It has a place in the log since its previous run was cancelled.
    assert_eq!(scene.texts("items").await, ["two, now"]);
    assert_eq!(scene.texts("queued").await, ["one, better", "three"]);
    let current = scene.get("/v1/sessions/s/runs").await.each("message_id").remove(0);
    assert_eq!(current, "b");
    assert_eq!(scene.statuses().await, ["queued", "cancelled", "queued", "queued"]);
}

#[tokio::test]
async fn an_edited_queued_message_is_answered_as_it_is_now() {
    let scene = Scene::executing().await;
    scene.chat_begun(&chat(&[user("a", "/slow 50")], json!({}))).await;
    for (id, text) in [("b", "two"), ("c", "three")] {
        scene.chat_begun(&chat(&[user(id, text)], json!({}))).await;
    }
    let told = said(&scene.chat_to_end(&chat(&[user("b", "two, better")], json!({"messageId": "b"}))).await);
    assert!(told.contains("two, better"), "{told}");
    let told = said(&scene.chat_to_end(&chat(&[user("c", "three")], json!({}))).await);
    assert!(told.contains("three"), "{told}");
    assert_eq!(scene.statuses().await, ["completed"; 3]);
}

#[tokio::test]
async fn when_busy_counts_in_a_chat() {
    let scene = Scene::new().await;
    let when = |word: &str| json!({"when_busy": word});
    scene.chat_begun(&chat(&[user("a", "one")], when("reject"))).await;
    let refused = scene.chat_refused(&chat(&[user("b", "two")], when("reject"))).await;
    assert_eq!(refused.refused(), (409, "busy"));
    assert_eq!(scene.chat_refused(&chat(&[user("b", "two")], when("now"))).await.refused(), (422, "invalid_body"));
    scene.chat_begun(&chat(&[user("b", "two")], when("enqueue"))).await;
    scene.chat_begun(&chat(&[user("c", "three")], when("interrupt"))).await;
    scene.chat_begun(&chat(&[user("d", "four")], json!({"when_busy": null}))).await;
    assert_eq!(scene.texts("queued").await, ["three", "one", "two", "four"]);
}

#[tokio::test]
async fn interrupt_goes_next_whatever_the_priorities() {
    let scene = Scene::new().await;
    let send = async |text: &str, priority: i64, when_busy: &str| {
        let body = json!({"message": {"text": text}, "priority": priority, "when_busy": when_busy});
        scene.post("/v1/sessions/s/runs", body).await
    };
    send("first", 1000, "enqueue").await;
    send("second", 1000, "enqueue").await;
    let now = send("now", -5, "interrupt").await;
    assert_eq!(now.body["priority"], -5);
    let current = scene.get("/v1/sessions/s").await.body["execution"].clone();
    assert_eq!(current, "queued");
    assert_eq!(scene.texts("queued").await, ["now", "first", "second"]);
    send("even sooner", 0, "interrupt").await;
    send("last", 999, "enqueue").await;
    assert_eq!(scene.texts("queued").await, ["even sooner", "now", "first", "second", "last"]);
}

#[tokio::test]
async fn queued_messages_stand_apart_from_the_conversation() {
    let scene = Scene::executing().await;
    scene.chat_begun(&chat(&[user("a", "/slow 100")], json!({}))).await;
    scene.chat_begun(&chat(&[user("b", "second")], json!({}))).await;
    let mut page = scene.stream("/api/chat/s/stream").await;
    page.until("text-delta", 1).await;
    assert_eq!(scene.texts("items").await, ["/slow 100"]);
    assert_eq!(scene.texts("queued").await, ["second"]);
    // The stream of the first answer ends with it; a client that resumes gets the next.
    assert!(said(&page.rest().await.unwrap()).contains("100"));
    let next =
        Streaming::open(scene.ask(Method::POST, "/api/chat").json(&chat(&[user("b", "second")], json!({})))).await;
    assert!(said(&next.rest().await.unwrap()).contains("second"));
    assert_eq!(scene.texts("items").await, ["/slow 100", "(answer)", "second", "(answer)"]);
    assert_eq!(scene.texts("queued").await, [""; 0]);
}
