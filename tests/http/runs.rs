//! `/v1/runs` and the runs of a session.

use std::slice;

use mainstay::http::Timeouts;
use serde_json::json;

use crate::scene::Scene;

#[tokio::test]
async fn a_full_queue_is_429() {
    let scene = Scene::with("[engine]\nmax_queued = 2", Default::default()).await;
    scene.send("s", "one").await;
    let two = json!({"message": {"id": "m-2", "text": "two"}});
    assert_eq!(scene.post("/v1/sessions/s/runs", two.clone()).await.status, 202);
    let refused = scene.post("/v1/sessions/s/runs", json!({"message": {"text": "three"}})).await;
    assert_eq!((refused.refused(), refused.header("retry-after")), ((429, "queue_full"), "10"));
    let chat = json!({"id": "s", "message": {"role": "user", "parts": [{"type": "text", "text": "three"}]}});
    assert_eq!(scene.post("/api/chat", chat).await.refused(), (429, "queue_full"));
    assert_eq!(scene.post("/v1/sessions/s/runs", two).await.status, 200, "the same message again");
    assert_eq!(scene.post("/v1/sessions/s/close", json!({"cancel": true})).await.body["closing"], json!(false));
    scene.send("s", "four").await;
}

#[tokio::test]
async fn the_same_message_is_one_run() {
    let scene = Scene::new().await;
    let message = json!({"message": {"id": "m", "text": "hello"}, "timeout_ms": 1000, "priority": 5});
    let new = scene.post("/v1/sessions/s/runs", message.clone()).await;
    assert_eq!((new.status, new.text("status"), new.text("session_id")), (202, "queued", "s"));
    assert_eq!((&new.body["timeout_ms"], &new.body["priority"]), (&json!(1000), &json!(5)));
    let again = scene.post("/v1/sessions/s/runs", message).await;
    assert_eq!((again.status, &again.body), (200, &new.body));

    let shown = scene.get(&format!("/v1/runs/{}", new.text("id"))).await;
    assert_eq!(shown.status, 200);
    assert_eq!(shown.text("id"), new.text("id"));
    assert_eq!((&shown.body["stderr"], &shown.body["malformed_sample"]), (&json!(null), &json!(null)));
}

#[tokio::test]
async fn what_cannot_be_sent_is_said_and_leaves_nothing() {
    let scene = Scene::new().await;
    let cases = [
        (json!({}), (422, "invalid_body")),
        (json!({"message": {"text": "a"}, "when": "now"}), (422, "invalid_body")),
        (json!({"message": {"text": "a", "role": "user"}}), (422, "invalid_body")),
        (json!({"message": {"text": "a"}, "when_busy": "panic"}), (422, "invalid_body")),
        (json!({"message": {"text": "a"}, "priority": 1001}), (422, "invalid_value")),
        (json!({"message": {"text": "a"}, "timeout_ms": 0}), (422, "invalid_value")),
        (json!({"message": {}}), (422, "invalid_message")),
        (json!({"message": {"text": " \n"}}), (422, "invalid_message")),
        (json!({"message": {"text": "a", "parts": []}}), (422, "invalid_message")),
        (json!({"message": {"parts": [{"type": "file", "url": "x"}]}}), (422, "invalid_message")),
        (json!({"message": {"id": "a b", "text": "a"}}), (400, "invalid_id")),
    ];
    for (body, refused) in cases {
        assert_eq!(scene.post("/v1/sessions/s/runs", body.clone()).await.refused(), refused, "{body}");
    }
    let text = scene.post("/v1/sessions/s/runs", json!({"message": "hello"})).await;
    assert!(text.body["error"]["message"].as_str().unwrap().contains("expected an object with text or parts"));
    assert_eq!(scene.get("/v1/sessions/s").await.refused(), (404, "not_found"));
}

