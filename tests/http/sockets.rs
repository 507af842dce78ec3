//! Connections: many, slow, silent, and during shutdown.

use std::time::{Duration, Instant};

use mainstay::http::Timeouts;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::scene::{Scene, status_of, within};

/// Short enough to wait for, and long enough for a machine under load.
const SHORT: Duration = Duration::from_millis(200);

async fn read_to_end(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    within(stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_idle_connections_leave_room_for_work() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Both ends of each connection are in this process.
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let scene = Scene::with("", Timeouts { header: Duration::from_secs(60), ..Timeouts::default() }).await;
    let mut idle = Vec::new();
    for _ in 0..2000 {
        idle.push(TcpStream::connect(scene.address).await.unwrap());
    }
    let asked = Instant::now();
    assert_eq!(scene.post("/v1/sessions", json!({"id": "s"})).await.status, 201);
    assert!(asked.elapsed() < Duration::from_secs(5));
    scene.stop.cancel();
    within(scene.server).await.unwrap().unwrap();
    for stream in idle {
        assert_eq!(read_to_end(stream).await, "");
    }
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_its_connection() {
    let scene = Scene::with("", Timeouts { header: SHORT, ..Timeouts::default() }).await;
    for begun in ["", "GET /healthz HTTP/1.1\r\nhost: loc"] {
        let mut stream = TcpStream::connect(scene.address).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        let answer = read_to_end(stream).await;
        assert!(answer.is_empty() || status_of(&answer) == 408, "{answer}");
    }
    assert_eq!(scene.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn a_body_that_does_not_come_ends_its_request() {
    let scene = Scene::with("", Timeouts { body: SHORT, ..Timeouts::default() }).await;
    let head = format!(
        "POST /v1/sessions HTTP/1.1\r\n{}content-type: application/json\r\ncontent-length: 9\r\n",
        scene.head()
    );
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    stream.write_all(format!("{head}\r\n{{\"id\"").as_bytes()).await.unwrap();
    let answer = read_to_end(stream).await;
    assert_eq!(status_of(&answer), 408);
    assert!(answer.contains("body_timeout"), "{answer}");
}

#[tokio::test]
async fn a_large_body_is_asked_for_only_when_it_is_wanted() {
    let scene = Scene::new().await;
    let head = format!("{}content-type: application/json\r\nexpect: 100-continue\r\n", scene.head());
    for (path, bytes) in [("/v1/sessions/s/runs", 5 * 1024 * 1024), ("/api/chat", 65 * 1024 * 1024)] {
        let request = format!("POST {path} HTTP/1.1\r\n{head}content-length: {bytes}\r\n\r\n");
        assert_eq!(status_of(&scene.raw(&request).await.unwrap()), 413, "{path}");
    }
}

#[tokio::test]
async fn a_connection_that_does_not_end_is_dropped() {
    let scene = Scene::with("", Timeouts { shutdown: SHORT, ..Timeouts::default() }).await;
    let head = format!("POST /v1/sessions HTTP/1.1\r\n{}content-type: application/json\r\n", scene.head());
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    stream.write_all(format!("{head}content-length: 9\r\nexpect: 100-continue\r\n\r\n").as_bytes()).await.unwrap();
    let mut asked_for = [0; 25];
    within(stream.read_exact(&mut asked_for)).await.unwrap();
    assert_eq!(&asked_for, b"HTTP/1.1 100 Continue\r\n\r\n");
    // Its request is in progress, and the body never comes.
    scene.stop.cancel();
    within(scene.server).await.unwrap().unwrap();
    assert_eq!(read_to_end(stream).await, "");
}

#[tokio::test]
async fn requests_on_one_connection_are_answered_in_turn() {
    let scene = Scene::new().await;
    let get = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\n{}{more}\r\n", scene.head());
    let requests = [get("/healthz", ""), get("/v1/nothing", ""), get("/v1/slots", "connection: close\r\n")].concat();
    let answers = scene.raw(&requests).await.unwrap();
    let statuses: Vec<_> = answers.split("HTTP/1.1 ").skip(1).map(|answer| answer[..3].to_owned()).collect();
    assert_eq!(statuses, ["200", "404", "200"]);
}

#[tokio::test]
async fn an_idle_connection_is_kept_longer_than_a_silent_one() {
    let scene = Scene::with("", Timeouts { header: SHORT, ..Timeouts::default() }).await;
    let request = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    let mut answer = Vec::new();
    for _ in 0..2 {
        stream.write_all(request).await.unwrap();
        answer.clear();
        while !answer.ends_with(b"}") {
            assert!(within(stream.read_buf(&mut answer)).await.unwrap() > 0, "it was closed");
        }
        assert_eq!(status_of(&String::from_utf8_lossy(&answer)), 200);
        // Only the passing of time shows that it stays open.
        tokio::time::sleep(SHORT * 2).await;
    }
    assert!(Timeouts::default().idle > Duration::from_secs(75));

    let scene = Scene::with("", Timeouts { idle: SHORT, ..Timeouts::default() }).await;
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    stream.write_all(request).await.unwrap();
    assert_eq!(status_of(&read_to_end(stream).await), 200);
}
