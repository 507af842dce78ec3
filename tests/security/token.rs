//! The token that is created if none is configured.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};

use reqwest::Method;

use crate::scene::{Attack, Daemon, Scene, block_until, files_in, read};

async fn status(daemon: &Daemon, token: &str) -> u16 {
    read(daemon.request_without_token(Method::GET, "/v1/sessions").bearer_auth(token)).await.status
}

#[tokio::test]
async fn token_is_made_at_first_start_and_kept() {
    let scene = Scene::new("");
    let daemon = scene.daemon();
    let token = scene.token();
    // 256 bits in base64.
    assert_eq!(token.len(), 43);
    assert_eq!(fs::metadata(scene.token_file()).unwrap().permissions().mode() & 0o7777, 0o600);
    block_until(|| scene.log().contains("mainstay.db-token"));
    assert!(!scene.log().contains(&token));
    assert_eq!(status(&daemon, &token).await, 200);
    drop(daemon);
    let daemon = scene.daemon();
    assert_eq!((scene.token(), status(&daemon, &token).await), (token.clone(), 200));
    assert_eq!(scene.printed(&["token", "show"]).trim_end(), token);
    assert_eq!(scene.printed(&["token"]).trim_end(), scene.token_file().canonicalize().unwrap().to_str().unwrap());
    let other = Scene::new("");
    let _daemon = other.daemon();
    assert_ne!(other.token(), token);
}

#[test]
fn quiet_daemon_says_where_the_token_is() {
    for (args, variable) in
        [(&["-q"] as &[&str], ""), (&["-qqq"], ""), (&["-qq", "--log-format", "json"], ""), (&[], "off")]
    {
        let scene = Scene::new("");
        let mut serve = scene.serve(args);
        if !variable.is_empty() {
            serve.env("MAINSTAY_LOG", variable);
        }
        let _daemon = scene.ready(serve.spawn().unwrap());
        block_until(|| scene.log().contains("mainstay.db-token"));
        let log = scene.log();
        assert_eq!(log.lines().count(), 1, "nothing else is said: {log}");
        assert!(log.contains("`mainstay token show` prints it"), "{log}");
    }
}

#[test]
fn token_file_that_is_not_private_is_refused() {
    let scene = Scene::new("");
    drop(scene.daemon());
    let (file, good) = (scene.token_file(), scene.token());
    let elsewhere = scene.path("elsewhere");
    fs::rename(&file, &elsewhere).unwrap();
    let cases: [(&str, &dyn Fn(), &str); 6] = [
        ("a link", &|| symlink(&elsewhere, &file).unwrap(), "not a regular file"),
        ("a directory", &|| fs::create_dir(&file).unwrap(), "not a regular file"),
        (
            "a FIFO",
            &|| {
                let mode = rustix::fs::Mode::from_raw_mode(0o600);
                rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, mode, 0).unwrap();
            },
            "not a regular file",
        ),
        ("one that others may read", &|| write(&file, &good, 0o604), "mode 604"),
        ("one that is empty", &|| write(&file, "", 0o600), "holds no token"),
        ("one of two lines", &|| write(&file, "one\ntwo\n", 0o600), "holds no token"),
    ];
    for (what, make, problem) in cases {
        make();
        let output = scene.serve(&[]).stderr(std::process::Stdio::piped()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), b"" as &[u8]), "{what}: {said}");
        assert!(said.contains(problem) && said.contains("mainstay.db-token"), "{what}: {said}");
        assert!(!said.contains(&good), "{said}");
        if file.is_dir() { fs::remove_dir(&file).unwrap() } else { fs::remove_file(&file).unwrap() }
    }
}

