//! Exit codes, errors, and the precedence of settings.

use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::{Scene, ended, json_lines, signal, until};

#[tokio::test]
async fn help_and_version_are_results() {
    let scene = Scene::new();
    let help = scene.mainstay(&["--help"]).await.printed();
    let commands =
        "serve run send attach cancel close sessions session runs messages slots workers show sweep doctor backup";
    for command in commands.split(' ') {
        assert!(help.contains(&format!("\n  {command} ")), "{command} is not in the help");
        assert!(scene.mainstay(&[command, "--help"]).await.printed().contains(&format!("Usage: mainstay {command}")));
    }
    assert_eq!(scene.mainstay(&["--version"]).await.printed(), format!("mainstay {}\n", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn wrong_usage_and_config_is_two_and_does_nothing() {
    let scene = Scene::new();
    scene.write("typo.toml", "[engine]\nleese = \"30s\"");
    scene.write("open.toml", "[server]\nauth = \"none\"");
    for (args, said) in [
        (&[] as &[&str], "Usage"),
        (&["serv"], "serve"),
        (&["send", "a"], "<TEXT>"),
        (&["send", "a/b", "hi"], "A–Z"),
        (&["send", "a", " "], "the message is empty"),
        (&["run"], "the message is empty"),
        (&["attach", "a", "--after", "-1"], "-1"),
        (&["runs", "--status", "done"], "timed_out"),
        (&["--config", "typo.toml", "runs"], "typo.toml:2: unknown key engine.leese: the nearest known one is lease"),
        (&["--config", "none.toml", "runs"], "none.toml"),
        (&["serve", "--listen", "localhost:1"], "such as 127.0.0.1:7717"),
        (&["--config", "open.toml", "serve", "--listen", "0.0.0.0:0"], "auth = \"none\""),
        (&["--config", "open.toml", "serve", "--token", "x"], "protect nothing"),
        (&["serve", "--token", ""], "token"),
    ] {
        let stderr = scene.mainstay(args).await.refused(2);
        assert!(stderr.contains(said), "{args:?}: {stderr}");
    }
    let stderr = ended(scene.command(&["runs"]).env("MAINSTAY_CONFIG", "none.toml").spawn().unwrap()).await.refused(2);
    assert!(stderr.contains("none.toml"), "{stderr}");
    assert!(!scene.dir.path().join("mainstay.db").exists());
}

#[tokio::test]
async fn what_is_not_there_is_one() {
    let scene = Scene::new();
    let stderr = scene.mainstay(&["runs"]).await.refused(1);
    assert!(stderr.contains("mainstay.db") && stderr.contains("--db"), "{stderr}");
    assert!(!scene.dir.path().join("mainstay.db").exists(), "looking makes nothing");

    scene.mainstay(&["run", "hi"]).await.printed();
    for command in ["attach", "show", "messages", "cancel", "close"] {
        let stderr = scene.mainstay(&[command, "nope"]).await.refused(1);
        assert!(stderr.contains("nope"), "{command}: {stderr}");
    }
    for args in [&["run", "--agent", "nope", "hi"], &["run", "--workspace", "nope", "hi"]] {
        assert!(scene.mainstay(args).await.refused(1).contains("nope"));
    }
    scene.write("notes.txt", "not a database, but long enough to be taken for the header of one, or so one may think");
    let before = std::fs::read(scene.dir.path().join("notes.txt")).unwrap();
    scene.mainstay(&["--db", "notes.txt", "run", "hi"]).await.refused(1);
    assert_eq!(std::fs::read(scene.dir.path().join("notes.txt")).unwrap(), before);
}

#[tokio::test]
async fn errors_are_json_where_json_was_asked_for() {
    let scene = Scene::new();
    scene.write("typo.toml", "[engine]\nleese = \"30s\"");
    for (args, code, kind, said) in [
        (&["--json"] as &[&str], 2, "usage", "--help"),
        (&["serv", "--json"], 2, "usage", "serve"),
        (&["send", "a", "--json"], 2, "usage", "<TEXT>"),
        (&["send", "a", " ", "--json"], 2, "usage", "the message is empty"),
        (&["--json", "--config", "typo.toml", "runs"], 2, "config", "typo.toml:2"),
        (&["--json", "runs"], 1, "failed", "mainstay.db"),
        (&["--json", "run", "--agent", "nope", "hi"], 1, "unknown_agent", "nope"),
    ] {
        let stderr = scene.mainstay(args).await.refused(code);
        let errors = json_lines(&stderr);
        let error = &errors[0]["error"];
        assert_eq!((errors.len(), error["code"].as_str()), (1, Some(kind)), "{args:?}: {stderr}");
        assert!(error["message"].as_str().unwrap().contains(said), "{args:?}: {stderr}");
    }
    scene.mainstay(&["run", "hi"]).await.printed();
    let stderr = scene.mainstay(&["show", "nope", "--json"]).await.refused(1);
    assert_eq!(json_lines(&stderr)[0]["error"]["code"], "not_found");
    assert!(scene.mainstay(&["--json", "--help"]).await.printed().contains("Usage"));
}

#[tokio::test]
async fn a_flag_goes_before_a_variable_before_the_file() {
    let scene = Scene::new();
    scene.write("mainstay.toml", "[engine]\nworkers = 3");
    let capacity = async |with: &[&str], variable: Option<&str>| {
        let mut command = scene.command(&[&["serve", "--listen", "127.0.0.1:0"], with].concat());
        if let Some(workers) = variable {
            command.env("MAINSTAY_WORKERS", workers);
        }
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        until(&mut lines, "listening on").await;
        let capacity = scene.mainstay(&["workers", "--json"]).await.json()[0]["capacity"].as_i64();
        signal(&child, Signal::TERM);
        assert_eq!(ended(child).await.code, Some(0));
        capacity.unwrap()
    };
    assert_eq!(capacity(&[], None).await, 3);
    assert_eq!(capacity(&[], Some("4")).await, 4);
    assert_eq!(capacity(&["--workers", "5"], Some("4")).await, 5);
}
