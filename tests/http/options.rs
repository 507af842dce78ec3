//! Options of a session, its agent's own session, and the sessions that work for it.

use mainstay::http::Timeouts;
use reqwest::Method;
use serde_json::{Value, json};

use crate::scene::{Answer, Scene, read};

const OPTIONS: &str = "/v1/sessions/s/options";

async fn ask(scene: &Scene, method: Method, body: Value) -> Answer {
    read(scene.ask(method, OPTIONS).json(&body)).await
}

#[tokio::test]
async fn options_are_set_changed_and_cleared() {
    let scene = Scene::new().await;
    let body = json!({"id": "s", "mode": "oneshot", "options": {"model": "m"}});
    let made = scene.post("/v1/sessions", body.clone()).await;
    assert_eq!((made.status, made.text("mode"), &made.body["options"]), (201, "oneshot", &json!({"model": "m"})));
    assert_eq!(scene.post("/v1/sessions", body).await.status, 200);
    let other = scene.post("/v1/sessions", json!({"id": "s", "options": {"model": "other"}})).await;
    assert_eq!(other.refused(), (409, "session_differs"));
    assert_eq!(scene.post("/v1/sessions", json!({"id": "s", "mode": "persistent"})).await.status, 409);

    let shown = scene.get(OPTIONS).await.body;
    // The demo agent supports no options.
    assert_eq!(shown, json!({"options": {"model": "m"}, "effects": {"model": "ignored"}, "advertised": null}));
    let patched = ask(&scene, Method::PATCH, json!({"timeout_seconds": 60, "extra": {"a": "1", "b": "2"}})).await;
    assert_eq!((patched.status, &patched.body["effects"]["timeout_seconds"]), (200, &json!("applied")));
    let patched = ask(&scene, Method::PATCH, json!({"model": null, "extra": {"a": null}})).await;
    assert_eq!(patched.body["options"], json!({"timeout_seconds": 60, "extra": {"b": "2"}}));
    let replaced = ask(&scene, Method::PUT, json!({"mode": "plan"})).await;
    assert_eq!(replaced.body["options"], json!({"mode": "plan"}));
    let cleared = read(scene.ask(Method::DELETE, OPTIONS)).await;
    assert_eq!((cleared.status, &cleared.body["options"]), (200, &json!({})));
}

#[tokio::test]
async fn what_is_no_option_is_said_and_changes_nothing() {
    let scene = Scene::new().await;
    scene.post("/v1/sessions", json!({"id": "s", "options": {"mode": "plan"}})).await;
    let deep = json!({"extra": {"a": {"b": []}}});
    for body in [
        json!({"modle": "x"}),
        json!({"model": "ok", "mode": "a\u{0}b"}),
        json!({"model": "ok", "timeout_seconds": -1}),
        json!({"cwd": "../etc"}),
        json!({"extra": {"--flag": "x"}}),
        json!({"extra": {"a": "x".repeat(513)}}),
        deep,
    ] {
        for method in [Method::PATCH, Method::PUT] {
            assert_eq!(ask(&scene, method, body.clone()).await.refused(), (422, "invalid_option"), "{body}");
        }
        let create = scene.post("/v1/sessions", json!({"id": "t", "options": body})).await;
        assert_eq!(create.refused(), (422, "invalid_option"));
    }
    let nearest = ask(&scene, Method::PATCH, json!({"modle": "x"})).await;
    assert!(nearest.body["error"]["message"].as_str().unwrap().contains("nearest known one is model"));
    for body in [json!([]), json!("x"), json!(null), json!(1)] {
        assert_eq!(ask(&scene, Method::PATCH, body.clone()).await.refused(), (422, "invalid_body"), "{body}");
    }
    assert_eq!(scene.get(OPTIONS).await.body["options"], json!({"mode": "plan"}));
    assert_eq!(scene.get("/v1/sessions/t/options").await.refused(), (404, "not_found"));
    assert_eq!(read(scene.ask(Method::PATCH, "/v1/sessions/t/options").json(&json!({}))).await.status, 404);
    assert_eq!(scene.post("/v1/sessions", json!({"mode": "once"})).await.refused(), (422, "invalid_body"));
}

#[tokio::test]
async fn options_beyond_the_policy_are_refused_by_name() {
    let config = "[agents.demo]\nallow_models = [\"m\"]\n[workspaces.default]\nallow_options = [\"a\"]\n\
                  [agents.wide]\ndriver = \"demo\"\nallow_modes = [\"bypassPermissions\"]\n";
    let scene = Scene::with(config, Timeouts::default()).await;
    scene.post("/v1/sessions", json!({"id": "s", "options": {"mode": "plan", "model": "m"}})).await;
    for (body, key, list) in [
        (json!({"mode": "bypassPermissions"}), "mode", "allow_modes"),
        (json!({"permission_profile": "danger-full-access"}), "permission_profile", "allow_modes"),
        (json!({"extra": {"a": "yolo"}}), "extra.a", "allow_modes"),
        (json!({"extra": {"b": "x"}}), "extra.b", "allow_options"),
        (json!({"model": "other"}), "model", "allow_models"),
        (json!({"cwd": "/"}), "cwd", "cwd_roots"),
        (json!({"cwd": "/proc/self/cwd/../../../../../../etc"}), "cwd", "cwd_roots"),
    ] {
        let created = scene.post("/v1/sessions", json!({"id": "t", "options": body})).await;
        for answer in
            [ask(&scene, Method::PATCH, body.clone()).await, ask(&scene, Method::PUT, body.clone()).await, created]
        {
            assert_eq!(answer.refused(), (403, "not_allowed"), "{body}");
            let said = answer.body["error"]["message"].as_str().unwrap();
            assert!(said.contains(&format!("option {key} ")) && said.contains(&format!("`{list}`")), "{said}");
        }
    }
    assert_eq!(scene.get(OPTIONS).await.body["options"], json!({"mode": "plan", "model": "m"}));
    assert_eq!(scene.get("/v1/sessions/t").await.status, 404);
    let cleared = ask(&scene, Method::PATCH, json!({"mode": null, "extra": {"b": null}})).await;
    assert_eq!(cleared.status, 200);
    let wide =
        json!({"agent": "wide", "options": {"mode": "bypassPermissions", "model": "other", "extra": {"a": "x"}}});
    assert_eq!(scene.post("/v1/sessions", wide).await.status, 201);
}

