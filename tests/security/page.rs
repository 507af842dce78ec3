//! A page in a browser on the daemon's machine.

use reqwest::Method;
use serde_json::json;

use crate::scene::{Scene, read};

#[tokio::test]
async fn page_of_another_origin_gets_nothing() {
    let scene = Scene::new("");
    let daemon = scene.daemon();
    let body = json!({"message": {"text": "hello"}});
    for origin in ["https://evil.example", "null", "http://localhost:1"] {
        // Even with the token, which a page cannot know.
        let send = daemon.request(Method::POST, "/v1/sessions/s/runs").header("origin", origin).json(&body);
        assert_eq!(read(send).await.refused(), (403, "forbidden_origin"), "{origin}");
        let look = daemon.request(Method::GET, "/v1/sessions").header("origin", origin);
        assert_eq!(read(look).await.refused(), (403, "forbidden_origin"), "{origin}");
    }
    // A foreign name that points to this machine.
    let rebound = daemon.request(Method::GET, "/v1/sessions").header("host", "evil.example");
    assert_eq!(read(rebound).await.refused(), (403, "forbidden_host"));
    assert_eq!(daemon.get("/v1/sessions/s").await.refused(), (404, "not_found"));
}
