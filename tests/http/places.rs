//! Connections and streams when there are more than there is room for, and readers that do not read.

use std::time::Duration;

use mainstay::http::Timeouts;
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::scene::{Scene, read, within};

/// Whether a series of the metrics has at least this value.
async fn counts(scene: &Scene, name: &str, at_least: f64) -> bool {
    let metrics = scene.get("/metrics").await;
    assert_eq!(metrics.status, 200);
    let text = metrics.body.as_str().unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name}")).parse::<f64>().unwrap() >= at_least
}

#[tokio::test]
async fn streams_leave_places_to_short_requests() {
    let scene = Scene::with("[server]\nmax_connections = 8", Timeouts::default()).await;
    let run = scene.send("s", "hello").await;
    let mut streams = Vec::new();
    for _ in 0..7 {
        streams.push(scene.stream(&format!("/v1/runs/{run}/events")).await);
    }
    assert!(streams.iter().all(|stream| stream.status == 200));
    for path in ["/v1/sessions/s/events", "/api/chat/s/stream"] {
        let refused = read(scene.ask(Method::GET, path).header("accept", "text/event-stream")).await;
        assert_eq!((refused.refused(), refused.header("retry-after")), ((503, "too_many_streams"), "2"));
    }
    let sent = read(scene.ask(Method::POST, "/api/chat").json(&json!({
        "id": "t",
        "messages": [{"id": "m", "role": "user", "parts": [{"type": "text", "text": "hello"}]}],
    })));
    assert_eq!(sent.await.refused(), (503, "too_many_streams"));
    assert_eq!(scene.get("/v1/sessions/t").await.status, 404, "what is refused is not sent");
    assert_eq!(scene.get("/v1/sessions/s").await.status, 200);
    // No place to wait for its end: it is cancelled all the same.
    assert_eq!(scene.post_nothing(&format!("/v1/runs/{run}/cancel?wait=60")).await.status, 202);
    for stream in streams {
        assert!(stream.rest().await.unwrap().ends_with("[DONE]\n\n"));
    }
    assert_eq!(scene.stream(&format!("/v1/runs/{run}/events")).await.status, 200);
}

#[tokio::test]
async fn urgent_requests_pass_when_all_places_are_taken() {
    let scene = Scene::with("[server]\nmax_connections = 1", Timeouts::default()).await;
    let run = scene.send("s", "hello").await;
    let stream = scene.stream(&format!("/v1/runs/{run}/events")).await;
    let refused = scene.get("/v1/runs").await;
    assert_eq!((refused.refused(), refused.header("retry-after")), ((503, "too_many_connections"), "2"));
    assert_eq!(refused.header("connection"), "close");
    assert_eq!(scene.post("/v1/sessions/s/runs", json!({"message": {"text": "x"}})).await.status, 503);
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(scene.get(path).await.status, 200, "{path}");
    }
    assert!(counts(&scene, "mainstay_requests_crowded_total", 2.0).await);
    let unknown = uuid::Uuid::now_v7();
    let answer = scene.post(&format!("/v1/permissions/{unknown}"), json!({"approved": true})).await;
    assert_eq!(answer.refused(), (404, "not_found"));
    scene.cancel(&run).await;
    assert!(stream.rest().await.unwrap().ends_with("[DONE]\n\n"));
    assert_eq!(scene.get("/v1/runs").await.status, 200);
}

#[tokio::test]
async fn an_idle_connection_gives_way_to_a_new_one() {
    let scene = Scene::with("[server]\nmax_connections = 1", Timeouts::default()).await;
    let mut idle = TcpStream::connect(scene.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let closed = tokio::spawn(async move {
        let mut answer = String::new();
        within(idle.read_to_string(&mut answer)).await.unwrap();
        answer
    });
    within(async {
        while !closed.is_finished() {
            assert_eq!(scene.raw_status("/v1/runs").await, 200);
        }
    })
    .await;
    assert!(closed.await.unwrap().starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn silent_connections_do_not_keep_others_out() {
    let timeouts = Timeouts { header: Duration::from_secs(600), ..Timeouts::default() };
    let scene = Scene::with("[server]\nmax_connections = 2", timeouts).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(scene.address).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: loc").await.unwrap();
        silent.push(stream);
    }
    assert_eq!(scene.raw_status("/v1/runs").await, 200);
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_reset() {
    let timeouts = Timeouts { stall: Duration::from_millis(200), ..Timeouts::default() };
    let scene = Scene::with("", timeouts).await;
    for _ in 0..4 {
        scene.send("s", &"x".repeat(4_000_000)).await;
    }
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    let request = format!("GET /v1/sessions/s/messages HTTP/1.0\r\n{}\r\n", scene.head());
    stream.write_all(request.as_bytes()).await.unwrap();
    within(async { while !counts(&scene, "mainstay_readers_dropped_total", 1.0).await {} }).await;
    let end = within(stream.read_to_end(&mut Vec::new())).await;
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

/// A reader of a stream is not dropped for being slow. Its buffer is small, so that it acknowledges little at a time.
#[tokio::test]
async fn a_reader_that_takes_little_is_kept() {
    const STALL: Duration = Duration::from_secs(2);
    let scene = Scene::with("", Timeouts { stall: STALL, ..Timeouts::default() }).await;
    for _ in 0..4 {
        scene.send("s", &"x".repeat(4_000_000)).await;
    }
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(scene.address).await.unwrap();
    let request = format!("GET /v1/sessions/s/messages HTTP/1.0\r\n{}\r\n", scene.head());
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut piece, mut taken) = ([0; 1024], 0);
    let begun = std::time::Instant::now();
    while begun.elapsed() < STALL * 3 {
        taken += within(stream.read(&mut piece)).await.expect("it was reset");
        tokio::time::sleep(STALL / 40).await;
    }
    // So little that the socket took nothing new meanwhile: a third of its 512 KiB has to be free for that.
    assert!(taken > 0 && taken < 160 * 1024, "{taken}");
    // It takes nothing more.
    within(async { while !counts(&scene, "mainstay_readers_dropped_total", 1.0).await {} }).await;
}