#[tokio::test]
async fn a_client_may_refuse_to_wait() {
    let scene = Scene::new().await;
    scene.send("s", "first").await;
    let body = json!({"message": {"parts": [{"type": "text", "text": "second"}]}, "when_busy": "reject"});
    assert_eq!(scene.post("/v1/sessions/s/runs", body).await.refused(), (409, "busy"));
    assert_eq!(scene.get("/v1/sessions/s/runs").await.body["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_full_pool_asks_to_come_back() {
    let config = "[workspaces.default]\nslots = 1\nwhen_full = \"reject\"";
    let scene = Scene::with(config, Timeouts::default()).await;
    scene.send("s", "hello").await;
    let full = scene.post("/v1/sessions/t/runs", json!({"message": {"text": "hello"}})).await;
    assert_eq!(full.refused(), (429, "pool_full"));
    assert!(full.header("retry-after").parse::<u32>().unwrap() > 0);
}

#[tokio::test]
async fn runs_are_found() {
    let scene = Scene::new().await;
    let runs = [scene.send("s", "1").await, scene.send("s", "2").await, scene.send("t", "3").await];
    scene.cancel(&runs[0]).await;
    let found = async |path: &str| scene.get(path).await.each("id");
    let [a, b, c] = runs.clone();
    assert_eq!(found("/v1/runs").await, [&c, &b, &a].map(String::clone));
    assert_eq!(found("/v1/runs?status=queued").await, [&c, &b].map(String::clone));
    assert_eq!(found("/v1/runs?status=cancelled&session=s").await, slice::from_ref(&a));
    assert_eq!(found("/v1/runs?session=nobody").await, [""; 0]);
    assert_eq!(found("/v1/sessions/s/runs?status=queued").await, slice::from_ref(&b));
    let page = scene.get("/v1/runs?limit=2").await;
    assert_eq!(found(&format!("/v1/runs?limit=2&cursor={}", page.text("next_cursor"))).await, [a]);
    assert_eq!(scene.get("/v1/runs?status=lost").await.refused(), (400, "invalid_query"));
    assert_eq!(scene.get("/v1/runs?session=a/b").await.refused(), (400, "invalid_id"));
    assert_eq!(scene.get("/v1/runs?cursor=1-2").await.refused(), (400, "invalid_cursor"));
    assert_eq!(scene.get("/v1/sessions/nobody/runs").await.refused(), (404, "not_found"));
}

#[tokio::test]
async fn a_run_is_cancelled_once() {
    let scene = Scene::new().await;
    let run = scene.send("s", "hello").await;
    let path = format!("/v1/runs/{run}/cancel");
    let cancelled = scene.post_nothing(&path).await;
    assert_eq!((cancelled.status, cancelled.text("status")), (202, "cancelled"));
    let again = scene.post_nothing(&path).await;
    assert_eq!((again.status, &again.body), (200, &cancelled.body));
    let waited = scene.post(&format!("/v1/runs/{}/cancel?wait=300", scene.send("s", "hello").await), json!({})).await;
    assert_eq!((waited.status, waited.text("status")), (200, "cancelled"));
    for wait in ["301", "-1", "x", "1.5"] {
        assert_eq!(
            scene.post_nothing(&format!("{path}?wait={wait}")).await.refused(),
            (400, "invalid_query"),
            "{wait}"
        );
    }
    let nothing = "/v1/runs/01900000-0000-7000-8000-000000000000";
    assert_eq!(scene.post_nothing(&format!("{nothing}/cancel")).await.refused(), (404, "not_found"));
    assert_eq!(scene.get(nothing).await.refused(), (404, "not_found"));
    assert_eq!(scene.get("/v1/runs/7").await.refused(), (400, "invalid_id"));
}

#[tokio::test]
async fn what_a_session_is_at_is_cancelled() {
    let scene = Scene::new().await;
    let run = scene.send("s", "hello").await;
    let cancelled = scene.post_nothing("/v1/sessions/s/cancel?wait=10").await;
    assert_eq!((cancelled.status, cancelled.body["run"]["id"].as_str()), (200, Some(run.as_str())));
    let nothing = scene.post_nothing("/v1/sessions/s/cancel").await;
    assert_eq!((nothing.status, &nothing.body), (200, &json!({"run": null})));
    assert_eq!(scene.post_nothing("/v1/sessions/t/cancel").await.refused(), (404, "not_found"));
}
