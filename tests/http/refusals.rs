//! Malformed, unknown and too large requests, and how they are refused.

use mainstay::http::Timeouts;
use reqwest::{Body, Method};
use serde_json::json;

use crate::scene::{Scene, read};

#[tokio::test]
async fn a_body_is_json() {
    let scene = Scene::new().await;
    for path in ["/v1/sessions", "/v1/sessions/s/runs", "/v1/sessions/s/close", "/api/chat"] {
        let post = |kind: &'static str, body: &'static str| {
            let request = scene.ask(Method::POST, path);
            let request = if kind.is_empty() { request } else { request.header("content-type", kind) };
            read(request.body(body))
        };
        for kind in ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"] {
            assert_eq!(post(kind, "{}").await.refused(), (415, "unsupported_media_type"), "{path} {kind}");
        }
        for body in ["{", "{}}", "\u{1}", "{\"id\": \"a\",}", "{\"unknown\": 1, "] {
            let answer = post("application/json; charset=utf-8", body).await;
            assert_eq!(answer.refused(), (400, "malformed_json"), "{path} {body}");
            let message = answer.body["error"]["message"].as_str().unwrap();
            assert!(message.contains("line 1 column"), "{message}");
        }
        assert_eq!(post("application/json", "[1]").await.refused(), (422, "invalid_body"), "{path}");
    }
}

#[tokio::test]
async fn a_compressed_body_is_refused() {
    let scene = Scene::new().await;
    for path in ["/v1/sessions", "/v1/sessions/s/runs", "/v1/sessions/s/close", "/api/chat"] {
        let post = |encoding: &str| {
            let request = scene.ask(Method::POST, path).header("content-type", "application/json");
            read(request.header("content-encoding", encoding).body("{"))
        };
        for encoding in ["gzip", "br", "identity, gzip", "x"] {
            assert_eq!(post(encoding).await.refused(), (415, "unsupported_encoding"), "{path} {encoding}");
        }
        assert_eq!(post("identity").await.refused(), (400, "malformed_json"), "{path}");
    }
}

#[tokio::test]
async fn a_value_of_a_wrong_type_is_refused_with_its_path() {
    let scene = Scene::new().await;
    scene.post("/v1/sessions", json!({"id": "s"})).await;
    let text = json!({"text": "hello"});
    let user = json!({"role": "user", "parts": [{"type": "text", "text": "hello"}]});
    let permission = format!("/v1/permissions/{}", uuid::Uuid::now_v7());
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": 1}]);
    for (path, body, told) in [
        ("/v1/sessions/s/runs", json!({"message": text, "when_busy": 1}), "when_busy: "),
        ("/v1/sessions/s/runs", json!({"message": text, "priority": "high"}), "priority: "),
        ("/v1/sessions/s/runs", json!({"message": {"text": []}}), "message.text: "),
        ("/v1/sessions/s/runs", json!({"message": {"parts": {}}}), "message.parts: "),
        ("/v1/sessions/s/runs", json!({"message": {"parts": parts}}), "message.parts[1].text "),
        ("/v1/sessions", json!({"mode": {}}), "mode: "),
        ("/v1/sessions", json!({"idle_ttl_ms": -1}), "idle_ttl_ms: "),
        ("/v1/sessions/s/close", json!({"cancel": "yes"}), "cancel: "),
        ("/api/chat", json!({"id": 7, "message": user}), "id: "),
        ("/api/chat", json!({"id": "s", "message": user, "when_busy": 1}), "when_busy: "),
        ("/api/chat", json!({"id": "s", "message": user, "trigger": null}), "trigger: "),
        ("/api/chat", json!({"id": "s", "message": {"role": "user", "parts": 1}}), "no UI message: parts: "),
        (permission.as_str(), json!({"approved": "yes"}), "approved: "),
    ] {
        let answer = scene.post(path, body.clone()).await;
        let message = answer.body["error"]["message"].as_str().unwrap_or_else(|| panic!("{body}: {answer:?}"));
        assert!(answer.status == 422 && message.contains(told), "{path} {body}: {} {message}", answer.status);
    }
}

