//! Messages, and keys to other services, must not be visible to other users of the machine, who can read the arguments of every
//! process; nor are they in the environment of any process.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use testkit::{Daemon, block_until};

use crate::user::{mainstay, said};

fn serve(dir: &Path) -> Daemon {
    let mut command = mainstay(dir);
    command.args(["serve", "--listen", "127.0.0.1:0", "-q"]).stdout(Stdio::piped());
    Daemon::ready(command.spawn().unwrap(), &dir.join("mainstay.db")).unwrap()
}

/// Sends a message without showing it in an argument.
fn send(dir: &Path, session: &str, more: &[&str], message: &str) {
    let mut command = mainstay(dir);
    command.args(["send", session, "-", "-q"]).args(more).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(message.as_bytes()).unwrap();
    let (code, text) = said(&child.wait_with_output().unwrap());
    assert_eq!(code, Some(0), "{text}");
}

fn make_session(dir: &Path, session: &str, agent: &str) {
    let made = mainstay(dir).args(["session", session, "--new", "--agent", agent]).output().unwrap();
    assert!(made.status.success(), "{}", said(&made).1);
}

/// Where a text occurs in the arguments or the environment of a process.
fn shown(secret: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let files = processes.flat_map(|process| ["cmdline", "environ"].map(|file| process.join(file)));
    let shows = |file: &Path| {
        let text = fs::read(file).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).replace('\0', " ");
        text.contains(secret).then(|| format!("{}: {text}", file.display()))
    };
    files.filter_map(|file| shows(&file)).collect()
}

/// A text that occurs nowhere else on this machine.
fn secret(what: &str) -> String {
    format!("{what}-{}-{}", std::process::id(), fastrand::u64(..))
}

#[test]
fn message_and_files_are_in_no_argument_or_environment() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // Reads the beginning of its stdin, reports that, and waits to be ended.
    let script = r#"head -c 1 > /dev/null; : > "ready-$MAINSTAY_SESSION"; exec tail -f /dev/null"#;
    let drivers = ["claude", "codex", "openclaw", "text"];
    let agents = drivers.map(|driver| {
        format!(
            "[agents.a-{driver}]\ndriver = {driver:?}\ncommand = [\"sh\", \"-c\", {script:?}]\nkill_grace = \"0s\"\n"
        )
    });
    fs::write(dir.join("mainstay.toml"), agents.concat()).unwrap();
    let (message, file) = (secret("message"), secret("file"));
    fs::write(dir.join("file.txt"), &file).unwrap();
    let daemon = serve(dir);
    for driver in drivers {
        make_session(dir, driver, &format!("a-{driver}"));
        let more: &[&str] = if driver == "claude" { &["--attach", "file.txt"] } else { &[] };
        send(dir, driver, more, &message);
    }
    for driver in drivers {
        block_until(|| dir.join(format!("ready-{driver}")).exists());
    }
    // The search does find what is there.
    assert!(!shown("MAINSTAY_SESSION=codex").is_empty());
    let base64 = Command::new("base64").arg("-w0").arg(dir.join("file.txt")).output().unwrap().stdout;
    for secret in [message, file, String::from_utf8(base64).unwrap()] {
        assert_eq!(shown(&secret), Vec::<String>::new());
    }
    for driver in drivers {
        assert!(mainstay(dir).args(["cancel", driver, "--wait"]).output().unwrap().status.success());
    }
    drop(daemon);
}

#[test]
fn token_and_message_of_a_gateway_are_in_no_process_list() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let gateway = TcpListener::bind("127.0.0.1:0").unwrap();
    let (token, message) = (secret("token"), secret("message"));
    let address = gateway.local_addr().unwrap();
    let agent = format!("[agents.g]\ndriver = \"openclaw-gateway\"\nurl = \"ws://{address}\"\ntoken = {token:?}\n");
    fs::write(dir.join("mainstay.toml"), agent).unwrap();
    let daemon = serve(dir);
    make_session(dir, "s", "g");
    send(dir, "s", &[], &message);
    // The relay was given the turn, and waits for the gateway.
    let _relay = gateway.accept().unwrap();
    assert!(!shown("relay openclaw-gateway").is_empty());
    for secret in [token, message] {
        assert_eq!(shown(&secret), Vec::<String>::new());
    }
    assert!(mainstay(dir).args(["cancel", "s", "--wait"]).output().unwrap().status.success());
    drop(daemon);
}
