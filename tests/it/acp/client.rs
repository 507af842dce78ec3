//! The agent's requests to its client: permissions, files, terminals, and unknown methods.

use serde_json::{Value, json};

use crate::acp::scene::Scene;

#[tokio::test]
async fn a_permission_is_answered_whatever_its_id_and_only_once() {
    let scene = Scene::new("").await;
    for id in ["0", "\"0\"", "\"e3cf-aa\""] {
        let mut relay = scene.relay(&format!("permission {id}"), json!({"session": id})).await;
        let asked = relay.until("request_permission").await;
        relay.answer(&json!("another"), Some("yes")).await;
        relay.answer(&asked["id"], Some("no")).await;
        relay.answer(&asked["id"], Some("yes")).await;
        let turn = relay.end().await;
        assert_eq!(turn.text(), r#"{"outcome":{"optionId":"no","outcome":"selected"}}"#, "{id}");
        assert_eq!(turn.stop_reason(), Some("end_turn"));
    }
    let mut relay = scene.relay("permission 0", json!({})).await;
    let asked = relay.until("request_permission").await;
    relay.answer(&asked["id"], None).await;
    assert_eq!(relay.end().await.text(), r#"{"outcome":{"outcome":"cancelled"}}"#);
}

/// The response to a request of the agent.
async fn told(scene: &Scene, method: &str, params: Value) -> Value {
    let turn = scene.turn(&format!("ask {}", json!([method, params])), None).await;
    serde_json::from_str(&turn.text()).unwrap()
}

#[tokio::test]
async fn what_is_not_known_or_not_offered_is_not_there() {
    let scene = Scene::new("").await;
    let not_there = json!({"error": -32601});
    for method in ["_maker/drain", "fs/read_text_file", "fs/write_text_file", "terminal/create"] {
        assert_eq!(told(&scene, method, json!({"path": scene.work().join("a"), "content": ""})).await, not_there);
    }
    assert!(!scene.work().join("a").exists());
}

#[tokio::test]
async fn files_are_read_and_written_in_the_session_directory_only() {
    let access = json!({"read_files": true, "write_files": true, "terminals": false});
    let scene = Scene::with("", access).await;
    let (work, outside) = (scene.work(), scene.dir.path().join("outside"));
    std::fs::write(&outside, "secret").unwrap();
    std::fs::write(work.join("a"), "one\ntwo\nthree\n").unwrap();
    std::os::unix::fs::symlink(&outside, work.join("link")).unwrap();
    std::os::unix::fs::symlink("..", work.join("up")).unwrap();
    let read = async |path: &str, more: Value| {
        let mut params = json!({"path": work.join(path)});
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        told(&scene, "fs/read_text_file", params).await
    };
    assert_eq!(read("a", json!({})).await, json!({"content": "one\ntwo\nthree\n"}));
    assert_eq!(read("a", json!({"line": 2, "limit": 1})).await, json!({"content": "two\n"}));
    assert_eq!(read("none", json!({})).await, json!({"error": -32002}));
    for path in ["link", "../outside", "up/outside", outside.to_str().unwrap()] {
        assert_eq!(read(path, json!({})).await, json!({"error": -32602}), "{path}");
    }
    for path in ["link", "../outside", "up/outside", "up/new"] {
        let asked = json!({"path": work.join(path), "content": "changed"});
        assert_eq!(told(&scene, "fs/write_text_file", asked).await, json!({"error": -32602}), "{path}");
    }
    told(&scene, "fs/write_text_file", json!({"path": work.join("b"), "content": "new"})).await;
    assert_eq!(std::fs::read_to_string(work.join("b")).unwrap(), "new");
    assert_eq!(std::fs::read_to_string(&outside).unwrap(), "secret");
    assert!(!scene.dir.path().join("new").exists());
}

#[tokio::test]
async fn terminal_runs_in_the_session_directory_and_ends_with_turn() {
    let access = json!({"read_files": false, "write_files": false, "terminals": true});
    let scene = Scene::with("", access).await;
    let turn = scene.turn("terminal pwd; echo oops >&2; exit 3", None).await;
    assert!(turn.text().contains(r#""exitCode":3"#), "{}", turn.text());
    assert!(turn.text().contains("work") && turn.text().contains("oops"), "{}", turn.text());
    let create = json!({"command": "sh", "args": ["-c", "echo $$ > pid; exec tail -f /dev/null"]});
    assert!(told(&scene, "terminal/create", create).await["terminalId"].is_string());
    // The tool may have been killed before it wrote its pid.
    let pid = std::fs::read_to_string(scene.work().join("pid")).unwrap_or_default();
    assert!(pid.is_empty() || !std::path::Path::new("/proc").join(pid.trim()).exists());
    let outside = json!({"command": "true", "cwd": "/"});
    assert_eq!(told(&scene, "terminal/create", outside).await, json!({"error": -32602}));
}