fn write(file: &std::path::Path, text: &str, mode: u32) {
    fs::write(file, text).unwrap();
    fs::set_permissions(file, Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn daemons_that_start_at_once_share_one_token() {
    let scene = Scene::new("");
    // The leftover of a daemon that was killed before it renamed the token.
    let mut left = scene.token_file().into_os_string();
    left.push(".new");
    write(left.as_ref(), "half of a to", 0o600);
    let started: Vec<_> = (0..4).map(|_| scene.serve(&["--workers", "0"]).spawn().unwrap()).collect();
    let daemons: Vec<_> = started.into_iter().map(|child| scene.ready(child)).collect();
    let token = scene.token();
    for daemon in &daemons {
        assert_eq!(status(daemon, &token).await, 200);
    }
    assert!(!fs::exists(&left).unwrap());
}

#[tokio::test]
async fn rotated_token_takes_the_place_of_the_old_one() {
    let scene = Scene::new("");
    let daemon = scene.daemon();
    let old = scene.token();
    assert_eq!(status(&daemon, &old).await, 200);
    scene.printed(&["token", "rotate"]);
    let new = scene.token();
    assert_ne!(new, old);
    assert_eq!(fs::metadata(scene.token_file()).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!((status(&daemon, &old).await, status(&daemon, &new).await), (401, 200));
    // An unusable file does not invalidate the token.
    write(&scene.token_file(), "", 0o600);
    assert_eq!(status(&daemon, &new).await, 200);
    block_until(|| scene.log().contains("token file unusable"));
    scene.printed(&["token", "rotate"]);
    assert_eq!((status(&daemon, &new).await, status(&daemon, &scene.token()).await), (401, 200));
}

#[test]
fn doctor_names_a_token_that_others_may_read() {
    let scene = Scene::new("");
    drop(scene.daemon());
    assert!(!scene.printed(&["doctor", "--quick"]).contains("mainstay.db-token"));
    fs::set_permissions(scene.token_file(), Permissions::from_mode(0o640)).unwrap();
    assert!(scene.printed(&["doctor", "--quick"]).contains("mainstay.db-token"));
}

#[tokio::test]
async fn token_file_of_the_config_is_read_anew() {
    let scene = Scene::new("[tokens.x]\nrole = \"viewer\"\ntoken_file = \"x.token\"\n");
    write(&scene.path("x.token"), "one\n", 0o400);
    let daemon = scene.daemon();
    assert_eq!(status(&daemon, "one").await, 200);
    write(&scene.path("y.token"), "two", 0o600);
    fs::rename(scene.path("y.token"), scene.path("x.token")).unwrap();
    assert_eq!((status(&daemon, "one").await, status(&daemon, "two").await), (401, 200));
    drop(daemon);
    fs::set_permissions(scene.path("x.token"), Permissions::from_mode(0o640)).unwrap();
    assert_eq!(scene.serve(&[]).output().unwrap().status.code(), Some(1));
}

#[tokio::test]
async fn token_is_in_no_log_argument_or_environment() {
    let scene = Scene::with_attacker();
    let named = "a-token-of-the-environment";
    let mut command = scene.serve(&["-vvv"]);
    command.env("MAINSTAY_DB", scene.db()).env("MAINSTAY_CONFIG", scene.path("mainstay.toml"));
    let daemon = scene.ready(command.spawn().unwrap());
    let token = scene.token();
    // In the query and in the header, right and wrong.
    for path in [format!("/api/chat/s/stream?token={token}"), format!("/v1/slots?token={token}"), format!("/{token}")] {
        read(daemon.request(Method::GET, &path)).await;
        read(daemon.request_without_token(Method::GET, &path)).await;
    }
    assert_eq!(status(&daemon, &format!("{token}x")).await, 401);
    // The agent's own environment, that of its shim, and every argument of both and of the daemon.
    let script = format!(
        "tr '\\0' '\\n' </proc/$$/environ
         shim=$(sed -n 's/^PPid:\\t//p' /proc/$$/status)
         echo shim: $(cat /proc/$shim/comm); tr '\\0' '\\n' </proc/$shim/environ
         echo arguments:; tr '\\0' ' ' </proc/$shim/cmdline; tr '\\0' ' ' </proc/{}/cmdline; ps -ef",
        daemon.child.id()
    );
    daemon.attack(&script).await;
    let seen = scene.seen();
    assert!(seen.contains("shim: agent-host") && seen.contains("MAINSTAY_RUN="), "{seen}");
    assert!(!seen.contains(&token), "{seen}");
    let environments = seen.split("arguments:").next().unwrap();
    for leads_there in ["-token", "MAINSTAY_DB", "MAINSTAY_CONFIG", "MAINSTAY_TOKEN"] {
        assert!(!environments.contains(leads_there), "{leads_there}: {environments}");
    }
    assert!(!scene.log().contains(&token), "{}", scene.log());
    drop(daemon);

    // A token from the environment is not passed on either.
    let daemon = scene.ready(scene.serve(&["-vvv"]).env("MAINSTAY_TOKEN", named).spawn().unwrap());
    let api = daemon.with_token(named);
    api.attack("tr '\\0' '\\n' </proc/$$/environ; tr '\\0' '\\n' </proc/$PPID/environ; ps -ef").await;
    assert!(!scene.seen().contains(named) && !scene.log().contains(named));
    let stored = files_in(scene.dir.path()).into_iter().filter(|file| {
        let bytes = fs::read(file).unwrap_or_default();
        let holds = |secret: &str| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        *file != scene.token_file() && (holds(&token) || holds(named))
    });
    assert_eq!(stored.collect::<Vec<_>>(), [] as [std::path::PathBuf; 0]);
}
