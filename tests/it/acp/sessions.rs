//! How a turn gets a session of the agent, and what the agent is told about it.

use mainstay::failure::ErrorClass;
use serde_json::json;

use crate::acp::scene::Scene;

fn is(session: &(String, String), id: &str, origin: &str) -> bool {
    session.0 == id && session.1 == origin
}

#[tokio::test]
async fn a_live_session_is_used_again_and_nothing_else() {
    let scene = Scene::new("load resume").await;
    let first = scene.turn("say one", None).await;
    let (id, origin) = first.session();
    assert_eq!((origin.as_str(), first.text().as_str(), first.code), ("new", "one", Some(0)));
    assert_eq!(first.stop_reason(), Some("end_turn"));
    assert_eq!(first.said.last(), Some(&json!({"mainstay": "ended"})));
    let second = scene.turn("history", Some(&id)).await;
    assert!(is(&second.session(), &id, "reused"));
    assert_eq!(second.text(), "say one");
    assert_eq!(scene.sent("session/new"), [json!({"cwd": scene.work(), "mcpServers": []})]);
    assert!(scene.sent("session/load").is_empty() && scene.sent("session/resume").is_empty());
}

#[tokio::test]
async fn session_is_resumed_or_loaded_after_the_bridge_was_killed() {
    for (can, origin) in [("load resume", "resumed"), ("load", "loaded"), ("load resume resume-fails", "loaded")] {
        let mut scene = Scene::new(can).await;
        let (id, _) = scene.turn("say one", None).await.session();
        scene.end("-KILL").await;
        scene.start().await;
        let turn = scene.turn("history", Some(&id)).await;
        assert!(is(&turn.session(), &id, origin), "{can}: {turn:#?}");
        assert_eq!(turn.text(), "say one", "{can}");
        assert!(turn.own("session")["cost_before"].is_null());
    }
}

#[tokio::test]
async fn a_session_that_is_lost_gets_a_new_one_in_its_place() {
    for can in ["", "load", "resume", "load resume"] {
        let scene = Scene::new(can).await;
        let turn = scene.turn("say one", Some("lost")).await;
        let (id, origin) = turn.session();
        assert!(id != "lost" && origin == "new" && turn.text() == "one", "{can}: {turn:#?}");
    }
}

#[tokio::test]
async fn replaced_and_single_turn_sessions_are_closed() {
    let scene = Scene::new("close").await;
    let (old, _) = scene.turn("say one", None).await.session();
    let (new, origin) = scene.turn("say two", None).await.session();
    assert!(old != new && origin == "new");
    assert_eq!(scene.sent("session/close"), [json!({"sessionId": old})]);
    let turn = scene.relay("say three", json!({"session": "other", "oneshot": true})).await.end().await;
    assert_eq!(scene.sent("session/close").last(), Some(&json!({"sessionId": turn.session().0})));
}

#[tokio::test]
async fn late_chunks_and_results_belong_to_their_turn() {
    let scene = Scene::new("").await;
    let turn = scene.turn("late", None).await;
    assert_eq!((turn.text().as_str(), turn.code), ("in time, and late", Some(0)));
    assert!(turn.said.iter().any(|line| line["params"]["update"]["content"][0]["content"]["text"] == "seen"));
    assert_eq!(turn.outcome().1, mainstay::run::Outcome::completed());
}

#[tokio::test]
async fn words_after_a_turn_are_not_in_the_next_one() {
    let scene = Scene::new("").await;
    let file = |name: &str| scene.dir.path().join(name).display().to_string();
    let first = scene.turn(&format!("later {}", file("go")), None).await;
    assert_eq!(first.text(), "in time");
    let (id, _) = first.session();
    let second = scene.turn(&format!("meanwhile {}", file("go")), Some(&id)).await;
    assert_eq!(second.text(), "one two", "{second:#?}");
    let early = |turn: &crate::acp::scene::Turn| turn.said.iter().any(|line| line.to_string().contains("early title"));
    assert_eq!((early(&first), early(&second)), (true, false));
    assert!(second.said.iter().any(|line| line["params"]["update"]["title"] == "A late title"));
    // An agent that numbers its messages from the start in each turn loses no words.
    assert_eq!(scene.turn("again", Some(&id)).await.text(), "Hello world! ".repeat(3));
    assert_eq!(scene.turn("again", Some(&id)).await.text(), "Hello world! ".repeat(3));
}

#[tokio::test]
async fn history_that_comes_late_is_not_taken_for_new() {
    let mut scene = Scene::new("load load-late").await;
    let (id, _) = scene.turn("say one", None).await.session();
    scene.end("-KILL").await;
    scene.start().await;
    let turn = scene.turn("history", Some(&id)).await;
    assert!(is(&turn.session(), &id, "loaded"));
    assert_eq!(turn.text(), "say one");
    assert!(!turn.said.iter().any(|line| line.to_string().contains("old")), "{turn:#?}");
}

