//! Lists: tables and JSON.

use serde_json::Value;

use super::{Scene, ended, first_cells, json_lines};

#[tokio::test]
async fn lists_are_tables_or_json() {
    let scene = Scene::new();
    scene.mainstay(&["run", "--session", "s", "hi"]).await.printed();
    let run = scene.mainstay(&["runs", "--json"]).await.json()[0]["id"].as_str().unwrap().to_owned();
    let lists: [(&[&str], usize, &str); 7] = [
        (&["sessions"], 1, "id workspace agent title idle_ttl_ms assignment execution last_seq created_at updated_at"),
        (&["runs", "--session", "s"], 1, "id session_id status cause error queued_at claimed_at settled_at last_seq"),
        (&["runs", "--status", "failed"], 0, ""),
        (&["messages", "s"], 2, "id role parts"),
        (&["slots"], 5, "id workspace number state session_id run_id"),
        (&["show", &run], 1, "id status stderr"),
        (&["show", "s"], 1, "id last_seq current_run"),
    ];
    for (args, count, keys) in lists {
        let items = scene.mainstay(&[&["--json"], args].concat()).await.json();
        assert_eq!(items.len(), count, "{args:?}");
        for key in keys.split_whitespace() {
            assert!(items.iter().all(|item| item.get(key).is_some()), "{args:?} without {key}");
        }
        assert!(!scene.mainstay(args).await.printed().is_empty());
    }
    assert!(scene.mainstay(&["workers", "--json"]).await.json().is_empty());
    let swept = scene.mainstay(&["sweep", "--json"]).await.json();
    assert_eq!((swept.len(), &swept[0]["runs_settled"]), (1, &Value::from(0)));
    assert!(scene.mainstay(&["sweep"]).await.printed().contains("runs_settled"));

    let mut child = scene.command(&["runs", "--json"]).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(ended(child).await.printed(), "", "a reader that has gone is no failure");
}

#[tokio::test]
async fn tables_fit_and_their_ids_are_taken() {
    let scene = Scene::new();
    scene
        .mainstay(&["run", "first, with a title that is longer than any table has room for, in 80 columns"])
        .await
        .printed();
    scene.mainstay(&["run", "second"]).await.printed();
    scene
        .mainstay(&[
            "run",
            "--session",
            "a-name-that-a-client-made-up",
            "/fail it broke in a way that takes long to tell",
        ])
        .await;
    for args in [&["sessions"] as &[&str], &["sessions", "--tree"], &["runs"], &["slots"], &["workers"]] {
        let table = scene.mainstay(args).await.printed();
        for line in table.lines() {
            assert!(line.chars().count() <= 80, "{args:?}: {line}");
        }
        let wide = ended(scene.command(args).env("COLUMNS", "200").spawn().unwrap()).await.printed();
        assert!(wide.len() >= table.len(), "{wide}");
    }
    let table = scene.mainstay(&["runs"]).await.printed();
    let whole = scene.mainstay(&["runs", "--json"]).await.json();
    for (short, run) in first_cells(&table).iter().zip(&whole) {
        let id = run["id"].as_str().unwrap();
        assert!(id.starts_with(short.as_str()) && short.len() < id.len(), "{table}");
        assert_eq!(scene.mainstay(&["show", short, "--json"]).await.json()[0]["id"], id);
        assert_eq!(scene.mainstay(&["cancel", short, "--json"]).await.json()[0]["id"], id);
    }
    let sessions = scene.mainstay(&["sessions"]).await.printed();
    let short = first_cells(&sessions).into_iter().find(|id| !id.starts_with('a')).unwrap();
    for args in
        [&["messages", &short] as &[&str], &["session", &short], &["runs", "--session", &short], &["close", &short]]
    {
        scene.mainstay(args).await.printed();
    }
    // Another turn of a session does not create a session.
    let before = scene.ask("SELECT CAST(count(*) AS TEXT) FROM sessions");
    scene.mainstay(&["run", "--session", &short, "again"]).await.printed();
    scene.mainstay(&["send", &short, "once more"]).await;
    assert_eq!(scene.ask("SELECT CAST(count(*) AS TEXT) FROM sessions"), before);
    scene.mainstay(&["show", "a-name"]).await.printed();

    let first = whole[0]["id"].as_str().unwrap();
    let stderr = scene.mainstay(&["show", &first[..5]]).await.refused(1);
    assert!(stderr.contains("several ids") && stderr.contains(first), "{stderr}");
    let stderr = scene.mainstay(&["show", "--json", &first[..5]]).await.refused(1);
    assert_eq!(json_lines(&stderr)[0]["error"]["code"], "ambiguous_id");
}

