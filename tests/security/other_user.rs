//! Another user of the machine.

use std::process::{Command, Output};

use crate::scene::{Scene, skipped};

/// A user who owns no file here.
const STRANGER: &str = "64322";

/// The output of a shell script that another user runs; none if that is not possible here.
fn as_stranger(scene: &Scene, script: &str) -> Option<Output> {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", STRANGER, "--regid", STRANGER, "--clear-groups", "bash", "-c", script]);
    command.current_dir(scene.dir.path()).env("PATH", "/usr/bin:/bin");
    if !rustix::process::geteuid().is_root() {
        skipped("this needs root, to become another user");
        return None;
    }
    match command.output() {
        Ok(output) => Some(output),
        Err(error) => {
            skipped(&format!("setpriv cannot be started: {error}"));
            None
        }
    }
}

#[tokio::test]
async fn another_user_reads_nothing_and_sends_nothing() {
    let scene = Scene::with_attacker();
    let daemon = scene.daemon();
    let id = daemon.question("s").await;
    let port = daemon.url.rsplit(':').next().unwrap();
    let script = format!(
        r#"
        id -u; stat -c %n mainstay.toml
        for file in mainstay.db mainstay.db-wal mainstay.db-shm mainstay.db-lock mainstay.db-token; do
            cat $file >/dev/null 2>&1 && echo "read $file"
            : 2>/dev/null >>$file && echo "wrote $file"
        done
        ls mainstay.db-agents 2>/dev/null && echo "read the agents"
        send() {{
            exec 3<>/dev/tcp/127.0.0.1/{port}
            printf 'POST %s HTTP/1.1\r\nhost: localhost\r\n%scontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s' "$1" "$2" ${{#3}} "$3" >&3
            head -1 <&3
        }}
        send /v1/sessions/x/runs '' '{{"message": {{"text": "hi"}}}}'
        send /v1/permissions/{id} $'authorization: Bearer guess\r\n' '{{"approved": true}}'
        {program} --db mainstay.db send x hi >/dev/null 2>&1 && echo "sent by the command line"
        {program} --db mainstay.db token show 2>/dev/null
        {program} --db mainstay.db permissions --answer {id} allow >/dev/null 2>&1 && echo "answered by the command line"
        true
        "#,
        program = crate::scene::MAINSTAY,
    );
    let Some(output) = as_stranger(&scene, &script) else { return };
    let said = String::from_utf8(output.stdout).unwrap();
    let refused = "HTTP/1.1 401 Unauthorized\r\n";
    assert_eq!(
        said,
        format!("{STRANGER}\nmainstay.toml\n{refused}{refused}"),
        "{:?}",
        String::from_utf8(output.stderr)
    );
    assert_eq!(daemon.get(&format!("/v1/permissions/{id}")).await.text("state"), "pending");
    assert_eq!(daemon.get("/v1/sessions/x").await.status, 404);

    // With a token it may, even if the daemon cannot read its descriptors.
    let token = scene.token();
    let script = format!(
        r#"
        exec 3<>/dev/tcp/127.0.0.1/{port}
        printf 'POST /v1/permissions/{id} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n' >&3
        printf 'content-type: application/json\r\ncontent-length: 18\r\nconnection: close\r\n\r\n{{"approved": true}}' >&3
        head -1 <&3
        "#
    );
    let said = String::from_utf8(as_stranger(&scene, &script).unwrap().stdout).unwrap();
    assert_eq!(said, "HTTP/1.1 200 OK\r\n");
}
