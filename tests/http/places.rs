//! Connections and streams beyond their limits, and readers that do not read.

use std::time::Duration;

use mainstay::http::Timeouts;
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::scene::{Scene, Streaming, chunks, read, status_of, within};

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
    // No place to wait for its end: it is cancelled nevertheless.
    assert_eq!(scene.post_nothing(&format!("/v1/runs/{run}/cancel?wait=60")).await.status, 202);
    for stream in streams {
        assert!(stream.rest().await.unwrap().ends_with("[DONE]\n\n"));
    }
    assert_eq!(scene.stream(&format!("/v1/runs/{run}/events")).await.status, 200);
}

impl Scene {
    /// Has the demo agent ask in a session, and reads up to the question: its id.
    async fn asks(&self, session: &str) -> String {
        let message =
            json!({"id": format!("{session}-ask"), "role": "user", "parts": [{"type": "text", "text": "/ask"}]});
        let body = json!({"id": session, "messages": [message]});
        let stream = Streaming::open(self.ask(Method::POST, "/api/chat").json(&body)).await.rest().await.unwrap();
        chunks(&stream).pop().unwrap()["approvalId"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn answer_in_a_chat_is_stored_without_a_place_for_its_stream() {
    let scene = Scene::with("[server]\nmax_connections = 1", Timeouts::default()).await;
    scene.execute().await;
    let (one, two, three) = (scene.asks("one").await, scene.asks("two").await, scene.asks("three").await);
    let four = scene.asks("four").await;
    let stream = scene.stream("/v1/sessions/other/events").await;
    let answer = |question: &str| {
        let approval = json!({"id": question, "approved": true});
        json!({"id": "a", "role": "assistant", "parts": [{"type": "dynamic-tool", "toolCallId": "call-1",
            "toolName": "write_file", "input": {}, "state": "approval-responded", "approval": approval}]})
    };
    let said = json!({"id": "n", "role": "user", "parts": [{"type": "text", "text": "and then?"}]});
    let chat = async |session: &str, messages: serde_json::Value| {
        read(scene.ask(Method::POST, "/api/chat").json(&json!({"id": session, "messages": messages}))).await
    };
    // There is room neither for a further request nor for its stream.
    let refused = chat("one", json!([answer(&one)])).await;
    assert_eq!((refused.refused(), refused.header("retry-after")), ((503, "too_many_streams"), "2"));
    let refused = chat("two", json!([answer(&two), said])).await;
    assert_eq!(refused.refused(), (503, "too_many_streams"));
    // A message without an id would be another one when it is sent again.
    let unnamed = json!({"role": "user", "parts": [{"type": "text", "text": "and then?"}]});
    let refused = chat("four", json!([answer(&four), unnamed])).await;
    assert_eq!(refused.refused(), (503, "too_many_streams"));
    assert_eq!(scene.state(&four).await, "allowed");
    // A message that decides nothing, and one that is too large to be read first, have to be sent again.
    for messages in [json!([said]), json!([{"id": "x", "role": "system", "parts": "x".repeat(70_000)}, answer(&three)])]
    {
        let refused = chat("three", messages).await;
        assert_eq!((refused.refused(), refused.header("connection")), ((503, "too_many_connections"), "close"));
    }
    assert_eq!((scene.state(&one).await, scene.state(&two).await), ("allowed".into(), "allowed".into()));
    assert_eq!(scene.state(&three).await, "pending");
    drop(stream);
    // Once there is a place, the same request gets the stream, and the message was sent once.
    let again = within(async {
        loop {
            let again = chat("two", json!([answer(&two), said])).await;
            if again.status == 200 {
                break again;
            }
        }
    });
    assert!(again.await.body.as_str().unwrap().ends_with("[DONE]\n\n"));
    assert_eq!(scene.get("/v1/sessions/two/runs").await.each("id").len(), 2);
    assert_eq!(scene.get("/v1/sessions/four/runs").await.each("id").len(), 1);
}

#[tokio::test]
async fn body_that_is_on_its_way_takes_no_place_of_a_stream() {
    let scene = Scene::with("[server]\nmax_connections = 8", Timeouts::default()).await;
    let run = scene.send("s", "hello").await;
    let mut waiting = Vec::new();
    for path in ["/v1/sessions/s/runs", "/api/chat"] {
        for _ in 0..4 {
            let mut stream = TcpStream::connect(scene.address).await.unwrap();
            let head = format!("{}accept: text/event-stream\r\ncontent-type: application/json\r\n", scene.head());
            let request = format!("POST {path} HTTP/1.1\r\n{head}content-length: 99\r\nexpect: 100-continue\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut asked_for = [0; 25];
            // Its handler reads the body.
            within(stream.read_exact(&mut asked_for)).await.unwrap();
            waiting.push(stream);
        }
    }
    waiting.pop();
    let stream = within(async {
        loop {
            let stream = scene.stream(&format!("/v1/runs/{run}/events")).await;
            // The dropped connection may still count.
            if stream.status == 200 {
                break stream;
            }
        }
    });
    assert_eq!(stream.await.status, 200);
}

#[tokio::test]
async fn urgent_requests_wait_for_no_memory_of_large_ones() {
    let scene = Scene::with("[engine]\nmemory_limit = \"256MiB\"", Timeouts::default()).await;
    scene.execute().await;
    let question = scene.asks("s").await;
    // All but 1 MiB of the readers' quarter.
    let _taken = scene.engine.memory().readers().acquire(63 * 1024 * 1024).await;
    let post = async |path: &str, body: &str| {
        let head = format!("{}content-type: application/json\r\nconnection: close\r\n", scene.head());
        let chunk = format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        scene.raw(format!("POST {path} HTTP/1.1\r\n{head}{chunk}")).await.unwrap()
    };
    let path = format!("/v1/permissions/{question}");
    let large = post(&path, &format!("{{\"reason\": \"{}\"}}", "x".repeat(70_000))).await;
    assert_eq!(status_of(&large), 413, "{large}");
    assert!(large.contains("at most 65536 bytes; send less\""), "{large}");
    let reason = "\\u00e9".repeat(4000);
    let answered = post(&path, &format!("{{\"approved\": true, \"reason\": \"{reason}\"}}")).await;
    assert_eq!(status_of(&answered), 200, "{answered}");
    assert_eq!(status_of(&post("/v1/sessions/s/cancel", "{}").await) / 100, 2);
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

/// A reader of a stream is not disconnected for being slow. Its buffer is small, so that it acknowledges little at a time.
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
    // Too little for the socket to accept new bytes: a third of its 512 KiB has to be free for that.
    assert!(taken > 0 && taken < 160 * 1024, "{taken}");
    // Now it takes nothing more.
    within(async { while !counts(&scene, "mainstay_readers_dropped_total", 1.0).await {} }).await;
}