#[tokio::test]
async fn a_conversation_is_kept_when_loading_it_fails() {
    let mut scene = Scene::new("load load-busy").await;
    let (id, _) = scene.turn("say one", None).await.session();
    scene.end("-KILL").await;
    scene.start().await;
    let turn = scene.turn("say two", Some(&id)).await;
    let message = turn.own("error")["message"].as_str().unwrap();
    assert!(message.contains("disk busy") && message.contains("kept"), "{message}");
    assert_eq!((scene.sent("session/new").len(), scene.sent("session/load").len()), (1, 3), "{turn:#?}");
    assert!(!turn.said.iter().any(|line| line["mainstay"] == "session"));

    let mut scene = Scene::new("load load-busy-once").await;
    let (id, _) = scene.turn("say one", None).await.session();
    scene.end("-KILL").await;
    scene.start().await;
    assert!(is(&scene.turn("say two", Some(&id)).await.session(), &id, "loaded"));
}

#[tokio::test]
async fn a_live_session_that_fails_at_once_is_taken_up_again() {
    for (can, origin) in [("load", "loaded"), ("resume", "resumed"), ("", "new")] {
        let scene = Scene::new(can).await;
        let (id, _) = scene.turn("evict", None).await.session();
        let turn = scene.turn("history", Some(&id)).await;
        let sessions: Vec<_> = turn.said.iter().filter(|line| line["mainstay"] == "session").collect();
        assert_eq!(sessions.last().unwrap()["origin"], origin, "{can}: {turn:#?}");
        let is_told = turn.said.iter().any(|line| line["mainstay"] == "notice");
        assert_eq!((turn.text().as_str(), is_told), (if can.is_empty() { "" } else { "evict" }, can.is_empty()));
        assert_eq!(turn.outcome().1, mainstay::run::Outcome::completed(), "{can}");
    }
}

