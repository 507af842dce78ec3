//! Shared by the tests: a daemon as a process, agents that are scripts, and a client.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};
pub use testkit::{Answer, Api, Daemon, block_until, read, skipped};
use testkit::{log_file, token, token_file};

pub const MAINSTAY: &str = env!("CARGO_BIN_EXE_mainstay");

/// A directory with a database and a config.
pub struct Scene {
    pub dir: tempfile::TempDir,
}

impl Scene {
    /// With this text in the config file.
    pub fn new(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Other users may enter the directory, so it is not what protects the files.
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(dir.path().join("mainstay.toml"), config).unwrap();
        Self { dir }
    }

    /// With the demo agent, and `attacker`, an agent in a workspace of the same name that executes its message as a script of
    /// bash. It has the database (`$DB`), this program (`$PROGRAM`), and `http METHOD PATH BODY`, which sends a request to the
    /// daemon at `$PORT` (of `$HOST`, if that is set) with the token that it reads.
    pub fn with_attacker() -> Self {
        const SCRIPT: &str = r#"
            export PORT DB PROGRAM
            http() {
                exec 3<>"/dev/tcp/${HOST:-127.0.0.1}/$PORT"
                printf '%s %s HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer %s\r\n' "$1" "$2" "$(cat "$DB-token")" >&3
                printf 'content-type: application/json\r\nconnection: close\r\n' >&3
                printf 'content-length: %d\r\n\r\n%s' "${#3}" "$3" >&3
                cat <&3
                exec 3>&-
            }
            export -f http
            eval "$(cat)" >"$DB-attack" 2>&1
            echo '{"event":"agent","stream":"assistant","data":{"delta":"done"}}'
        "#;
        let scene = Self::new("");
        // A JSON string is a TOML string.
        let db = Value::from(scene.db().to_str().unwrap());
        let (script, program) = (Value::from(SCRIPT), Value::from(MAINSTAY));
        let config = format!(
            "[agents.attacker]\ndriver = \"openclaw\"\ncommand = [\"bash\", \"-c\", {script}]\nkill_grace = \"100ms\"\n\
             env = {{ DB = {db}, PROGRAM = {program} }}\n[workspaces.attacker]\nagent = \"attacker\"\ndir = \".\"\n"
        );
        std::fs::write(scene.path("mainstay.toml"), config).unwrap();
        scene
    }

    /// What the attacker saw.
    pub fn seen(&self) -> String {
        std::fs::read_to_string(self.path("mainstay.db-attack")).unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn db(&self) -> PathBuf {
        self.path("mainstay.db")
    }

    pub fn token_file(&self) -> PathBuf {
        token_file(&self.db())
    }

    /// The token that the daemon has created.
    pub fn token(&self) -> String {
        token(&self.db()).unwrap()
    }

    /// The log of the daemons.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// A command of this program, in the directory of the scene.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = testkit::command(MAINSTAY);
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    pub fn mainstay(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The output of a command, which must have succeeded.
    pub fn printed(&self, args: &[&str]) -> String {
        let output = self.mainstay(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The command that starts a daemon.
    pub fn serve(&self, args: &[&str]) -> Command {
        self.serve_at("127.0.0.1:0", args)
    }

    fn serve_at(&self, listen: &str, args: &[&str]) -> Command {
        let mut command = self.command(&[&["serve", "--listen", listen], args].concat());
        command.stdout(Stdio::piped()).stderr(log_file(&self.path("log")));
        command
    }

    /// A daemon that listens at this address.
    pub fn daemon_at(&self, listen: &str) -> Daemon {
        self.ready(self.serve_at(listen, &[]).spawn().unwrap())
    }

    /// A daemon that is ready.
    pub fn daemon(&self) -> Daemon {
        self.ready(self.serve(&[]).spawn().unwrap())
    }

    /// Waits until a started process is ready.
    pub fn ready(&self, child: Child) -> Daemon {
        let ready = Daemon::ready(child, &self.db());
        ready.unwrap_or_else(|status| panic!("it does not serve ({status}), and logged: {}", self.log()))
    }
}

/// Sends messages to the attacker of [`Scene::with_attacker`].
pub trait Attack {
    /// Has it execute this script, and waits for the end.
    async fn attack(&self, script: &str);
}

impl Attack for Api {
    async fn attack(&self, script: &str) {
        let made = self.post("/v1/sessions", json!({"id": "attack", "workspace": "attacker"})).await;
        assert!([200, 201].contains(&made.status), "{}", made.body);
        let port = self.url.rsplit(':').next().unwrap();
        let run = self.settled(&self.send("attack", &format!("PORT={port}\n{script}")).await).await;
        assert_eq!(run["status"], "completed", "{run}");
    }
}

/// All files below a directory.
pub fn files_in(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { found.extend(files_in(&path)) } else { found.push(path) }
    }
    found
}
