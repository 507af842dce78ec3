//! Streams and pages of events.

use std::time::Duration;

use mainstay::http::Timeouts;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::scene::{Scene, Streaming, read, tell, within};

const WHOLE: &str = "retry 1:start 2:abort 3:finish [DONE]";

#[tokio::test]
async fn the_stream_of_a_run_begins_and_ends_as_a_client_expects() {
    let scene = Scene::new().await;
    let run = scene.send("s", "hello").await;
    scene.cancel(&run).await;
    let stream = scene.stream(&format!("/v1/runs/{run}/events")).await;
    assert_eq!(stream.status, 200);
    let header = |name: &str| stream.headers[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "text/event-stream");
    assert_eq!(header("cache-control"), "no-cache, no-transform");
    assert_eq!(header("x-vercel-ai-ui-message-stream"), "v1");
    assert_eq!(header("x-accel-buffering"), "no");
    let text = stream.rest().await.unwrap();
    assert!(text.starts_with("retry: 1000\nid: 1\ndata: {\"type\":\"start\","), "{text}");
    assert!(text.ends_with("\n\ndata: [DONE]\n\n"), "{text}");
    assert_eq!(tell(&text), WHOLE);
}

#[tokio::test]
async fn a_stream_follows_what_is_still_to_come() {
    let scene = Scene::new().await;
    let run = scene.send("s", "hello").await;
    let mut stream = scene.stream(&format!("/v1/runs/{run}/events")).await;
    stream.until("retry", 1).await;
    scene.cancel(&run).await;
    assert_eq!(tell(&stream.rest().await.unwrap()), WHOLE);
}

#[tokio::test]
async fn a_send_may_be_answered_with_the_stream_and_again() {
    let scene = Scene::new().await;
    let body = json!({"message": {"id": "m", "text": "hello"}});
    let send = || {
        let accept = "application/json;q=0.5, text/event-stream";
        scene.ask(Method::POST, "/v1/sessions/s/runs").header("accept", accept).json(&body)
    };
    // A cursor from an earlier run means nothing to a new one.
    let mut stream = Streaming::open(send().header("last-event-id", "99")).await;
    stream.until("retry", 1).await;
    scene.cancel(&scene.get("/v1/runs").await.each("id")[0]).await;
    assert_eq!(tell(&stream.rest().await.unwrap()), WHOLE);
    assert_eq!(tell(&Streaming::open(send()).await.rest().await.unwrap()), WHOLE);
    let rest = Streaming::open(send().header("last-event-id", "2")).await.rest().await.unwrap();
    assert_eq!(tell(&rest), "retry 3:finish [DONE]");
    assert_eq!(scene.get("/v1/runs").await.each("id").len(), 1);
}

#[tokio::test]
async fn a_cursor_says_where_to_go_on() {
    let scene = Scene::new().await;
    let run = scene.send("s", "hello").await;
    scene.cancel(&run).await;
    let run = format!("/v1/runs/{run}/events");
    let told = async |request: reqwest::RequestBuilder| {
        tell(&Streaming::open(request.header("accept", "text/event-stream")).await.rest().await.unwrap())
    };
    let get = |query: &str| scene.ask(Method::GET, &format!("{run}{query}"));
    assert_eq!(told(get("?after=0")).await, WHOLE);
    assert_eq!(told(get("?after=1")).await, "retry 2:abort 3:finish [DONE]");
    assert_eq!(told(get("?after=0").header("last-event-id", "2")).await, "retry 3:finish [DONE]");
    assert_eq!(told(get("?after=3")).await, "retry [DONE]");

    for path in [run.as_str(), "/v1/sessions/s/events", "/api/chat/s/stream"] {
        for accept in ["text/event-stream", "application/json"] {
            let refused = async |query: &str, id: Option<&str>| {
                let request = scene.ask(Method::GET, &format!("{path}{query}")).header("accept", accept);
                let answer = read(id.into_iter().fold(request, |request, id| request.header("last-event-id", id)));
                let answer = answer.await;
                (answer.status, answer.body["error"]["code"].as_str().map(str::to_owned))
            };
            for bad in ["-1", "x", "", "+1", "1.0", "99999999999999999999"] {
                let invalid = (400, Some("invalid_cursor".to_owned()));
                assert_eq!(refused("?after=1", Some(bad)).await, invalid, "{bad:?}");
                if bad != "+1" {
                    assert_eq!(refused(&format!("?after={bad}"), None).await, invalid, "{bad:?}");
                }
            }
            if !path.starts_with("/api") {
                let ahead = (400, Some("cursor_ahead".to_owned()));
                assert_eq!(refused("?after=4", None).await, ahead);
                assert_eq!(refused("?after=0", Some("4")).await, ahead);
            }
        }
    }
}