#[tokio::test]
async fn an_error_of_the_provider_is_no_fault_of_the_session() {
    let scene = Scene::new("load").await;
    let (id, _) = scene.turn("say one", None).await.session();
    for (data, class) in [
        (json!({"status": 429}), ErrorClass::RateLimit),
        (json!(r#"{"error":{"type":"overloaded_error","message":"Slow down"}}"#), ErrorClass::Overloaded),
    ] {
        let error = json!({"code": -32603, "message": "Internal error", "data": data});
        let (_, outcome) = scene.turn(&format!("fail {error}"), Some(&id)).await.outcome();
        assert_eq!(outcome.class, Some(class), "{outcome:?}");
    }
    assert_eq!((scene.sent("session/load").len(), scene.sent("session/prompt").len()), (0, 3));
}

#[tokio::test]
async fn a_turn_knows_what_its_session_had_cost_before() {
    let scene = Scene::new("").await;
    let first = scene.turn("cost 0.5", None).await;
    let second = scene.turn("cost 0.75", Some(&first.session().0)).await;
    let before = [&first, &second].map(|turn| turn.own("session")["cost_before"].clone());
    assert_eq!(before, [json!(0.0), json!(0.5)]);
}

#[tokio::test]
async fn options_are_told_when_they_are_offered_and_new() {
    let mut scene = Scene::new("load modes").await;
    let wanted = |mode: &str| json!({"options": {"mode": mode, "model": "no such option"}});
    let first = scene.relay("say one", wanted("plan")).await.end().await;
    let (id, _) = first.session();
    assert_eq!(first.own("session")["modes"]["currentModeId"], "plan");
    let set = json!({"sessionId": id, "modeId": "plan"});
    assert_eq!(scene.sent("session/set_mode"), std::slice::from_ref(&set));
    let mut again = wanted("plan");
    again["agent_session"] = json!(id);
    scene.relay("say two", again.clone()).await.end().await;
    assert_eq!(scene.sent("session/set_mode").len(), 1);
    scene.end("-KILL").await;
    scene.start().await;
    scene.relay("say three", again.clone()).await.end().await;
    assert_eq!(scene.sent("session/set_mode"), [set.clone(), set]);
    again["options"] = json!({"mode": "of another agent"});
    scene.relay("say four", again).await.end().await;
    assert_eq!(scene.sent("session/set_mode").len(), 2);
    assert!(scene.sent("session/set_config_option").is_empty());
}

#[tokio::test]
async fn an_option_is_refused_by_what_the_agent_says_it_is() {
    let scene = Scene::new("config").await;
    let modes = json!({"agent": {"name": "agents.a", "allowed": {"modes": ["quick"]}}});
    let wanted =
        |style: &str, rules: &serde_json::Value| json!({"options": {"extra": {"style": style}}, "rules": rules});
    let refused = scene.relay("say one", wanted("careful", &modes)).await.end().await;
    let said = refused.own("error")["message"].as_str().unwrap();
    assert!(said.contains("`allow_modes` of [agents.a]") && refused.text().is_empty(), "{said}");
    let refused = scene.relay("say one", wanted("yolo", &json!({}))).await.end().await;
    assert!(refused.own("error")["message"].as_str().unwrap().contains("option style"), "{refused:#?}");
    let by_category = json!({"options": {"extra": {"misc": "true"}}});
    let refused = scene.relay("say one", by_category).await.end().await;
    assert!(refused.own("error")["message"].as_str().unwrap().contains("option allow-all"), "{refused:#?}");
    assert!(scene.sent("session/set_config_option").is_empty() && scene.sent("session/prompt").is_empty());
    let allowed = scene.relay("say two", wanted("quick", &modes)).await.end().await;
    assert_eq!((allowed.text().as_str(), scene.sent("session/set_config_option").len()), ("two", 1));
}

#[tokio::test]
async fn a_mode_that_is_cleared_or_refused_is_left() {
    let scene = Scene::new("modes").await;
    let set = || scene.sent("session/set_mode").into_iter().map(|set| set["modeId"].clone()).collect::<Vec<_>>();
    let (id, _) = scene.relay("say one", json!({"options": {"mode": "plan"}})).await.end().await.session();
    scene.turn("say two", Some(&id)).await;
    assert_eq!(set(), ["plan", "ask"], "the mode that it began in");
    scene.turn("switch plan", Some(&id)).await;
    scene.turn("switch yolo", Some(&id)).await;
    assert_eq!(set().len(), 2, "it may go into an allowed mode by itself");
    scene.turn("say three", Some(&id)).await;
    assert_eq!(set(), ["plan", "ask", "ask"]);
}

#[tokio::test]
async fn a_session_is_not_taken_up_in_a_refused_mode() {
    let mut scene = Scene::new("load modes in-yolo").await;
    // The operator has chosen this mode: the agent's sessions begin in it.
    let (id, _) = scene.turn("say one", None).await.session();
    scene.end("-KILL").await;
    scene.start().await;
    let wanted = |options: serde_json::Value| json!({"agent_session": id, "options": options});
    for options in [json!({}), json!({"mode": "not offered"})] {
        let refused = scene.relay("say two", wanted(options)).await.end().await;
        let said = refused.own("error")["message"].as_str().unwrap();
        assert!(said.contains("`allow_modes`") && refused.text().is_empty(), "{said}");
    }
    assert_eq!(scene.sent("session/prompt").len(), 1);
    assert_eq!(scene.relay("say three", wanted(json!({"mode": "plan"}))).await.end().await.text(), "three");
}

#[tokio::test]
async fn files_go_to_agents_that_take_them_others_refuse() {
    let files = json!({"attachments": [
        {"media_type": "image/png", "filename": "a.png", "url": "data:image/png;base64,aGk="},
        {"media_type": "text/plain", "filename": "b.txt", "url": "https://example.org/b.txt"},
    ]});
    let scene = Scene::new("images").await;
    let turn = scene.relay("blocks", files.clone()).await.end().await;
    let blocks: serde_json::Value = serde_json::from_str(&turn.text()).unwrap();
    assert_eq!(blocks[0], json!({"type": "image", "mimeType": "image/png", "data": "aGk="}));
    assert_eq!((&blocks[1]["type"], &blocks[1]["uri"]), (&json!("resource_link"), &json!("https://example.org/b.txt")));
    let scene = Scene::new("").await;
    let turn = scene.relay("blocks", files).await.end().await;
    assert!(turn.own("error")["message"].as_str().unwrap().contains("takes no images"), "{turn:#?}");
    assert_eq!(turn.code, Some(0));
    assert!(scene.sent("session/prompt").is_empty());
}

#[tokio::test]
async fn agent_without_a_login_says_so() {
    let scene = Scene::new("auth").await;
    let turn = scene.turn("say one", None).await;
    assert_eq!(turn.own("error")["class"], "authentication");
    assert_eq!(turn.code, Some(0));
}

#[tokio::test]
async fn two_sessions_of_one_agent_are_in_a_turn_at_the_same_time() {
    let scene = Scene::new("").await;
    let one = scene.relay("meet one two", json!({"session": "a"})).await;
    let two = scene.relay("meet two one", json!({"session": "b"})).await;
    let (one, two) = tokio::join!(one.end(), two.end());
    assert_eq!([one.text(), two.text()], ["met", "met"]);
    assert_ne!(one.session().0, two.session().0);
}

#[tokio::test]
async fn a_session_takes_one_turn_at_a_time() {
    let scene = Scene::new("").await;
    let mut first = scene.relay("wait", json!({})).await;
    first.until("waiting").await;
    let second = scene.relay("say two", json!({})).await;
    // A turn that waits for another one is cancelled like any other.
    let third = scene.relay("say never", json!({})).await;
    third.cancel().await;
    let third = third.end().await;
    assert!(!third.said.iter().any(|line| line["mainstay"] != "ended"), "{third:#?}");
    assert_eq!(scene.sent("session/prompt").len(), 1);
    first.cancel().await;
    let first = first.end().await;
    assert_eq!((first.text().as_str(), first.stop_reason()), ("waitingstopping", Some("cancelled")));
    assert_eq!(second.end().await.text(), "two");
    assert_eq!(scene.turn("say three", Some(&first.session().0)).await.text(), "three");
}
