//! `mainstay agents`: the survey of what is installed.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use testkit::within;

use super::{Scene, ended};

/// How many `sleep` processes have this duration.
fn asleep(duration: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let arguments = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    arguments.filter(|arguments| arguments.starts_with(format!("sleep\0{duration}").as_bytes())).count()
}

#[tokio::test]
async fn interrupted_survey_leaves_no_program_running() {
    let scene = Scene::new();
    let slept = format!("7703.{}", std::process::id());
    scene.write("hangs", &format!("#!/bin/sh\nsleep {slept} & setsid sleep {slept} & exec sleep {slept}\n"));
    let program = scene.dir.path().join("hangs");
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    scene.write("mainstay.toml", &format!("[agents.hangs]\ndriver = \"acp\"\ncommand = [{program:?}]\n"));
    let survey = scene.command(&["agents"]).spawn().unwrap();
    let until = async |count: usize| {
        within(async {
            while asleep(&slept) != count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    };
    until(3).await;
    let pid = i32::try_from(survey.id().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::INT).unwrap();
    assert_eq!(ended(survey).await.code, Some(130));
    until(0).await;
}

#[tokio::test]
async fn agents_say_what_is_found_of_them_and_how_to_get_the_others() {
    let scene = Scene::new();
    let program = |name: &str, script: &str| {
        scene.write(name, &format!("#!/bin/sh\n{script}\n"));
        let path = scene.dir.path().join(name);
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    // One prints its version and exits, one never ends and leaves a process running, one fails.
    program("claude", "echo; echo 1.2.3 Claude; cat");
    // A unique number: the same test may run in another checkout on this machine.
    let slept = format!("7701.{}", std::process::id());
    let hangs = program("hangs", &format!("sleep {slept} & cat </dev/zero >/dev/null"));
    let fails = program("fails", "echo 'no version'; exit 3");
    let own = program("own", "touch started; echo 1.0");
    let agent = |name: &str, driver: &str, program: &str| {
        format!("[agents.{name}]\ndriver = {driver:?}\ncommand = [{program:?}]\n")
    };
    let config =
        [("hangs", "acp", &hangs), ("fails", "acp", &fails), ("words", "text", &own), ("lines", "openclaw", &own)];
    let config: String = config.iter().map(|(name, driver, program)| agent(name, driver, program)).collect();
    scene.write("mainstay.toml", &config);
    let path = format!("{}:/usr/bin:/bin", scene.dir.path().display());
    let agents = |arguments: &'static [&str]| ended(scene.command(arguments).env("PATH", &path).spawn().unwrap());
    let reports = agents(&["agents", "--json"]).await.json();
    assert!(!scene.dir.path().join("mainstay.db").exists(), "nothing is made");
    let named = |name: &str| reports.iter().find(|report| report["name"] == name).unwrap_or_else(|| panic!("{name}"));
    assert_eq!(named("claude")["found"]["version"], "1.2.3 Claude");
    assert_eq!(named("claude")["configured"], true);
    assert_eq!((&named("hangs")["found"]["version"], &named("hangs")["missing"]), (&Value::Null, &Value::Null));
    assert_eq!(named("fails")["found"]["at"], fails.as_str());
    for name in ["words", "lines"] {
        assert_eq!(named(name)["found"], json!({"at": own, "version": null}), "{name}");
    }
    assert!(!scene.dir.path().join("started").exists(), "a command of one's own is not started to ask its version");
    for (name, install) in [("codex", "npm install -g @openai/codex"), ("vibe", "pip install mistral-vibe")] {
        let report = named(name);
        assert_eq!((&report["found"], &report["install"]), (&Value::Null, &Value::from(install)), "{report}");
        assert!(report["missing"].as_str().unwrap().contains("not found"), "{report}");
    }
    // A killed process exists until the kernel has removed it.
    within(async {
        while asleep(&slept) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;

    std::fs::remove_file(scene.dir.path().join("mainstay.toml")).unwrap();
    std::fs::remove_file(scene.dir.path().join("claude")).unwrap();
    let text = agents(&["agents"]).await.printed();
    for expected in ["missing  claude", "npm install -g opencode-ai", "[agents.goose]", "driver = \"openclaw-gateway\""]
    {
        assert!(text.contains(expected), "{text}");
    }
    let failed = ended(scene.command(&["run", "--agent", "claude", "hi"]).env("PATH", &path).spawn().unwrap()).await;
    assert!(failed.stdout.contains("npm install -g @anthropic-ai/claude-code"), "{failed:?}");
    assert_eq!(failed.code, Some(1));
}
