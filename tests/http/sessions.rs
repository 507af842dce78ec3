//! `/v1/sessions`

use mainstay::http::Timeouts;
use reqwest::Method;
use serde_json::{Value, json};

use crate::scene::{Scene, read};

#[tokio::test]
async fn a_session_is_made_once() {
    let scene = Scene::new().await;
    let made = scene.post("/v1/sessions", json!({"id": "a.b:c-d", "title": "one"})).await;
    assert_eq!((made.status, made.header("location")), (201, "/v1/sessions/a.b:c-d"));
    assert_eq!(made.body["execution"], "idle");
    assert_eq!(made.body["last_seq"], 0);
    assert_eq!((made.text("workspace"), made.text("agent"), made.text("title")), ("default", "demo", "one"));
    let again = scene.post("/v1/sessions", json!({"id": "a.b:c-d", "title": "one"})).await;
    assert_eq!((again.status, &again.body), (200, &made.body));
    let other = scene.post("/v1/sessions", json!({"id": "a.b:c-d", "title": "two"})).await;
    assert_eq!(other.refused(), (409, "session_differs"));
    assert_eq!(scene.get("/v1/sessions/a.b:c-d").await.body, made.body);

    let named_by_us = scene.post("/v1/sessions", json!({})).await;
    assert_eq!(named_by_us.status, 201);
    assert_eq!(scene.get(&format!("/v1/sessions/{}", named_by_us.text("id"))).await.status, 200);
}

#[tokio::test]
async fn what_makes_no_session_is_said() {
    let scene = Scene::new().await;
    let cases = [
        (json!({"id": "a/b"}), (400, "invalid_id")),
        (json!({"id": ""}), (400, "invalid_id")),
        (json!({"id": "x".repeat(201)}), (400, "invalid_id")),
        (json!({"workspace": "nowhere"}), (422, "unknown_workspace")),
        (json!({"agent": "nobody"}), (422, "unknown_agent")),
        (json!({"idle_ttl_ms": 0}), (422, "invalid_value")),
        (json!({"idle_ttl_ms": -1}), (422, "invalid_body")),
        (json!({"title": "x".repeat(501)}), (422, "invalid_value")),
        (json!({"title": " \n"}), (422, "invalid_value")),
        (json!({"title": "a\u{1b}[2J"}), (422, "invalid_value")),
        (json!({"title": "a\u{202e}b"}), (422, "invalid_value")),
        (json!({"label": "a\u{2066}b"}), (422, "invalid_value")),
        (json!({"tilte": "x"}), (422, "invalid_body")),
        (json!([]), (422, "invalid_body")),
    ];
    for (body, refused) in cases {
        let answer = scene.post("/v1/sessions", body.clone()).await;
        assert_eq!(answer.refused(), refused, "{body}");
        if body.get("tilte").is_some() {
            assert!(answer.body["error"]["message"].as_str().unwrap().contains("`tilte`"));
        }
    }
    assert_eq!(scene.get("/v1/sessions").await.body, json!({"items": [], "next_cursor": null}));
}

#[tokio::test]
async fn a_session_is_changed() {
    let scene = Scene::new().await;
    scene.post("/v1/sessions", json!({"id": "s"})).await;
    let patch = |path: &str, body| scene.ask(Method::PATCH, path).json(&body);
    for title in ["", "\u{9b}31m", "a\nb"] {
        let refused = read(patch("/v1/sessions/s", json!({"title": title}))).await;
        assert_eq!(refused.refused(), (422, "invalid_value"), "{title:?}");
    }
    let changed = read(patch("/v1/sessions/s", json!({"title": " new ", "idle_ttl_ms": 5000}))).await;
    assert_eq!((changed.status, changed.text("title")), (200, "new"));
    assert_eq!(changed.body["idle_ttl_ms"], 5000);
    let kept = read(patch("/v1/sessions/s", json!({"idle_ttl_ms": 6000}))).await;
    assert_eq!((kept.text("title"), &kept.body["idle_ttl_ms"]), ("new", &json!(6000)));
    let left = read(patch("/v1/sessions/s", json!({"title": null}))).await;
    assert_eq!((left.status, &left.body["title"], &left.body["idle_ttl_ms"]), (200, &json!(null), &json!(6000)));
    assert_eq!(read(patch("/v1/sessions/s", json!({"agent": "demo"}))).await.refused(), (422, "invalid_body"));
    assert_eq!(read(patch("/v1/sessions/t", json!({"title": "new"}))).await.refused(), (404, "not_found"));
}