#[tokio::test]
async fn a_session_is_made_told_and_shown_with_what_works_for_it() {
    let scene = Scene::new();
    assert!(scene.mainstay(&["session", "a"]).await.refused(1).contains("there is no database"));
    let shown = scene.mainstay(&["session", "a", "--new", "--set", "model=x=y", "--set", "extra.k=v"]).await.printed();
    assert!(shown.contains("option model: ignored") && shown.contains("option extra.k: ignored"), "{shown}");
    let made = ["--json", "session", "b", "--new", "--spawned-by", "a", "--label", "tests", "--oneshot"];
    let told = scene.mainstay(&made).await.json().remove(0);
    assert_eq!((&told["session"]["spawned_by"], &told["session"]["mode"]), (&"a".into(), &"oneshot".into()));
    assert!(scene.mainstay(&["session", "c", "--new", "--spawned-by", "x"]).await.refused(1).contains("\"x\""));

    let set = ["--json", "session", "a", "--unset", "extra.k", "--set", "timeout_seconds=60", "--reset"];
    let told = scene.mainstay(&set).await.json().remove(0);
    assert_eq!(told["told"]["options"], serde_json::json!({"model": "x=y", "timeout_seconds": 60}));
    assert_eq!(told["children"][0]["id"], "b");
    let wrong = scene.mainstay(&["session", "a", "--set", "modle=x", "--set", "mode=plan"]).await.refused(1);
    assert!(wrong.contains("the nearest known one is model"), "{wrong}");
    assert!(!scene.mainstay(&["session", "a"]).await.printed().contains("plan"));
    assert!(scene.mainstay(&["session", "nobody"]).await.refused(1).contains("nobody"));

    let run = scene.mainstay(&["run", "--session", "b", "/exit 3"]).await;
    assert_eq!(run.code, Some(1));
    assert!(run.stderr.contains("`mainstay show` prints what it wrote"), "{}", run.stderr);
    let tree = scene.mainstay(&["sessions", "--tree"]).await.printed();
    let rows: Vec<_> = tree.lines().skip(1).map(|line| line.split_whitespace().take(4).collect::<Vec<_>>()).collect();
    assert_eq!(rows, [["a", "-", "idle", "demo"], ["·", "b", "tests", "failed"]]);
    assert!(tree.contains("exit code 3"), "{tree}");
    let queued = scene.mainstay(&["-q", "--json", "send", "b", "later"]).await.json().remove(0);
    assert!(scene.mainstay(&["cancel", "a", "--children"]).await.printed().starts_with("1 runs below"));
    let run = scene.mainstay(&["--json", "show", queued["id"].as_str().unwrap()]).await.json().remove(0);
    assert_eq!((&run["status"], &run["usage"]), (&"cancelled".into(), &serde_json::json!({})));
}

#[tokio::test]
async fn a_live_agent_is_asked_to_end_also_while_no_daemon_is_there() {
    let scene = Scene::new();
    scene.mainstay(&["session", "a", "--new"]).await.printed();
    let ids = ["0192f0c1-2345-7000-8000-0123456789ab", "0192f0c1-2345-7000-8000-0123456789ac"];
    {
        let db = rusqlite::Connection::open(scene.dir.path().join("mainstay.db")).unwrap();
        let add = "INSERT INTO backends (id, agent, workspace, state, created_at, used_at, stopped_at)
                   VALUES (?1, ?2, 'default', ?3, 1, 1, ?4)";
        db.execute(add, (ids[0], "live", "running", None::<i64>)).unwrap();
        db.execute(add, (ids[1], "gone", "stopped", Some(2))).unwrap();
    }
    let stopped = scene.mainstay(&["backends", "stop", ids[0]]).await;
    assert_eq!((stopped.code, stopped.stdout), (Some(0), format!("{} ends as soon as no turn is on it\n", ids[0])));
    assert!(stopped.stderr.contains("no daemon"), "{}", stopped.stderr);
    assert_eq!(scene.ask("SELECT group_concat(close_when_idle, '') FROM backends ORDER BY id"), "10");
    let listed = scene.mainstay(&["--json", "backends"]).await.json();
    assert_eq!((listed.len(), &listed[0]["id"], &listed[0]["close_when_idle"]), (2, &ids[0].into(), &true.into()));
    assert_eq!(scene.mainstay(&["backends", "stop", ids[1]]).await.printed(), format!("{} has ended\n", ids[1]));
    let shown = scene.mainstay(&["--json", "backends", "stop", ids[1], "--force"]).await.json();
    assert_eq!(shown[0]["state"], "stopped");
    let unknown = scene.mainstay(&["backends", "stop", "0192f0c1-2345-7000-8000-0123456789ad"]).await.refused(1);
    assert!(unknown.contains("0123456789ad"), "{unknown}");
}
