//! Tokens and roles, on every route.

use reqwest::Method;
use serde_json::{Value, json};

use crate::scene::{Answer, Daemon, Scene, read};

const DOCS: &str = include_str!("../../docs/http.md");

/// The routes that only read.
const READ: [&str; 21] = [
    "/metrics",
    "/v1/sessions",
    "/v1/sessions/s",
    "/v1/sessions/s/agent-sessions",
    "/v1/sessions/s/children",
    "/v1/sessions/s/options",
    "/v1/sessions/s/messages",
    "/v1/sessions/s/runs",
    "/v1/sessions/s/events",
    "/v1/runs",
    "/v1/runs/0192f0c1-2345-7000-8000-0123456789ab",
    "/v1/runs/0192f0c1-2345-7000-8000-0123456789ab/events",
    "/v1/permissions",
    "/v1/permissions/0192f0c1-2345-7000-8000-0123456789ab",
    "/v1/backends",
    "/v1/slots",
    "/v1/workers",
    "/v1/stats",
    "/api/chat/s/stream",
    "/nowhere",
    "/",
];

/// The routes that a role may write to, by `docs/http.md` (which a unit test compares with the router).
fn written(role: &str) -> Vec<(Method, String)> {
    let row = DOCS.lines().find(|line| line.trim_start().starts_with(&format!("| `{role}` |"))).unwrap();
    let routes = row.split('`').filter_map(|word| word.split_once(" /"));
    let id = |path: &str| path.replace("{id}", "0192f0c1-2345-7000-8000-0123456789ab");
    let routes: Vec<_> = routes.map(|(method, path)| (method.parse().unwrap(), id(&format!("/{path}")))).collect();
    assert!(routes.len() > 4, "the table was not found");
    routes
}

fn config() -> String {
    ["viewer", "operator", "admin"]
        .map(|role| format!("[tokens.a-{role}]\nrole = \"{role}\"\ntoken = \"{role}-s3cret\"\n"))
        .concat()
}

async fn ask(daemon: &Daemon, method: &Method, path: &str, token: &str) -> Answer {
    let request = daemon.request_without_token(method.clone(), path).bearer_auth(token);
    // The only route whose role depends on the body.
    let body = if path == "/v1/sessions" && token == "operator-s3cret" {
        json!({})
    } else {
        json!({"options": {"model": "m"}})
    };
    read(if method == Method::GET { request } else { request.json(&body) }).await
}

#[tokio::test]
async fn no_route_answers_without_a_token() {
    let scene = Scene::new("");
    let daemon = scene.daemon();
    let token = scene.token();
    for path in ["/healthz", "/readyz"] {
        assert_eq!(read(daemon.request_without_token(Method::GET, path)).await.status, 200, "{path}");
    }
    let reads = READ.map(|path| (Method::GET, path.to_owned()));
    for (method, path) in reads.into_iter().chain(written("operator")).chain(written("admin")) {
        let bare = || daemon.request_without_token(method.clone(), &path);
        let refused = (401, "unauthorized");
        assert_eq!(read(bare()).await.refused(), refused, "{method} {path}");
        for wrong in ["", "x", &token[1..], &format!("{token}x"), &token.to_ascii_uppercase()] {
            assert_eq!(read(bare().bearer_auth(wrong)).await.refused(), refused, "{method} {path} {wrong:?}");
        }
        let is_stream = path.ends_with("/events") || path.ends_with("/stream");
        if !is_stream {
            let in_query = daemon.request_without_token(method.clone(), &format!("{path}?token={token}"));
            assert_eq!(read(in_query).await.refused(), refused, "{method} {path}");
        }
    }
    let own = daemon.request_without_token(Method::GET, &format!("/api/chat/s/stream?token={token}"));
    assert_eq!(read(own).await.status, 204, "a stream takes it from the query");
}

