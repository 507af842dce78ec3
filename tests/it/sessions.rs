//! The options that a session passes to its agent, how it resumes the agent's own session, and sessions that work for others.

use mainstay::engine::{CreateSession, EngineError};
use mainstay::failure::ErrorClass;
use mainstay::id::SessionId;
use mainstay::run::{Run, Status};
use mainstay::session::SessionMode;
use serde_json::{Map, Value, json};

use crate::scene::{Scene, says};

/// An agent that gets its own session as the second argument; the first is the message.
async fn scene(script: &str) -> Scene {
    // A JSON string is a TOML string.
    let script = Value::from(script);
    let agent = format!(
        "[agents.a]\ndriver = \"openclaw\"\nkill_grace = \"500ms\"\n\
         command = [\"sh\", \"-c\", {script}, \"agent\", \"{{message}}\", \"{{agent_session}}\"]\n\
         [workspaces.a]\nagent = \"a\"\n"
    );
    Scene::new(&[], &agent).await
}

fn id(session: &str) -> SessionId {
    session.parse().unwrap()
}

fn map(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

/// Stores the agent's own session as if the agent had reported it in a run.
async fn remember(scene: &Scene, run: &Run, agent_session: &str) {
    let run = run.id.to_string();
    let insert = "INSERT INTO agent_sessions (session_key, agent, id, origin, run_key, began_at, used_at)
         SELECT session_key, agent, ?2, 'new', key, 0, 0 FROM runs WHERE id = ?1";
    write(scene, insert, [&run, agent_session]).await;
    let set = "UPDATE sessions SET agent_session = ?2 WHERE key = (SELECT session_key FROM runs WHERE id = ?1)";
    write(scene, set, [&run, agent_session]).await;
}

/// Writes to the database as another program.
async fn write(scene: &Scene, sql: &'static str, values: [&str; 2]) {
    let (db, values) = (scene.dir.path().join("m.db"), values.map(str::to_owned));
    let write = move || {
        let other = rusqlite::Connection::open(db).unwrap();
        other.busy_timeout(crate::scene::TIMEOUT).unwrap();
        other.execute(sql, values).unwrap();
    };
    tokio::task::spawn_blocking(write).await.unwrap();
}

#[tokio::test]
async fn a_turn_that_cannot_resume_is_tried_again_in_the_same_session() {
    for failure in ["exit 7", "kill -9 $$", "exit 0"] {
        let scene =
            scene(&format!("echo \"$2\" >> resumed; test -e $1 || {{ touch $1; {failure}; }}; {}", says("ok"))).await;
        std::fs::write(scene.dir.path().join("first"), "").unwrap();
        let first = scene.turn("a", "s", "first").await;
        remember(&scene, &first, "old").await;
        let second = scene.turn("a", "s", "second").await;
        assert_eq!((second.status, second.attempts), (Status::Completed, 2), "{failure}");
        let story = scene.story(second.id).await;
        assert_eq!(story, "start start-step text-start text-delta=ok text-end finish-step finish=stop");
        let resumed = std::fs::read_to_string(scene.dir.path().join("resumed")).unwrap();
        assert_eq!(resumed, "\nold\nold\n");
        let kept = scene.engine.session(&id("s")).await.unwrap().agent_session.unwrap();
        assert_eq!((kept.id.as_str(), kept.lost_in), ("old", None));
    }
}

#[tokio::test]
async fn an_agent_that_fails_to_resume_twice_keeps_its_session() {
    let scene = scene(&format!("test \"$1\" = fine || exit 7; {}", says("ok"))).await;
    let first = scene.turn("a", "s", "fine").await;
    remember(&scene, &first, "old").await;
    let second = scene.turn("a", "s", "hi").await;
    assert_eq!((second.status, second.attempts), (Status::Failed, 2));
    assert_eq!((second.cause.as_deref(), second.error_class), (Some("exit_code"), Some(ErrorClass::Crashed)));
    assert_eq!(second.advice, Some(ErrorClass::Crashed.advice()));
    let kept = scene.engine.session(&id("s")).await.unwrap().agent_session.unwrap();
    assert_eq!((kept.id.as_str(), kept.lost_in, kept.run_id), ("old", None, first.id));
    assert_eq!(scene.turn("a", "s", "fine").await.attempts, 1);
}

#[tokio::test]
async fn a_turn_that_has_spoken_is_not_tried_again() {
    let scene = scene(&format!("{}; test -z \"$2\" || exit 7", says("word"))).await;
    let first = scene.turn("a", "s", "hi").await;
    remember(&scene, &first, "old").await;
    let second = scene.turn("a", "s", "hi").await;
    assert_eq!((second.status, second.attempts), (Status::Failed, 1));
    assert_eq!(scene.engine.session(&id("s")).await.unwrap().agent_session.unwrap().id, "old");
}

#[tokio::test]
async fn after_a_reset_the_next_turn_begins_anew() {
    let scene = scene(&format!("test -z \"$2\" || exit 7; {}", says("new"))).await;
    let first = scene.turn("a", "s", "hi").await;
    remember(&scene, &first, "old").await;
    scene.engine.update_options(&id("s"), map(json!({"model": "m"}))).await.unwrap();
    let session = scene.engine.reset_session(&id("s"), false).await.unwrap();
    assert_eq!((session.agent_session, session.options.model.as_deref()), (None, Some("m")));
    assert_eq!(scene.engine.list_agent_sessions(&id("s")).await.unwrap()[0].lost_in, None);
    let second = scene.turn("a", "s", "hi").await;
    assert_eq!((second.status, second.attempts), (Status::Completed, 1));
    assert_eq!(scene.engine.reset_session(&id("s"), true).await.unwrap().options.model, None);
    assert!(matches!(scene.engine.reset_session(&id("t"), true).await, Err(EngineError::NotFound { .. })));
}

#[tokio::test]
async fn a_mode_that_the_agent_does_not_offer_is_refused_once_it_said_what_it_offers() {
    let scene = scene(&says("word")).await;
    let run = scene.turn("a", "s", "hi").await;
    let set = async |mode: &str| scene.engine.update_options(&id("s"), map(json!({"mode": mode}))).await;
    assert!(set("nonsense").await.is_ok(), "nothing is known so far");
    let offers = r#"{"modes": {"availableModes": [{"id": "ask"}, {"id": "plan"}]}}"#;
    write(
        &scene,
        "UPDATE sessions SET advertised = ?2 WHERE key = (SELECT session_key FROM runs WHERE id = ?1)",
        [&run.id.to_string(), offers],
    )
    .await;
    let refused = set("other").await.unwrap_err();
    assert!(matches!(refused, EngineError::InvalidOption(_)) && refused.to_string().contains("ask, plan"), "{refused}");
    let refused = scene.engine.replace_options(&id("s"), map(json!({"mode": "other"}))).await;
    assert!(matches!(refused, Err(EngineError::InvalidOption(_))));
    let kept = scene.engine.session_options(&id("s")).await.unwrap();
    assert_eq!((kept.options.mode.as_deref(), kept.effects["mode"].as_str()), (Some("nonsense"), "ignored"));
    assert_eq!(set("plan").await.unwrap().options.mode.as_deref(), Some("plan"));
}

#[tokio::test]
async fn a_oneshot_session_begins_anew_each_time() {
    let scene = scene(&format!("test -z \"$2\" || exit 7; {}", says("new"))).await;
    let create = CreateSession {
        id: Some(id("s")),
        workspace: Some("a".parse().unwrap()),
        mode: Some(SessionMode::Oneshot),
        ..CreateSession::default()
    };
    scene.engine.create_session(create).await.unwrap();
    let first = scene.turn("a", "s", "hi").await;
    remember(&scene, &first, "old").await;
    let second = scene.turn("a", "s", "hi").await;
    assert_eq!((second.status, second.attempts), (Status::Completed, 1));
}

#[tokio::test]
async fn a_session_may_work_elsewhere_and_take_less_time() {
    let tell = r#"printf '{"event":"agent","stream":"assistant","data":{"delta":"%s"}}\n' "$PWD""#;
    let script = format!("test \"$1\" = where && {tell} && exit; {}; exec tail -f /dev/null", says("begun"));
    let scene = scene(&script).await;
    let elsewhere = scene.dir.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let options = map(json!({"cwd": elsewhere, "timeout_seconds": 1}));
    let create = CreateSession { id: Some(id("s")), options: Some(options), ..CreateSession::default() };
    let create = CreateSession { workspace: Some("a".parse().unwrap()), ..create };
    scene.engine.create_session(create).await.unwrap();
    let run = scene.turn("a", "s", "where").await;
    assert_eq!((run.status, run.progress.as_deref()), (Status::Completed, elsewhere.to_str()));
    let run = scene.turn("a", "s", "stay").await;
    assert_eq!((run.status, run.cause.as_deref()), (Status::TimedOut, Some("turn_timeout")));

    std::fs::remove_dir(&elsewhere).unwrap();
    let run = scene.turn("a", "s", "where").await;
    assert_eq!((run.status, run.cause.as_deref()), (Status::Failed, Some("spawn_failed")));
    let there = format!("the directory {} is not there: create it, or change", elsewhere.display());
    assert!(run.error.unwrap().contains(&there));
    std::fs::write(&elsewhere, "").unwrap();
    let error = scene.turn("a", "s", "where").await.error.unwrap();
    let expected = format!("{} is no directory: change the option `cwd` of the session", elsewhere.display());
    assert!(error.ends_with(&expected), "{error}");
    scene.engine.update_options(&id("s"), map(json!({"cwd": null}))).await.unwrap();
    let run = scene.turn("a", "s", "where").await;
    assert_eq!(run.progress.as_deref(), scene.dir.path().to_str());
}

#[tokio::test]
async fn options_are_judged_again_when_a_turn_begins() {
    let tell = r#"printf '{"event":"agent","stream":"assistant","data":{"delta":"%s"}}\n' "$PWD""#;
    let scene = scene(tell).await;
    let (inside, outside) = (scene.dir.path().join("inside"), tempfile::tempdir().unwrap());
    std::fs::create_dir(&inside).unwrap();
    let link = scene.dir.path().join("link");
    std::os::unix::fs::symlink(&inside, &link).unwrap();
    let create = CreateSession { id: Some(id("s")), workspace: Some("a".parse().unwrap()), ..CreateSession::default() };
    scene.engine.create_session(create).await.unwrap();
    scene.engine.update_options(&id("s"), map(json!({"cwd": link}))).await.unwrap();
    let run = scene.turn("a", "s", "where").await;
    assert_eq!(run.progress.as_deref(), inside.canonicalize().unwrap().to_str());
    // As another session could that shares the directory.
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(outside.path(), &link).unwrap();
    let refused = async |list: &str| {
        let run = scene.turn("a", "s", "where").await;
        let error = run.error.unwrap();
        assert_eq!((run.status, run.cause.as_deref(), run.progress), (Status::Failed, Some("not_allowed"), None));
        assert!(error.contains(list), "{error}");
    };
    refused("`cwd_roots` of [workspaces.a]").await;
    // As an earlier config allowed it.
    for (options, list) in [
        (json!({"cwd": "/"}), "`cwd_roots`"),
        (json!({"mode": "bypassPermissions"}), "`allow_modes` of [agents.a]"),
        (json!({"extra": {"sandbox": "danger-full-access"}}), "`allow_modes`"),
    ] {
        write(&scene, "UPDATE sessions SET options = ?2 WHERE id = ?1", ["s", &options.to_string()]).await;
        refused(list).await;
    }
    scene.engine.replace_options(&id("s"), map(json!({}))).await.unwrap();
    assert_eq!(scene.turn("a", "s", "where").await.status, Status::Completed);
}

#[tokio::test]
async fn what_a_session_is_at_shows_while_it_goes_on() {
    let scene = scene(&format!("{}; exec tail -f /dev/null", says("Looking around."))).await;
    let run = scene.send("a", "s", "hi").await;
    scene.said(run.id, "around.").await;
    assert_eq!(scene.engine.run(run.id).await.unwrap().progress.as_deref(), Some("Looking around."));
    let session = scene.engine.session(&id("s")).await.unwrap();
    assert_eq!((session.progress.as_deref(), session.last_outcome), (Some("Looking around."), None));
    scene.engine.cancel_run(run.id).await.unwrap();
    scene.settled(run.id).await;
    assert_eq!(scene.engine.session(&id("s")).await.unwrap().last_outcome, Some(Status::Cancelled));
}

#[tokio::test]
async fn an_agent_of_another_protocol_is_told_as_such() {
    let scene = scene("echo plain words; echo more").await;
    let run = scene.turn("a", "s", "hi").await;
    assert_eq!((run.cause.as_deref(), run.error_class), (Some("no_output"), Some(ErrorClass::Protocol)));
    assert_eq!(run.malformed_lines, 2);
}

#[tokio::test]
async fn children_are_cancelled_only_when_that_is_asked_for() {
    let scene = scene(&format!("{}; exec tail -f /dev/null", says("begun"))).await;
    let child = async |name: &str, parent: &str| {
        let create = CreateSession {
            id: Some(id(name)),
            workspace: Some("a".parse().unwrap()),
            spawned_by: Some(id(parent)),
            label: Some(format!("for {parent}")),
            ..CreateSession::default()
        };
        scene.engine.create_session(create).await.map(|(session, _)| session)
    };
    assert!(matches!(child("early", "parent").await, Err(EngineError::NotFound { what: "parent session", .. })));
    let parent = scene.send("a", "parent", "hi").await;
    child("child", "parent").await.unwrap();
    let grandchild = child("grandchild", "child").await.unwrap();
    assert_eq!((grandchild.spawned_by, grandchild.label.as_deref()), (Some(id("child")), Some("for child")));
    let running = scene.send("a", "child", "hi").await;
    let queued = scene.send("a", "grandchild", "hi").await;
    let behind = scene.send("a", "grandchild", "later").await;
    for run in [&parent, &running] {
        scene.said(run.id, "begun").await;
    }
    scene.engine.cancel_session(&id("parent")).await.unwrap();
    assert_eq!(scene.settled(parent.id).await.status, Status::Cancelled);
    assert_eq!(scene.engine.run(running.id).await.unwrap().status, Status::Running);

    let below = scene.engine.list_descendants(&id("parent"), 0, 10).await.unwrap();
    assert_eq!(below.iter().map(|(_, one)| one.id.as_str()).collect::<Vec<_>>(), ["child", "grandchild"]);
    let mut cancelled = scene.engine.cancel_descendants(&id("parent")).await.unwrap();
    cancelled.sort_unstable_by_key(ToString::to_string);
    let mut expected = vec![running.id, queued.id, behind.id];
    expected.sort_unstable_by_key(ToString::to_string);
    assert_eq!(cancelled, expected);
    for run in expected {
        assert_eq!(scene.settled(run).await.status, Status::Cancelled);
    }
    assert_eq!(scene.engine.cancel_descendants(&id("parent")).await.unwrap(), []);
}
