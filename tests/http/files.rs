//! Files in messages, through every entry: what an agent accepts is kept unchanged, all else is refused with its position.

use mainstay::http::Timeouts;
use serde_json::{Value, json};

use crate::scene::Scene;

/// Agents that accept nothing, images, and everything.
const AGENTS: &str = "
[agents.lines]
driver = \"openclaw\"
command = [\"true\"]
[agents.gateway]
driver = \"openclaw-gateway\"
[agents.goose]
driver = \"acp\"
command = [\"true\"]
";

fn file(media_type: &str, url: &str) -> Value {
    json!({"type": "file", "mediaType": media_type, "filename": "a.txt", "url": url})
}

fn text_file() -> Value {
    file("text/plain", "data:text/plain;base64,aGk=")
}

impl Scene {
    async fn sent(&self, session: &str, agent: &str, parts: Value) -> (u16, String, String) {
        self.post("/v1/sessions", json!({"id": session, "agent": agent})).await;
        let path = format!("/v1/sessions/{session}/runs");
        let answer = self.post(&path, json!({"message": {"parts": parts}})).await;
        let error = &answer.body["error"];
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        (answer.status, text("code"), text("message"))
    }
}

#[tokio::test]
async fn a_file_is_kept_as_it_came_and_names_the_session() {
    let scene = Scene::new().await;
    let answer = scene.sent("s", "demo", json!([text_file()])).await;
    assert_eq!(answer, (202, String::new(), String::new()));
    assert_eq!(scene.get("/v1/sessions/s").await.text("title"), "a.txt");
    let messages = scene.get("/v1/sessions/s/messages").await.body;
    assert_eq!(messages["queued"][0]["parts"], json!([text_file()]));
}

#[tokio::test]
async fn an_agent_gets_only_files_that_it_takes() {
    let scene = Scene::with(AGENTS, Timeouts::default()).await;
    let png = || file("image/png", "data:image/png;base64,AAAA");
    let link = || file("image/png", "https://example.com/a.png");
    let text = || json!({"type": "text", "text": "look"});
    for (agent, part, refused) in [
        ("demo", text_file(), None),
        ("demo", png(), Some("image/png")),
        ("lines", png(), Some("it takes text only")),
        ("codex", png(), Some("it takes text only")),
        ("claude", png(), None),
        ("claude", text_file(), None),
        ("claude", link(), None),
        ("claude", file("application/zip", "data:;base64,AAAA"), Some("application/pdf")),
        ("opencode", file("application/pdf", "data:;base64,AAAA"), None),
        ("opencode", file("audio/wav", "data:;base64,AAAA"), Some("audio/wav")),
        ("goose", file("application/zip", "data:;base64,AAAA"), None),
        ("goose", file("video/mp4", "data:;base64,AAAA"), Some("video/mp4")),
        ("gateway", png(), None),
        ("gateway", text_file(), Some("image/*")),
        ("gateway", link(), Some("in a data: URL")),
    ] {
        let (status, code, message) = scene.sent(agent, agent, json!([text(), part])).await;
        match refused {
            None => assert_eq!(status, 202, "{agent}: {message}"),
            Some(why) => {
                assert_eq!((status, code.as_str()), (422, "file_not_taken"), "{agent} {part}");
                assert!(message.contains("part 1 ") && message.contains(why) && message.contains(agent), "{message}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_text_is_text_whatever_a_browser_calls_it() {
    let scene = Scene::new().await;
    for (name, label, kind) in [
        ("a.ts", "video/mp2t", "video/mp2t"),
        ("a.json", "application/json", "application/json"),
        ("a.sh", "application/x-sh", "application/x-sh"),
        ("a.yaml", "application/x-yaml", "application/x-yaml"),
        ("Dockerfile", "", "application/octet-stream"),
    ] {
        let part = json!({"type": "file", "mediaType": label, "filename": name,
            "url": format!("data:{kind};base64,bGV0IHg6IG51bWJlcjs=")});
        let answer = scene.sent("s", "demo", json!([part])).await;
        assert_eq!(answer, (202, String::new(), String::new()), "{name}");
        let messages = scene.get("/v1/sessions/s/messages").await.body;
        let newest = messages["queued"].as_array().unwrap().last().unwrap();
        assert_eq!(newest["parts"], json!([part]), "it is kept as it came");
    }
    let binary = json!({"type": "file", "mediaType": "", "filename": "a", "url": "data:;base64,AAAA"});
    let (status, code, message) = scene.sent("s", "demo", json!([binary])).await;
    assert_eq!((status, code.as_str()), (422, "file_not_taken"), "{message}");
}

#[tokio::test]
async fn a_session_decides_by_its_own_agent_and_not_by_that_of_its_workspace() {
    let scene = Scene::with(AGENTS, Timeouts::default()).await;
    scene.post("/v1/sessions", json!({"id": "s", "agent": "lines"})).await;
    let chat = json!({"id": "s", "messages": [{"id": "m", "role": "user", "parts": [text_file()]}]});
    assert_eq!(scene.post("/api/chat", chat.clone()).await.refused(), (422, "file_not_taken"));
    assert_eq!(scene.get("/v1/sessions/s/runs").await.each("id").len(), 0, "nothing was stored");
}

#[tokio::test]
async fn what_is_no_file_is_refused_wherever_it_comes() {
    let scene = Scene::new().await;
    for (part, why) in [
        (json!({"type": "file"}), "mediaType"),
        (json!({"type": "file", "mediaType": {}, "url": []}), "mediaType"),
        (file("text/plain", "data:text/plain;base64,%"), "base64"),
        (file("text/plain", "data:image/png;base64,aGk="), "another type"),
        (file("text/plain", "file:///etc/passwd"), "neither"),
        (file("text/plain", "javascript:alert(1)"), "neither"),
        (
            json!({"type": "file", "mediaType": "text/plain", "filename": "../x", "url": "data:;base64,aGk="}),
            "filename",
        ),
        (json!({"type": "tool-x", "toolCallId": "t"}), "type text and file"),
    ] {
        let parts = json!([{"type": "text", "text": "hi"}, part]);
        let (status, code, message) = scene.sent("s", "demo", parts.clone()).await;
        assert_eq!((status, code.as_str()), (422, "invalid_message"), "{part}");
        assert!(message.starts_with("part 1 ") && message.contains(why), "{message}");
        let chat = json!({"id": "s", "messages": [{"id": "m", "role": "user", "parts": parts}]});
        assert_eq!(scene.post("/api/chat", chat).await.refused(), (422, "invalid_message"), "{part}");
    }
}

#[tokio::test]
async fn agents_are_listed_whether_they_are_there_or_not() {
    let scene = Scene::with(AGENTS, Timeouts::default()).await;
    let agents = scene.get("/v1/agents?limit=500").await.body;
    let agents = agents["items"].as_array().unwrap();
    let named = |name: &str| agents.iter().find(|agent| agent["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!((&named("demo")["configured"], &named("demo")["found"]["at"]), (&json!(true), &json!("built in")));
    let lines = named("lines");
    assert!(lines["found"]["at"].as_str().unwrap().ends_with("/true"), "{lines}");
    let qwen = named("qwen");
    assert_eq!((&qwen["configured"], &qwen["driver"]), (&json!(false), &json!("acp")));
    assert!(qwen["config"].as_str().unwrap().starts_with("[agents.qwen]\n"), "{qwen}");
    assert!(qwen["install"].is_string() && qwen["log_in"].is_string(), "{qwen}");
}