#[tokio::test]
async fn pages_of_events_are_the_stream() {
    let scene = Scene::new().await;
    for text in ["one", "two"] {
        let run = scene.send("s", text).await;
        scene.cancel(&run).await;
    }
    let runs = scene.get("/v1/sessions/s/runs").await.each("id");
    let all = scene.get("/v1/sessions/s/events").await;
    assert_eq!(all.each("seq").join(" "), "1 2 3 4 5 6");
    assert_eq!(all.body["next_cursor"], Value::Null);
    assert_eq!(all.body["items"][3]["event"]["type"], "start");
    assert_eq!(all.body["items"][3]["run_id"], runs[0].as_str());
    assert!(all.body["items"][3]["at"].as_str().unwrap().ends_with('Z'));

    let page = scene.get("/v1/sessions/s/events?limit=4").await;
    assert_eq!((page.each("seq").join(" ").as_str(), page.text("next_cursor")), ("1 2 3 4", "4"));
    let rest = scene.get("/v1/sessions/s/events?limit=4&after=4").await;
    assert_eq!((rest.each("seq").join(" ").as_str(), &rest.body["next_cursor"]), ("5 6", &Value::Null));
    assert_eq!(scene.get("/v1/sessions/s/events?limit=4&after=0&cursor=4").await.each("seq"), rest.each("seq"));
    assert_eq!(scene.get(&format!("/v1/runs/{}/events?after=4", runs[0])).await.each("seq").join(" "), "5 6");
    // A log without events.
    assert_eq!(scene.get("/v1/sessions/t/events").await.body, json!({"items": [], "next_cursor": null}));
    assert_eq!(scene.get("/v1/sessions/t/events?after=1").await.refused(), (400, "cursor_ahead"));
    assert_eq!(scene.get("/v1/sessions/t").await.status, 404);
}

#[tokio::test]
async fn a_session_is_followed_before_it_is_there() {
    let timeouts = Timeouts { keep_alive: Duration::from_millis(20), ..Timeouts::default() };
    let scene = Scene::with("", timeouts).await;
    let mut stream = scene.stream("/v1/sessions/s/events").await;
    assert_eq!(stream.status, 200);
    stream.until(": keep-alive\n", 2).await;
    assert_eq!(scene.get("/v1/sessions/s").await.status, 404, "a reader does not create it");
    let run = scene.send("s", "hello").await;
    scene.cancel(&run).await;
    stream.until("\"finish\"", 1).await;
    assert_eq!(tell(&stream.text.replace(": keep-alive\n", "")), "retry 1:start 2:abort 3:finish");
    let ahead = scene.ask(Method::GET, "/v1/sessions/t/events").header("accept", "text/event-stream");
    assert_eq!(read(ahead.header("last-event-id", "7")).await.refused(), (400, "cursor_ahead"));
    let bad = scene.ask(Method::GET, "/v1/sessions/a%20b/events").header("accept", "text/event-stream");
    assert_eq!(read(bad).await.refused(), (400, "invalid_id"));
}

/// A client that takes every block for an event, as httpx-sse does, gets none without data.
#[tokio::test]
async fn nothing_but_chunks_is_an_event() {
    let timeouts = Timeouts { keep_alive: Duration::from_millis(20), ..Timeouts::default() };
    let scene = Scene::with("", timeouts).await;
    let run = scene.send("s", "hello").await;
    let mut stream = scene.stream(&format!("/v1/runs/{run}/events")).await;
    stream.until(": keep-alive\n", 3).await;
    scene.cancel(&run).await;
    let text = stream.rest().await.unwrap();
    assert!(text.starts_with("retry: 1000\n: keep-alive\n: keep-alive\n"), "{text}");
    for block in text.split_terminator("\n\n") {
        assert!(block.lines().any(|line| line.starts_with("data: ")), "{block:?}");
    }
}

#[tokio::test]
async fn the_stream_of_a_session_goes_on_from_run_to_run() {
    let timeouts = Timeouts { keep_alive: Duration::from_millis(20), ..Timeouts::default() };
    let scene = Scene::with("", timeouts).await;
    scene.post("/v1/sessions", json!({"id": "s"})).await;
    let mut stream = scene.stream("/v1/sessions/s/events").await;
    for round in 1..=2 {
        // Comments show that the stream is open, and do not change its position.
        let comments = stream.text.matches(": keep-alive\n").count();
        stream.until(": keep-alive\n", comments + 2).await;
        let run = scene.send("s", "hello").await;
        scene.cancel(&run).await;
        stream.until("\"finish\"", round).await;
    }
    let told = tell(&stream.text.replace(": keep-alive\n", ""));
    assert_eq!(told, "retry 1:start 2:abort 3:finish 4:start 5:abort 6:finish");
}

#[tokio::test]
async fn no_stream_ends_as_if_its_run_were_over_when_the_server_stops() {
    let scene = Scene::new().await;
    let run = scene.send("s", "hello").await;
    let path = format!("/v1/runs/{run}/events");
    let mut streams = vec![scene.stream(&path).await, scene.stream("/v1/sessions/s/events").await];
    for stream in &mut streams {
        stream.until("retry", 1).await;
    }
    // For an HTTP/1.0 client the end of the connection is the end of the response: so it has to be a reset.
    let mut old = TcpStream::connect(scene.address).await.unwrap();
    let request = format!("GET {path} HTTP/1.0\r\n{}accept: text/event-stream\r\n\r\n", scene.head());
    old.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains("retry: 1000\n") {
        assert!(within(old.read_buf(&mut answer)).await.unwrap() > 0);
    }
    scene.stop.cancel();
    let end = within(old.read_to_end(&mut answer)).await;
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    for stream in streams {
        assert!(stream.rest().await.is_err(), "a clean end");
    }
    within(scene.server).await.unwrap().unwrap();
}
