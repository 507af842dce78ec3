//! Files in messages, and agents that need no config: from the command line to the model.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::claude::environment;
use crate::scene::{Model, installed};

/// `mainstay run`, with this program of an agent on PATH.
fn run(dir: &Path, program: &Path, env: &[(&str, String)], arguments: &[&str]) -> Output {
    let path = format!("{}:/usr/bin:/bin", program.parent().unwrap().display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command.current_dir(dir).env("PATH", path).envs(env.iter().map(|(name, value)| (name, value)));
    command.arg("run").args(arguments).stdin(std::process::Stdio::null());
    command.output().unwrap()
}

#[test]
fn a_file_without_a_word_reaches_an_agent_that_nobody_configured() {
    let Some(program) = installed("claude") else { return };
    let dir = tempfile::tempdir().unwrap();
    let home: PathBuf = dir.path().join("home");
    std::fs::create_dir(&home).unwrap();
    std::fs::write(dir.path().join("plan.md"), "build a boat").unwrap();
    let model = Model::start(dir.path());
    let env = environment(dir.path(), &model.url);
    let output = run(dir.path(), &program, &env, &["--agent", "claude", "--attach", "plan.md", ""]);
    assert!(output.status.success(), "{output:?}");
    let message = model.asked("default")["body"]["messages"].to_string();
    assert!(message.contains("build a boat") && message.contains("plan.md"), "{message}");
    assert!(!message.contains("\"text\":\"\""), "{message}");

    std::fs::write(dir.path().join("a.zip"), b"PK\x03\x04\xff").unwrap();
    let output = run(dir.path(), &program, &env, &["--agent", "claude", "--attach", "a.zip", "look"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("application/zip") && said.contains("image/*, application/pdf, text/*"), "{output:?}");
}