#[tokio::test]
async fn a_reset_forgets_what_was_told_when_that_is_meant() {
    let scene = Scene::new().await;
    scene.post("/v1/sessions", json!({"id": "s", "options": {"mode": "plan"}})).await;
    let reset = scene.post_nothing("/v1/sessions/s/reset").await;
    assert_eq!((reset.status, &reset.body["options"]), (200, &json!({"mode": "plan"})));
    assert_eq!(reset.body["agent_session"], json!(null));
    assert_eq!(scene.post("/v1/sessions/s/reset", json!({"options": true})).await.body["options"], json!({}));
    assert_eq!(scene.post("/v1/sessions/s/reset", json!({"all": true})).await.refused(), (422, "invalid_body"));
    assert_eq!(scene.post_nothing("/v1/sessions/t/reset").await.refused(), (404, "not_found"));
    assert_eq!(scene.get("/v1/sessions/s/agent-sessions").await.body, json!({"items": [], "next_cursor": null}));
    assert_eq!(scene.get("/v1/sessions/t/agent-sessions").await.refused(), (404, "not_found"));
}

#[tokio::test]
async fn sessions_that_work_for_another_are_found_and_cancelled_with_it() {
    let scene = Scene::new().await;
    let create = async |id: &str, parent: &str| {
        scene.post("/v1/sessions", json!({"id": id, "spawned_by": parent, "label": "look around"})).await
    };
    assert_eq!(create("a", "root").await.refused(), (422, "unknown_parent"));
    assert_eq!(create("self", "self").await.refused(), (422, "unknown_parent"));
    assert_eq!(create("a", "ro/ot").await.refused(), (400, "invalid_id"));
    scene.post("/v1/sessions", json!({"id": "root"})).await;
    let made = create("a", "root").await;
    assert_eq!((made.status, made.text("spawned_by"), made.text("label")), (201, "root", "look around"));
    assert_eq!(create("a", "root").await.status, 200);
    assert_eq!(create("b", "a").await.status, 201);
    // The parent of a session cannot change, so that there are no cycles.
    assert_eq!(create("root", "b").await.refused(), (409, "session_differs"));
    for label in ["", " x", "a\nb", &"x".repeat(161)] {
        let answer = scene.post("/v1/sessions", json!({"label": label})).await;
        assert_eq!(answer.refused(), (422, "invalid_value"), "{label:?}");
    }

    let page = scene.get("/v1/sessions/root/children?limit=1").await;
    assert_eq!(page.each("id"), ["a"]);
    let rest = format!("/v1/sessions/root/children?cursor={}", page.text("next_cursor"));
    assert_eq!(
        (scene.get(&rest).await.each("id"), scene.get("/v1/sessions/b/children").await.each("id")),
        (vec!["b".into()], vec![])
    );
    assert_eq!(scene.get("/v1/sessions/nobody/children").await.refused(), (404, "not_found"));

    let (above, below) = (scene.send("root", "hi").await, scene.send("b", "hi").await);
    assert_eq!(scene.post_nothing("/v1/sessions/root/cancel?children=2").await.refused(), (400, "invalid_query"));
    scene.post_nothing("/v1/sessions/root/cancel").await;
    assert_eq!(scene.get(&format!("/v1/runs/{above}")).await.text("status"), "cancelled");
    assert_eq!(scene.get(&format!("/v1/runs/{below}")).await.text("status"), "queued");
    assert_eq!(scene.post_nothing("/v1/sessions/root/cancel?children=1").await.body, json!({"run": null}));
    assert_eq!(scene.get(&format!("/v1/runs/{below}")).await.text("status"), "cancelled");
}

#[tokio::test]
async fn how_the_whole_is_shows_at_a_glance() {
    let scene = Scene::new().await;
    let run = scene.send("s", "hi").await;
    let stats = scene.get("/v1/stats").await.body;
    assert_eq!((&stats["turns"]["queued"], &stats["turns"]["active"]), (&json!(1), &json!(0)));
    assert_eq!((&stats["turns"]["completed"], &stats["sessions"]["placed"]), (&json!(0), &json!(1)));
    assert_eq!(stats["latency_ms"], json!({"average": null, "max": null}));
    scene.cancel(&run).await;
    let stats = scene.get("/v1/stats?window_seconds=60").await.body;
    assert_eq!((&stats["turns"]["queued"], &stats["turns"]["cancelled"]), (&json!(0), &json!(1)));
    assert_eq!((&stats["errors"], &stats["permissions_pending"]), (&json!({}), &json!(0)));
    for window in ["0", "31536001", "18446744073709551615"] {
        let answer = scene.get(&format!("/v1/stats?window_seconds={window}")).await;
        assert_eq!(answer.refused(), (422, "invalid_value"), "{window}");
        let said = answer.body["error"]["message"].as_str().unwrap();
        assert_eq!(said, "window_seconds must be between 1 and 31536000");
    }
    for window in ["", "-1", "x", "1.5", "99999999999999999999"] {
        let answer = scene.get(&format!("/v1/stats?window_seconds={window}")).await;
        assert_eq!(answer.refused(), (400, "invalid_query"), "{window}");
    }
}
