//! What the tests stand on: a daemon as a process of its own, agents that are scripts, and a client.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};

use crate::token_file::{token, token_file};

/// The longest that anything may take on a loaded machine before the test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const MAINSTAY: &str = env!("CARGO_BIN_EXE_mainstay");

/// A directory with a database and a config.
pub struct Scene {
    pub dir: tempfile::TempDir,
}

/// A daemon that serves. Killed when it is dropped.
pub struct Daemon {
    pub child: Child,
    api: Api,
}

/// A client of a daemon.
#[derive(Clone)]
pub struct Api {
    pub url: String,
    client: Client,
    token: Option<String>,
}

impl std::ops::Deref for Daemon {
    type Target = Api;
    fn deref(&self) -> &Api {
        &self.api
    }
}

/// An answer that was read.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

impl Answer {
    /// Status and code of a refusal.
    pub fn refused(&self) -> (u16, &str) {
        (self.status, self.body["error"]["code"].as_str().unwrap_or("none"))
    }

    pub fn text(&self, key: &str) -> &str {
        self.body[key].as_str().unwrap_or_else(|| panic!("no {key} in {}", self.body))
    }
}

impl Scene {
    /// With this text in the config file.
    pub fn new(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // A directory that others may enter: what protects the files is not the directory.
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(dir.path().join("mainstay.toml"), config).unwrap();
        Self { dir }
    }

    /// With the demo agent, and `attacker`, an agent in a workspace of the same name that does what its message says, as a
    /// script of bash. It has the database (`$DB`), this program (`$PROGRAM`), and `http METHOD PATH BODY`, which asks the
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

    /// The token that the daemon has made.
    pub fn token(&self) -> String {
        token(&self.db()).unwrap()
    }

    /// What the daemons have logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// A command of this program, in the directory of the scene.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(MAINSTAY);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MAINSTAY_")) {
            command.env_remove(name);
        }
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    pub fn mainstay(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What a command printed that succeeded.
    pub fn printed(&self, args: &[&str]) -> String {
        let output = self.mainstay(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What a daemon is started with.
    pub fn serve(&self, args: &[&str]) -> Command {
        self.serve_at("127.0.0.1:0", args)
    }

    fn serve_at(&self, listen: &str, args: &[&str]) -> Command {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let mut command = self.command(&[&["serve", "--listen", listen], args].concat());
        command.stdout(Stdio::piped()).stderr(log);
        command
    }

    /// A daemon that serves at this address.
    pub fn daemon_at(&self, listen: &str) -> Daemon {
        self.ready(self.serve_at(listen, &[]).spawn().unwrap())
    }

    /// A daemon that serves.
    pub fn daemon(&self) -> Daemon {
        self.ready(self.serve(&[]).spawn().unwrap())
    }

    /// A process that was started, once it serves.
    pub fn ready(&self, mut child: Child) -> Daemon {
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim_end().strip_prefix("listening on ").map(str::to_owned);
        let url = url.unwrap_or_else(|| panic!("it said {line:?}, and logged: {}", self.log()));
        Daemon { child, api: Api { url, client: Client::new(), token: token(&self.db()) } }
    }
}

impl Api {
    /// The same with another token.
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    /// A request that shows the token that the daemon has made, where it has made one.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.request_without_token(method, path);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub fn request_without_token(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url)).timeout(PATIENCE)
    }

    pub async fn get(&self, path: &str) -> Answer {
        read(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        read(self.request(Method::POST, path).json(&body)).await
    }

    /// Sends a message to a session, and answers with its run.
    pub async fn send(&self, session: &str, text: &str) -> String {
        let answer = self.post(&format!("/v1/sessions/{session}/runs"), json!({"message": {"text": text}})).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
        answer.text("id").to_owned()
    }

    /// Has the demo agent ask a question in a session, and answers with its id.
    pub async fn question(&self, session: &str) -> String {
        self.send(session, "/ask").await;
        let mut asked = self.get(&format!("/v1/permissions?state=pending&session={session}")).await;
        let begun = Instant::now();
        while asked.body["items"].as_array().is_none_or(Vec::is_empty) {
            assert!(begun.elapsed() < PATIENCE, "nothing is asked");
            tokio::time::sleep(Duration::from_millis(20)).await;
            asked = self.get(&format!("/v1/permissions?state=pending&session={session}")).await;
        }
        asked.body["items"][0]["id"].as_str().unwrap().to_owned()
    }

    /// Waits for the end of a run.
    pub async fn settled(&self, run: &str) -> Value {
        let begun = Instant::now();
        loop {
            let run = self.get(&format!("/v1/runs/{run}")).await.body;
            if !["queued", "running"].contains(&run["status"].as_str().unwrap()) {
                return run;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end: {run}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Has the attacker of [`Scene::with_attacker`] do this, to its end.
    pub async fn attack(&self, script: &str) {
        let made = self.post("/v1/sessions", json!({"id": "attack", "workspace": "attacker"})).await;
        assert!([200, 201].contains(&made.status), "{}", made.body);
        let port = self.url.rsplit(':').next().unwrap();
        let run = self.settled(&self.send("attack", &format!("PORT={port}\n{script}")).await).await;
        assert_eq!(run["status"], "completed", "{run}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Gone already when the test has ended it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub async fn read(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    Answer { status, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
}

/// Waits for what only shows from outside: a file, a process, a line in a log.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Says why a test was not made, past the test harness, which keeps what passing tests print to itself.
pub fn skipped(why: &str) {
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let _ = writeln!(std::io::stderr(), "\nSKIPPED {name}: {why}\n");
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
