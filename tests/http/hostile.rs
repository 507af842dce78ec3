//! Bytes that are no request, and the parts that every response has.

use reqwest::Method;
use serde_json::Value;

use crate::scene::{Scene, status_of};

/// The code of a raw error response, which must have the usual shape, an id and the usual headers.
fn code(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let head = head.to_ascii_lowercase();
    for header in ["x-request-id: ", "content-type: application/json", "x-content-type-options: nosniff"] {
        assert!(head.contains(header), "no {header}: {head}");
    }
    let body: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body:?}"));
    assert!(!body["error"]["message"].as_str().unwrap().is_empty(), "{body}");
    body["error"]["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn bytes_that_are_no_request_get_an_error_of_the_one_shape() {
    let scene = Scene::new().await;
    let head = format!("POST /v1/sessions HTTP/1.1\r\n{}content-type: application/json\r\n", scene.head());
    let large = "x".repeat(70_000);
    let many: String = (0..200).map(|number| format!("h{number}: x\r\n")).collect();
    for (bytes, status, wanted) in [
        (b"nonsense\r\n\r\n".to_vec(), 400, "malformed_request"),
        (b"GET / HTTP/1.1\r\nno header\r\n\r\n".to_vec(), 400, "malformed_request"),
        (b"GET / HTTP/1.1\r\nhost: localhost\r\na: \0\r\n\r\n".to_vec(), 400, "malformed_request"),
        (b"GET / HTTP/9.9\r\nhost: localhost\r\n\r\n".to_vec(), 400, "malformed_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), 400, "malformed_request"),
        (b"\xff\xfe\xfd\x00\r\n\r\n".to_vec(), 400, "malformed_request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), 400, "malformed_request"),
        (format!("{head}content-length: x\r\n\r\n").into_bytes(), 400, "malformed_request"),
        (format!("{head}content-length: 2\r\ncontent-length: 3\r\n\r\n{{}}").into_bytes(), 400, "malformed_request"),
        (format!("{head}transfer-encoding: gzip\r\n\r\n").into_bytes(), 400, "malformed_request"),
        (format!("GET / HTTP/1.1\r\nhost: localhost\r\na: {large}\r\n\r\n").into_bytes(), 431, "head_too_large"),
        (format!("GET / HTTP/1.1\r\nhost: localhost\r\n{many}\r\n").into_bytes(), 431, "head_too_large"),
        (format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\n").into_bytes(), 400, "unreadable_body"),
        (
            format!("{head}transfer-encoding: chunked\r\n\r\n{}\r\n", "f".repeat(40)).into_bytes(),
            400,
            "unreadable_body",
        ),
    ] {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(100)]).into_owned();
        let answer = scene.raw(&bytes).await.unwrap_or_else(|error| panic!("{shown:?}: {error}"));
        assert_eq!((status_of(&answer), code(&answer).as_str()), (status, wanted), "{shown:?}");
    }
    let answer = scene.raw(format!("GET /{large} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await.unwrap();
    assert!([414, 431].contains(&status_of(&answer)), "{answer}");
    code(&answer);
    let behind = scene.raw("GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nnonsense\r\n\r\n").await.unwrap();
    let (first, second) = behind.split_at(behind.rfind("HTTP/1.1 ").unwrap());
    assert_eq!((status_of(first), status_of(second), code(second).as_str()), (200, 400, "malformed_request"));
    assert_eq!(scene.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn every_answer_forbids_a_browser_to_run_it() {
    let scene = Scene::new().await;
    scene.send("s", "hello").await;
    let preflight = scene.ask(Method::OPTIONS, "/v1/sessions").header("origin", "http://localhost:1");
    for request in [
        scene.ask(Method::GET, "/v1/sessions"),
        scene.ask(Method::GET, "/v1/nothing"),
        scene.ask(Method::GET, "/metrics"),
        scene.ask(Method::POST, "/v1/sessions").body("{"),
        scene.ask(Method::GET, "/v1/sessions/s/events").header("accept", "text/event-stream"),
        scene.ask(Method::GET, "/healthz").header("host", "evil.example"),
        preflight.header("access-control-request-method", "POST"),
    ] {
        let response = request.send().await.unwrap();
        let header = |name: &str| response.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        let url = response.url();
        assert_eq!(header("x-content-type-options"), "nosniff", "{url}");
        assert_eq!(header("content-security-policy"), "default-src 'none'; frame-ancestors 'none'", "{url}");
        assert_eq!(header("referrer-policy"), "no-referrer", "{url}");
        let is_stream = header("content-type") == "text/event-stream";
        assert_eq!(header("cache-control"), if is_stream { "no-cache, no-transform" } else { "no-store" }, "{url}");
    }
}