#[tokio::test]
async fn lists_are_read_page_by_page() {
    let scene = Scene::new().await;
    for number in 0..5 {
        scene.post("/v1/sessions", json!({"id": format!("s{number}")})).await;
    }
    let (mut ids, mut path) = (Vec::new(), "/v1/sessions?limit=2".to_owned());
    let mut pages = 0;
    loop {
        let page = scene.get(&path).await;
        ids.extend(page.each("id"));
        pages += 1;
        match page.body["next_cursor"].as_str() {
            Some(cursor) => path = format!("/v1/sessions?limit=2&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!((ids.join(" ").as_str(), pages), ("s4 s3 s2 s1 s0", 3));
    assert_eq!(scene.get("/v1/sessions?limit=5").await.body["next_cursor"], json!(null));

    for query in ["limit=0", "limit=501", "limit=x", "limit=", "limit=1&limit=2"] {
        assert_eq!(scene.get(&format!("/v1/sessions?{query}")).await.refused(), (400, "invalid_query"), "{query}");
    }
    for cursor in ["", "x", "1", "1-", "-1-2", "1-2-3"] {
        let answer = scene.get(&format!("/v1/sessions?cursor={cursor}")).await;
        assert_eq!(answer.refused(), (400, "invalid_cursor"), "{cursor}");
    }
}

#[tokio::test]
async fn a_busy_session_is_closed_only_when_that_is_meant() {
    let scene = Scene::new().await;
    let run = scene.send("s", "hello").await;
    assert_eq!(scene.get("/v1/sessions/s").await.body["execution"], "queued");
    assert_eq!(scene.get("/v1/slots").await.each("session_id")[0], "s");
    assert_eq!(scene.post_nothing("/v1/sessions/s/close").await.refused(), (409, "busy"));
    assert_eq!(scene.post("/v1/sessions/s/close", json!({"cancel": "yes"})).await.refused(), (422, "invalid_body"));
    let closed = scene.post("/v1/sessions/s/close", json!({"cancel": true})).await;
    assert_eq!((closed.status, &closed.body["assignment"]), (200, &json!(null)));
    assert_eq!(scene.get(&format!("/v1/runs/{run}")).await.text("status"), "cancelled");
    assert_eq!(scene.post_nothing("/v1/sessions/s/close").await.status, 200);
    assert_eq!(scene.post_nothing("/v1/sessions/t/close").await.refused(), (404, "not_found"));
}

impl Scene {
    /// A message with a place in the conversation, because its run has ended.
    async fn sent_and_cancelled(&self, message: Value) {
        let run = self.post("/v1/sessions/s/runs", message).await;
        assert_eq!(run.status, 202);
        self.cancel(run.text("id")).await;
    }
}

#[tokio::test]
async fn messages_come_as_a_chat_wants_them() {
    let scene = Scene::new().await;
    for number in 0..4 {
        let message = json!({"message": {"id": format!("m{number}"), "text": "hello"}});
        let run = scene.post("/v1/sessions/s/runs", message).await;
        assert_eq!(run.status, 202);
        if number < 3 {
            scene.cancel(run.text("id")).await;
        }
    }
    let all = scene.get("/v1/sessions/s/messages").await;
    let first = json!({"id": "m0", "role": "user", "parts": [{"type": "text", "text": "hello"}]});
    assert_eq!((all.each("id").join(" ").as_str(), &all.body["items"][0]), ("m0 m1 m2", &first));
    assert_eq!(all.body["next_cursor"], json!(null));
    let waiting = json!([{"id": "m3", "role": "user", "parts": [{"type": "text", "text": "hello"}]}]);
    assert_eq!(all.body["queued"], waiting, "what has not begun stands apart");
    let page = scene.get("/v1/sessions/s/messages?limit=2&partial=1").await;
    let rest = format!("/v1/sessions/s/messages?limit=2&cursor={}", page.text("next_cursor"));
    assert_eq!((page.each("id").join(" ").as_str(), scene.get(&rest).await.each("id")), ("m0 m1", vec!["m2".into()]));
    assert_eq!(scene.get("/v1/sessions/s/messages?partial=maybe").await.refused(), (400, "invalid_query"));
    // A chat is opened before its first message is sent.
    let new = scene.get("/v1/sessions/t/messages").await;
    assert_eq!((new.status, new.each("id").len(), &new.body["next_cursor"]), (200, 0, &json!(null)));
    assert_eq!(scene.get("/v1/sessions/t").await.status, 404);
    assert_eq!(scene.get("/v1/sessions/a%20b/messages").await.refused(), (400, "invalid_id"));
}

#[tokio::test]
async fn messages_are_read_from_either_end() {
    let scene = Scene::new().await;
    for number in 0..7 {
        let message = json!({"message": {"id": format!("m{number}"), "text": "hello"}});
        scene.sent_and_cancelled(message).await;
    }
    let page = async |query: &str| {
        let page = scene.get(&format!("/v1/sessions/s/messages?{query}")).await;
        let cursor = |key: &str| page.body[key].as_str().map(str::to_owned);
        (page.each("id").join(" "), cursor("prev_cursor"), cursor("next_cursor"))
    };
    let (newest, prev, next) = page("last=3").await;
    assert_eq!((newest.as_str(), &next), ("m4 m5 m6", &None));
    let (middle, older, newer) = page(&format!("before={}&limit=3", prev.unwrap())).await;
    assert_eq!(middle, "m1 m2 m3");
    let (oldest, none, _) = page(&format!("before={}&last=3", older.unwrap())).await;
    assert_eq!((oldest.as_str(), none), ("m0", None));
    assert_eq!(page(&format!("cursor={}&limit=3", newer.unwrap())).await.0, newest);

    let (first, none, next) = page("limit=4").await;
    assert_eq!((first.as_str(), none), ("m0 m1 m2 m3", None));
    let (rest, prev, none) = page(&format!("limit=4&cursor={}", next.unwrap())).await;
    assert_eq!((rest.as_str(), none), ("m4 m5 m6", None));
    assert_eq!(page(&format!("before={}", prev.unwrap())).await.0, first);

    let (down, none, next) = page("order=desc&limit=4").await;
    assert_eq!((down.as_str(), none), ("m6 m5 m4 m3", None));
    let (rest, prev, none) = page(&format!("order=desc&cursor={}", next.unwrap())).await;
    assert_eq!((rest.as_str(), none), ("m2 m1 m0", None));
    assert!(prev.is_some());
    assert_eq!(page("order=asc&limit=2").await.0, "m0 m1");

    let some = page("last=1").await.1.unwrap();
    for query in [
        "last=0",
        "last=501",
        "last=x",
        "order=up",
        &format!("cursor={some}&last=2"),
        &format!("cursor={some}&before={some}"),
    ] {
        let refused = scene.get(&format!("/v1/sessions/s/messages?{query}")).await;
        assert_eq!(refused.refused(), (400, "invalid_query"), "{query}");
    }
    assert_eq!(scene.get("/v1/sessions/s/messages?before=x").await.refused(), (400, "invalid_cursor"));
}

#[tokio::test]
async fn the_newest_messages_come_without_asking() {
    let scene = Scene::new().await;
    for number in 0..502 {
        let message = json!({"message": {"id": format!("m{number}"), "text": "hello"}});
        scene.sent_and_cancelled(message).await;
    }
    let page = scene.get("/v1/sessions/s/messages").await;
    let ids = page.each("id");
    assert_eq!((ids.len(), ids[0].as_str(), ids[499].as_str()), (500, "m2", "m501"));
    let older = scene.get(&format!("/v1/sessions/s/messages?before={}", page.text("prev_cursor"))).await;
    assert_eq!(older.each("id").join(" "), "m0 m1");
}

#[tokio::test]
async fn pages_of_large_messages_end_by_their_bytes() {
    let scene = Scene::new().await;
    let url = format!("data:text/plain;base64,{}", "QUFB".repeat(250_000));
    for number in 0..6 {
        let file = json!({"type": "file", "mediaType": "text/plain", "url": url});
        let message = json!({"message": {"id": format!("m{number}"), "parts": [file]}});
        scene.sent_and_cancelled(message).await;
    }
    let newest = scene.get("/v1/sessions/s/messages").await;
    assert_eq!(newest.each("id").join(" "), "m2 m3 m4 m5");
    let older = scene.get(&format!("/v1/sessions/s/messages?before={}", newest.text("prev_cursor"))).await;
    assert_eq!((older.each("id").join(" ").as_str(), &older.body["prev_cursor"]), ("m0 m1", &json!(null)));
    // Queued messages are bounded the same way, metadata included.
    for number in 0..6 {
        let parts = json!([{"type": "text", "text": "hello"}]);
        let message = json!({"id": format!("q{number}"), "role": "user", "parts": parts, "metadata": url});
        let sent = scene.ask(Method::POST, "/api/chat").json(&json!({"id": "t", "message": message})).send().await;
        assert_eq!(sent.unwrap().status(), 200);
    }
    let waiting = scene.get("/v1/sessions/t/messages").await;
    let ids: Vec<_> = waiting.body["queued"].as_array().unwrap().iter().map(|message| &message["id"]).collect();
    assert_eq!(ids, ["q0", "q1", "q2", "q3"]);
}

#[tokio::test]
async fn a_large_message_is_sent_in_pieces_to_each_reader() {
    let scene = Scene::with("[server]\nmax_body_bytes = 16777216", Timeouts::default()).await;
    let url = format!("data:text/plain;base64,{}", "QUFB".repeat(2_500_000));
    let file = json!({"type": "file", "mediaType": "text/plain", "url": url});
    scene.sent_and_cancelled(json!({"message": {"id": "large", "parts": [file]}})).await;
    // These clients read the head of the response and nothing else.
    let mut idle = Vec::new();
    for _ in 0..3 {
        idle.push(scene.ask(Method::GET, "/v1/sessions/s/messages").send().await.unwrap());
    }
    let page = scene.get("/v1/sessions/s/messages").await;
    assert_eq!(page.each("id"), ["large"]);
    assert!(page.body["items"][0]["parts"] == json!([file]), "it is not what was sent");
    let length = |answer: &reqwest::Response| answer.content_length().unwrap() as usize;
    for answer in idle {
        let length = length(&answer);
        assert_eq!(answer.bytes().await.unwrap().len(), length);
    }
}
