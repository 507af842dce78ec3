//! The commands of the README, run one after the other in one shell, as a person copies them.

use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use crate::service::scene::{MAINSTAY, Scene, skipped};

/// The script around the commands. Nothing is installed or built; a person waits for the address before the next command.
const SHELL: &str = r#"
set -eu
cargo() {
    case "$1" in
        run) while [ "$1" != -- ]; do shift; done; shift; mainstay "$@" ;;
        install | test) ;;
        *) echo "cargo $1 is not known here" >&2; exit 1 ;;
    esac
}
ready() { until curl -sf "$address/readyz" >/dev/null; do sleep 0.05; done; }
daemon=
trap 'kill -9 $daemon || true' EXIT
"#;

fn commands(readme: &str) -> Vec<&str> {
    readme.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

#[test]
fn commands_of_the_readme_run_as_they_stand() {
    for program in ["bash", "curl", "sqlite3"] {
        if Command::new(program).arg("--version").stdout(Stdio::null()).status().is_err() {
            return skipped(&format!("{program} is not installed"));
        }
    }
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    // In place of Claude Code, which needs an account.
    let scene = Scene::new(&format!("[server]\nlisten = \"{address}\"\n[agents.claude]\ndriver = \"demo\"\n"));
    std::fs::write(scene.path("plan.md"), "# A plan").unwrap();
    let programs = scene.path("bin");
    std::fs::create_dir(&programs).unwrap();
    symlink(MAINSTAY, programs.join("mainstay")).unwrap();
    let path = std::env::join_paths(
        std::iter::once(programs).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );

    let blocks = commands(include_str!("../../../README.md"));
    assert!(blocks.len() >= 6, "the commands were not found");
    let script: String = blocks.iter().map(|block| format!("echo '== next'\n{block}")).collect();
    for stands_there in ["127.0.0.1:7717", "daemon=$!", "/slow 1500"] {
        assert!(script.contains(stands_there), "{stands_there} is to be replaced and not there");
    }
    let script = script.replace("127.0.0.1:7717", &address).replace("daemon=$!", "daemon=$!; ready");
    // Two seconds instead of thirty.
    let script = format!("{SHELL}{}", script.replace("/slow 1500", "/slow 100"));
    let output = Command::new("bash")
        .args(["-c", &script])
        .env("PATH", path.unwrap())
        .env("address", &address)
        .current_dir(scene.dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (said, logged) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{logged}");
    let answers: Vec<_> = said.split("== next\n").skip(1).collect();
    assert!(answers[0].contains("That is 4 words"), "{said}");
    assert!(answers[2].contains("\"finish\"") && answers[2].ends_with("data: [DONE]\n\n"), "{said}");
    assert!(answers[3].contains("98 99 100"), "the answer goes on while the daemon is replaced: {said}");
    assert!(answers.iter().any(|answer| answer.contains("demo|completed|")), "{said}");
}
