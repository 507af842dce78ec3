//! A web page in a browser on the daemon's machine.

use std::os::unix::fs::PermissionsExt;

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

/// A link, an image or a frame: none of them has an Origin, and a survey of agents starts programs.
#[tokio::test]
async fn page_that_links_to_the_survey_starts_no_program() {
    let scene = Scene::new("");
    let program = scene.path("agent");
    std::fs::write(&program, format!("#!/bin/sh\n: > {}\necho 1.0\n", scene.path("started").display())).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let config = format!("[agents.it]\ndriver = \"acp\"\ncommand = [{program:?}]\n");
    std::fs::write(scene.path("mainstay.toml"), config).unwrap();
    let daemon = scene.daemon();
    for site in ["cross-site", "same-site"] {
        let look = daemon.request(Method::GET, "/v1/agents").header("sec-fetch-site", site);
        assert_eq!(read(look).await.refused(), (403, "forbidden_origin"), "{site}");
    }
    assert!(!scene.path("started").exists());
    assert_eq!(daemon.get("/v1/agents").await.status, 200);
    assert!(scene.path("started").exists());
}