#[tokio::test]
async fn each_role_may_what_is_written_down() {
    let scene = Scene::new(&config());
    let daemon = scene.daemon();
    assert!(!scene.token_file().exists(), "none is made where the config names some");
    let may = |answer: &Answer| ![401, 403].contains(&answer.status);
    for path in READ {
        for role in ["viewer", "operator", "admin"] {
            let answer = ask(&daemon, &Method::GET, path, &format!("{role}-s3cret")).await;
            assert!(may(&answer), "{role} {path}: {answer:?}");
        }
    }
    for (method, path) in written("operator") {
        let answer = ask(&daemon, &method, &path, "viewer-s3cret").await;
        assert_eq!(answer.refused(), (403, "forbidden"), "{method} {path}");
        let said = answer.body["error"]["message"].as_str().unwrap();
        assert!(said.contains("operator") && said.contains("a-viewer") && !said.contains("s3cret"), "{said}");
        for token in ["operator-s3cret", "admin-s3cret"] {
            assert!(may(&ask(&daemon, &method, &path, token).await), "{method} {path}");
        }
    }
    for (method, path) in written("admin").into_iter().filter(|(_, path)| path != "/v1/sessions") {
        for token in ["viewer-s3cret", "operator-s3cret"] {
            assert_eq!(ask(&daemon, &method, &path, token).await.refused(), (403, "forbidden"), "{method} {path}");
        }
        assert!(may(&ask(&daemon, &method, &path, "admin-s3cret").await), "{method} {path}");
    }
    let with_options = json!({"id": "o", "options": {"model": "m"}});
    let create = daemon.request_without_token(Method::POST, "/v1/sessions").bearer_auth("operator-s3cret");
    assert_eq!(read(create.json(&with_options)).await.refused(), (403, "forbidden"));
}

#[tokio::test]
async fn answers_carry_the_name_of_the_token() {
    let scene = Scene::new(&format!("{}[server]\ntoken = \"the-one\"\n", config()));
    let daemon = scene.daemon();
    let post = async |path: &str, token: &str, body: Value| {
        read(daemon.request_without_token(Method::POST, path).bearer_auth(token).json(&body)).await
    };
    let shown = async |id: &str| {
        let path = format!("/v1/permissions/{id}");
        read(daemon.request_without_token(Method::GET, &path).bearer_auth("viewer-s3cret")).await
    };
    for (session, token, by) in [("a", "operator-s3cret", "a-operator"), ("b", "the-one", "admin")] {
        let id = ask_question(&daemon, session).await;
        let path = format!("/v1/permissions/{id}");
        let boss = post(&path, token, json!({"approved": true, "by": "the boss"})).await;
        assert_eq!(boss.refused(), (422, "invalid_body"));
        assert!(boss.body["error"]["message"].as_str().unwrap().contains("by"), "{}", boss.body);
        assert_eq!(post(&path, "viewer-s3cret", json!({"approved": true})).await.refused(), (403, "forbidden"));
        assert_eq!(post(&path, token, json!({"approved": true})).await.text("answered_by"), by);
    }
    // In a chat: an answer, and a message that declines.
    let id = ask_question(&daemon, "c").await;
    let part = json!({"type": "dynamic-tool", "toolCallId": "t", "state": "approval-responded",
                      "approval": {"id": id, "approved": true}});
    let answer = json!({"id": "c", "messages": [{"id": "m", "role": "assistant", "parts": [part]}]});
    assert_eq!(post("/api/chat", "operator-s3cret", answer).await.status, 200);
    assert_eq!(shown(&id).await.text("answered_by"), "a-operator");
    let id = ask_question(&daemon, "d").await;
    let message = json!({"id": "n", "role": "user", "parts": [{"type": "text", "text": "no"}]});
    assert_eq!(post("/api/chat", "operator-s3cret", json!({"id": "d", "messages": [message]})).await.status, 200);
    let declined = shown(&id).await;
    assert_eq!((declined.text("state"), declined.text("answered_by")), ("denied", "a-operator"));
    // On the command line.
    let id = ask_question(&daemon, "e").await;
    scene.printed(&["permissions", "--answer", &id, "deny"]);
    assert!(shown(&id).await.text("answered_by").starts_with("cli:"));
}

/// The same as [`Api::question`], with a token of the config.
async fn ask_question(daemon: &Daemon, session: &str) -> String {
    daemon.with_token("admin-s3cret").question(session).await
}

#[tokio::test]
async fn auth_none_is_for_everyone_here_and_no_one_else() {
    let scene = Scene::new("[server]\nauth = \"none\"\n");
    let daemon = scene.daemon();
    assert!(!scene.token_file().exists());
    let id = daemon.question("s").await;
    let answered = daemon.post(&format!("/v1/permissions/{id}"), json!({"approved": true})).await;
    assert_eq!((answered.status, answered.text("answered_by")), (200, "anonymous"));
    let page = daemon.request(Method::GET, "/v1/sessions").header("origin", "https://evil.example");
    assert_eq!(read(page).await.refused(), (403, "forbidden_origin"));
    let output = scene.command(&["serve", "--listen", "0.0.0.0:0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(scene.mainstay(&["token"]).status.code(), Some(2));
}
