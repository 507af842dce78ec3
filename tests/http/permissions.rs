//! Questions of agents: listed, answered, and refused where an answer is invalid. Answered through a chat, too.

use reqwest::Method;
use serde_json::{Value, json};

use crate::scene::{Answer, Scene, Streaming, read, tell};

const NOBODY: &str = "0192f0c1-2345-7000-8000-0123456789ab";

impl Scene {
    /// Sends `/ask` as a chat does, and reads up to the question: the stream, and the question's id.
    async fn asked(&self, session: &str) -> (String, String) {
        let text = json!([{"type": "text", "text": "/ask"}]);
        let body = json!({"id": session, "messages": [{"id": "m", "role": "user", "parts": text}]});
        let stream = Streaming::open(self.ask(Method::POST, "/api/chat").json(&body)).await.rest().await.unwrap();
        let id = stream.split(r#""approvalId":""#).nth(1).unwrap_or_else(|| panic!("no question in {stream}"));
        let id = id.split('"').next().unwrap().to_owned();
        (stream, id)
    }

    async fn answer(&self, id: &str, body: Value) -> Answer {
        self.post(&format!("/v1/permissions/{id}"), body).await
    }

    async fn answer_chat(&self, session: &str, parts: Value) -> Answer {
        let message = json!({"id": "msg", "role": "assistant", "parts": parts});
        let body = json!({"id": session, "messages": [message], "trigger": "submit-message", "messageId": "msg"});
        read(self.ask(Method::POST, "/api/chat").json(&body)).await
    }
}

fn responded(id: &str, approved: bool) -> Value {
    let approval = json!({"id": id, "approved": approved, "reason": "why"});
    json!({"type": "dynamic-tool", "toolCallId": "t", "state": "approval-responded", "approval": approval})
}

#[tokio::test]
async fn what_is_asked_is_listed_and_answered_once() {
    let scene = Scene::executing().await;
    let mut ids = Vec::new();
    for session in ["a", "b", "c"] {
        ids.insert(0, scene.asked(session).await.1);
    }
    assert_eq!(scene.get("/v1/permissions").await.each("id"), ids, "the newest first");
    let page = scene.get("/v1/permissions?limit=2&state=pending").await;
    assert_eq!(page.each("id"), ids[..2]);
    let next = format!("/v1/permissions?state=pending&cursor={}", page.text("next_cursor"));
    assert_eq!(scene.get(&next).await.each("id"), ids[2..]);
    assert_eq!(scene.get("/v1/permissions?session=b").await.each("id"), ids[1..2]);

    let id = &ids[1];
    let shown = scene.get(&format!("/v1/permissions/{id}")).await;
    assert_eq!((shown.text("state"), shown.text("session_id"), shown.text("tool")), ("pending", "b", "write_file"));
    assert_eq!((shown.text("kind"), shown.text("tool_call")), ("edit", "call-1"));
    assert_eq!(shown.body["options"][0], json!({"id": "allow", "name": "Allow once", "kind": "allow_once"}));
    let run = shown.text("run_id");
    assert_eq!(scene.get(&format!("/v1/permissions?run={run}&session=b")).await.each("id"), ids[1..2]);
    assert!(scene.get(&format!("/v1/permissions?run={run}&session=a")).await.each("id").is_empty());

    let answered = scene.answer(id, json!({"option": "reject", "reason": "no"})).await;
    assert_eq!((answered.status, answered.text("state"), answered.text("option")), (200, "denied", "reject"));
    assert_eq!((answered.text("answered_by"), answered.text("reason")), ("admin", "no"));
    for same in [json!({"option": "reject"}), json!({"approved": false})] {
        assert_eq!(scene.answer(id, same).await.body, answered.body);
    }
    for other in [json!({"option": "allow"}), json!({"approved": true}), json!({"option": "no such"})] {
        assert_eq!(scene.answer(id, other).await.refused(), (409, "decided"));
    }
    assert_eq!(scene.get("/v1/permissions?state=denied").await.each("id"), ids[1..2]);
    assert_eq!(scene.get("/v1/permissions?state=pending").await.each("id").len(), 2);
    let answered = scene.answer(&ids[0], json!({"approved": true})).await;
    assert_eq!((answered.text("option"), answered.text("answered_by")), ("allow", "admin"));
}

#[tokio::test]
async fn an_answer_that_is_none_is_refused() {
    let scene = Scene::executing().await;
    let (_, id) = scene.asked("s").await;
    for (body, code) in [
        (json!({}), "invalid_answer"),
        (json!({"option": "allow", "approved": true}), "invalid_answer"),
        (json!({"option": "ALLOW"}), "not_offered"),
        (json!({"option": ""}), "not_offered"),
        (json!({"option": "'; DROP TABLE permissions; --"}), "not_offered"),
        (json!({"option": 1}), "invalid_body"),
        (json!({"approved": "yes"}), "invalid_body"),
        (json!({"approved": true, "state": "allowed"}), "invalid_body"),
        (json!([true]), "invalid_body"),
        (json!({"approved": true, "by": "the boss"}), "invalid_body"),
        (json!({"approved": true, "reason": "x".repeat(4001)}), "invalid_value"),
    ] {
        assert_eq!(scene.answer(&id, body.clone()).await.refused(), (422, code), "{body}");
    }
    let path = format!("/v1/permissions/{id}");
    assert_eq!(read(scene.ask(Method::POST, &path).body("{}")).await.refused(), (415, "unsupported_media_type"));
    assert_eq!(scene.answer(NOBODY, json!({"approved": true})).await.refused(), (404, "not_found"));
    assert_eq!(scene.get(&format!("/v1/permissions/{NOBODY}")).await.refused(), (404, "not_found"));
    assert_eq!(scene.get("/v1/permissions/1").await.refused(), (400, "invalid_id"));
    for (query, code) in [
        ("state=open", "invalid_query"),
        ("limit=0", "invalid_query"),
        ("run=x", "invalid_id"),
        ("session=a/b", "invalid_id"),
        ("cursor=x", "invalid_cursor"),
    ] {
        assert_eq!(scene.get(&format!("/v1/permissions?{query}")).await.refused(), (400, code), "{query}");
    }
    assert_eq!(scene.get(&path).await.text("state"), "pending", "nothing of this was an answer");
}

#[tokio::test]
async fn a_chat_pauses_at_the_question_and_its_answer_is_the_rest() {
    let scene = Scene::executing().await;
    let (stream, id) = scene.asked("s").await;
    let first = "retry 1:start 2:start-step 3:tool-input-available 4:tool-approval-request";
    assert_eq!(tell(&stream), format!("{first} [DONE]"));
    let resumed = scene.stream("/api/chat/s/stream").await.rest().await.unwrap();
    assert_eq!(resumed, stream, "who comes later is asked the same");
    let rest = scene.answer_chat("s", json!([{"type": "text", "text": "x"}, responded(&id, true)])).await;
    let rest = rest.body.as_str().unwrap();
    let told = tell(rest);
    assert!(told.starts_with("retry 5:tool-input-available 6:tool-output-available 7:text-start"), "{told}");
    assert!(told.ends_with("finish [DONE]"), "{told}");
    let permission = scene.get(&format!("/v1/permissions/{id}")).await;
    assert_eq!((permission.text("answered_by"), permission.text("reason")), ("admin", "why"));
    let again = scene.answer_chat("s", json!([responded(&id, true)])).await;
    assert_eq!((again.status, again.body.as_str()), (200, Some(rest)), "to say the same again gets the same");
    let otherwise = scene.answer_chat("s", json!([responded(&id, false)])).await;
    assert_eq!((otherwise.status, otherwise.body.as_str()), (200, Some(rest)), "to say otherwise too late, too");
}

#[tokio::test]
async fn a_chat_that_answers_nothing_of_its_own_is_refused() {
    let scene = Scene::executing().await;
    let (_, id) = scene.asked("s").await;
    let (_, other) = scene.asked("other").await;
    let part = |approval: Value| json!([{"type": "dynamic-tool", "state": "approval-responded", "approval": approval}]);
    for (parts, status, code) in [
        (json!([]), 422, "invalid_message"),
        (json!([{"type": "text", "text": "x"}, null, 1, "x", []]), 422, "invalid_message"),
        (
            json!([{"type": "dynamic-tool", "state": "approval-requested", "approval": {"id": id}}]),
            422,
            "invalid_message",
        ),
        (json!([{"type": "dynamic-tool", "state": "approval-responded"}]), 422, "invalid_message"),
        (part(json!({"id": id})), 422, "invalid_message"),
        (part(json!({"id": id, "approved": "true"})), 422, "invalid_message"),
        (part(json!({"id": "x", "approved": true})), 422, "invalid_message"),
        (part(json!({"id": id, "approved": true, "reason": {}})), 422, "invalid_message"),
        (part(json!({"id": id, "approved": true, "reason": "x".repeat(4001)})), 422, "invalid_value"),
        (json!([responded(NOBODY, true)]), 404, "not_found"),
        (json!([responded(&other, true)]), 404, "not_found"),
        (json!([responded(&id, true), responded(&other, true)]), 404, "not_found"),
    ] {
        let answer = scene.answer_chat("s", parts.clone()).await;
        assert_eq!(answer.refused(), (status, code), "{parts}");
    }
    assert_eq!(scene.get("/v1/permissions?state=pending").await.each("id").len(), 2, "nothing of this was an answer");
}