#[tokio::test]
async fn a_parameter_that_a_route_does_not_know_is_refused_with_those_that_it_does() {
    let scene = Scene::new().await;
    scene.post("/v1/sessions", json!({"id": "s"})).await;
    for (path, known) in [
        ("/v1/permissions?stat=pending", "limit, cursor, state, session, run"),
        ("/v1/runs?limit=1&Status=queued", "limit, cursor, status, session"),
        ("/v1/sessions/s/runs?session=s", "limit, cursor, status"),
        ("/v1/stats?window=60", "window_seconds"),
        ("/v1/slots?x", "limit, cursor"),
        ("/v1/sessions/s?limit=1", "none"),
        ("/v1/agents?token=t", "limit, cursor"),
    ] {
        let answer = scene.get(path).await;
        assert_eq!(answer.refused(), (400, "invalid_query"), "{path}");
        let said = answer.body["error"]["message"].as_str().unwrap();
        assert!(said.ends_with(&format!("is no parameter of this route, which takes {known}")), "{said}");
    }
    let answer = scene.post_nothing("/v1/sessions/s/cancel?wiat=3").await;
    assert_eq!(answer.refused(), (400, "invalid_query"));
    let long = scene.get(&format!("/v1/slots?{}=1", "x".repeat(5000))).await;
    assert!(long.body["error"]["message"].as_str().unwrap().len() < 200);
    for path in ["/v1/sessions/s/events?limit=1&after=0&cursor=0&token=t", "/v1/slots?", "/healthz?x=1", "/readyz?x=1"]
    {
        assert_eq!(scene.get(path).await.status, 200, "{path}");
    }
    // Third-party libraries send parameters of their own.
    assert_eq!(scene.get("/api/chat/s/stream?x=1").await.status, 204);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_told_so() {
    let scene = Scene::new().await;
    let large = "x".repeat(5 * 1024 * 1024);
    let body = json!({"message": {"text": large}}).to_string();
    let post = || scene.ask(Method::POST, "/v1/sessions/s/runs").header("content-type", "application/json");
    assert_eq!(read(post().body(body.clone())).await.refused(), (413, "body_too_large"));
    // The same without an announced length.
    let pieces = body.as_bytes().chunks(64 * 1024).map(|piece| std::io::Result::Ok(piece.to_vec())).collect::<Vec<_>>();
    let pieces = Body::wrap_stream(futures_util::stream::iter(pieces));
    assert_eq!(read(post().body(pieces)).await.refused(), (413, "body_too_large"));
    // A refusal for another reason also reaches a client that is still sending.
    let wrong = scene.ask(Method::POST, "/v1/nothing").body(large);
    assert_eq!(read(wrong).await.refused(), (404, "unknown_route"));
    let just_right = json!({"message": {"text": "x".repeat(4 * 1024 * 1024 - 100)}});
    assert_eq!(scene.post("/v1/sessions/s/runs", just_right).await.status, 202);

    let scene = Scene::with("[server]\nmax_body_bytes = 1024", Timeouts::default()).await;
    let answer = scene.post("/v1/sessions", json!({"title": "x".repeat(1024)})).await;
    assert_eq!(answer.refused(), (413, "body_too_large"));
}

#[tokio::test]
async fn what_does_not_exist_is_said_in_the_same_shape() {
    let scene = Scene::new().await;
    for path in ["/", "/v1", "/v1/sessions/", "/v1/sessions/s/", "/V1/sessions", "/healthz/"] {
        assert_eq!(scene.get(path).await.refused(), (404, "unknown_route"), "{path}");
    }
    for (method, path, allowed) in [
        (Method::DELETE, "/v1/sessions", "GET,HEAD,POST"),
        (Method::GET, "/api/chat", "POST"),
        (Method::PUT, "/v1/sessions/s", "GET,HEAD,PATCH"),
        (Method::OPTIONS, "/healthz", "GET,HEAD"),
    ] {
        let answer = read(scene.ask(method, path)).await;
        assert_eq!((answer.refused(), answer.header("allow")), ((405, "method_not_allowed"), allowed), "{path}");
    }
}

#[tokio::test]
async fn an_id_is_never_a_path() {
    let scene = Scene::new().await;
    for id in ["..", ".", "a:b", "-"] {
        assert_eq!(scene.post("/v1/sessions", json!({"id": id})).await.status, 201, "{id}");
        assert_eq!(scene.raw_status(&format!("/v1/sessions/{id}")).await, 200, "{id}");
    }
    assert_eq!(scene.raw_status("/v1/sessions/%2e%2E").await, 200);
    for bad in ["a%2Fb", "%2e%2e%2f", "a%20b", "a%00", "%ff", "%C3%BC", "a%5Cb", &"x".repeat(201)] {
        for suffix in ["", "/messages", "/events", "/runs"] {
            let answer = scene.get(&format!("/v1/sessions/{bad}{suffix}")).await;
            assert_eq!(answer.refused(), (400, "invalid_id"), "{bad}{suffix}");
        }
    }
    assert_eq!(scene.raw_status("/v1/sessions//runs").await, 400);
    assert_eq!(scene.raw_status("/v1/sessions/../../etc/passwd").await, 404);
}

#[tokio::test]
async fn every_answer_names_its_request() {
    let scene = Scene::new().await;
    let ask = |id: &str| read(scene.ask(Method::GET, "/v1/nothing").header("x-request-id", id));
    assert_eq!(ask("mine-1").await.header("x-request-id"), "mine-1");
    for unusable in ["", "two words", &"x".repeat(129)] {
        assert_eq!(ask(unusable).await.header("x-request-id").len(), 36);
    }
    assert_ne!(scene.get("/healthz").await.header("x-request-id"), scene.get("/healthz").await.header("x-request-id"));
}

#[tokio::test]
async fn the_state_of_the_engine_is_told() {
    let scene = Scene::new().await;
    assert_eq!(scene.get("/healthz").await.body, json!({"status": "ok"}));
    assert_eq!(scene.get("/readyz").await.body, json!({"status": "ready"}));
    assert_eq!(scene.get("/v1/workers").await.body, json!({"items": [], "next_cursor": null}));
    let slots = scene.get("/v1/slots").await;
    assert_eq!((slots.each("id").len(), slots.each("id")[0].as_str()), (5, "chat-slot-default-1"));
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = scene.get(&format!("/v1/slots?limit=2{cursor}")).await;
        seen.extend(page.each("id"));
        let Some(next) = page.body["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(seen, slots.each("id"));
    for path in ["/v1/slots", "/v1/workers"] {
        assert_eq!(scene.get(&format!("{path}?limit=0")).await.refused(), (400, "invalid_query"));
        assert_eq!(scene.get(&format!("{path}?cursor=-1")).await.refused(), (400, "invalid_cursor"));
        let beyond = scene.get(&format!("{path}?cursor={}", i64::MAX)).await;
        assert_eq!(beyond.body, json!({"items": [], "next_cursor": null}));
    }
    let head = scene.ask(Method::HEAD, "/v1/slots").send().await.unwrap();
    assert_eq!((head.status().as_u16(), head.headers()["content-type"].to_str().unwrap()), (200, "application/json"));
    assert_eq!(head.text().await.unwrap(), "");
}
