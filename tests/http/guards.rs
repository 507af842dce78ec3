//! Access: tokens and roles, Host, Origin.

use mainstay::http::{Access, Timeouts, serve};
use reqwest::{Method, RequestBuilder};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::scene::{Scene, Streaming, read, status_of};

const TOKEN: &str = "opensesame-opensesame-opensesame";

async fn guarded() -> Scene {
    let config = format!("[server]\ntoken = \"{TOKEN}\"\nallowed_origins = [\"https://chat.example.com\"]");
    Scene::with(&config, Timeouts::default()).await
}

#[tokio::test]
async fn nothing_but_the_health_is_told_without_the_token() {
    let scene = guarded().await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(scene.get(path).await.status, 200);
        assert_eq!(scene.ask(Method::HEAD, path).send().await.unwrap().status(), 200);
        assert_eq!(scene.post(path, json!({})).await.refused(), (401, "unauthorized"));
    }
    for path in ["/metrics", "/v1/sessions", "/v1/runs/x", "/api/chat/s/stream", "/nowhere", "/healthz/"] {
        let answer = scene.get(path).await;
        assert_eq!((answer.refused(), answer.header("www-authenticate")), ((401, "unauthorized"), "Bearer"), "{path}");
    }
    let short = TOKEN.trim_end_matches('e');
    for wrong in ["", "Bearer", "Bearer ", &format!("Basic {TOKEN}"), &format!("Bearer {short}"), TOKEN] {
        let request = scene.ask(Method::GET, "/v1/sessions").header("authorization", wrong);
        assert_eq!(read(request).await.refused(), (401, "unauthorized"), "{wrong:?}");
    }
    for right in [format!("Bearer {TOKEN}"), format!("bearer {TOKEN}")] {
        assert_eq!(read(scene.ask(Method::GET, "/v1/sessions").header("authorization", right)).await.status, 200);
    }
}

#[tokio::test]
async fn open_access_beyond_loopback_is_not_served() {
    let scene = Scene::new().await;
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let config = scene.engine.config().server.clone();
    let served = serve(scene.engine.clone(), &config, Access::Open, listener, CancellationToken::new()).await;
    assert_eq!(served.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn only_streams_take_the_token_from_the_query() {
    let scene = guarded().await;
    let authorized = |request: RequestBuilder| request.bearer_auth(TOKEN);
    let body = json!({"message": {"text": "hello"}});
    assert_eq!(read(authorized(scene.ask(Method::POST, "/v1/sessions/s/runs")).json(&body)).await.status, 202);
    let mut stream = scene.stream(&format!("/v1/sessions/s/events?token={TOKEN}")).await;
    stream.until("retry", 1).await;
    assert_eq!(scene.stream(&format!("/api/chat/s/stream?after=0&token={TOKEN}")).await.status, 200);
    assert_eq!(scene.stream("/v1/sessions/s/events?token=other").await.status, 401);
    for path in ["/v1/sessions", "/v1/sessions/s/messages"] {
        assert_eq!(scene.get(&format!("{path}?token={TOKEN}")).await.refused(), (401, "unauthorized"));
    }
    let sent = read(scene.ask(Method::POST, &format!("/v1/sessions/s/runs?token={TOKEN}")).json(&body)).await;
    assert_eq!(sent.refused(), (401, "unauthorized"));
}

#[tokio::test]
async fn a_name_that_is_not_ours_is_not_answered() {
    let scene = Scene::with("[server]\nallowed_hosts = [\"engine.lan\"]", Timeouts::default()).await;
    let asked = async |host: &str| read(scene.ask(Method::GET, "/v1/sessions").header("host", host)).await;
    for host in ["localhost", "127.0.0.1:1", "[::1]", "engine.lan:7717"] {
        assert_eq!(asked(host).await.status, 200, "{host}");
    }
    assert_eq!(asked("evil.example").await.refused(), (403, "forbidden_host"));
    for (head, status) in [
        ("GET /healthz HTTP/1.1\r\n", 400),
        ("GET /healthz HTTP/1.0\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n", 400),
        ("GET http://evil.example/healthz HTTP/1.1\r\nhost: localhost\r\n", 403),
        ("GET http://localhost/healthz HTTP/1.1\r\nhost: evil.example\r\n", 200),
    ] {
        let answer = scene.raw(format!("{head}connection: close\r\n\r\n")).await.unwrap();
        assert_eq!(status_of(&answer), status, "{head}");
    }
}

#[tokio::test]
async fn a_page_of_another_origin_drives_nothing() {
    let scene = Scene::new().await;
    let send = |origin: &str| {
        let body = json!({"message": {"text": "hello"}});
        scene.ask(Method::POST, "/v1/sessions/s/runs").header("origin", origin).json(&body)
    };
    for origin in ["https://evil.example", "null", "http://localhost:1"] {
        assert_eq!(read(send(origin)).await.refused(), (403, "forbidden_origin"), "{origin}");
    }
    assert_eq!(scene.get("/v1/sessions/s").await.status, 404);
    assert_eq!(read(send(&format!("http://{}", scene.address))).await.status, 202);
}

#[tokio::test]
async fn a_page_that_is_allowed_reads_answers_and_refusals() {
    let scene = guarded().await;
    let origin = "https://chat.example.com";
    let asked = scene.ask(Method::OPTIONS, "/api/chat").header("origin", origin);
    let asked = asked.header("access-control-request-method", "POST");
    let preflight = read(asked.header("access-control-request-headers", "authorization,x-own")).await;
    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.header("access-control-allow-origin"), origin);
    assert_eq!(preflight.header("access-control-allow-methods"), "GET, POST, PUT, PATCH, DELETE");
    assert_eq!(preflight.header("access-control-allow-credentials"), "true");
    assert_eq!(preflight.header("access-control-allow-headers"), "authorization,x-own");
    assert_eq!(preflight.header("vary"), "Origin");

    let refused = read(scene.ask(Method::GET, "/v1/sessions").header("origin", origin)).await;
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, origin));
    let request = scene.ask(Method::GET, "/v1/sessions").header("origin", origin).bearer_auth(TOKEN);
    let answer = read(request).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, origin));
    assert_eq!(answer.header("access-control-allow-credentials"), "true");
    let foreign = scene.ask(Method::OPTIONS, "/api/chat").header("origin", "https://evil.example");
    let foreign = read(foreign.header("access-control-request-method", "POST")).await;
    assert_eq!(foreign.refused(), (403, "forbidden_origin"));
    assert_eq!(foreign.header("access-control-allow-origin"), "");
    assert_eq!(foreign.header("access-control-allow-credentials"), "");

    let stream = scene.ask(Method::GET, &format!("/api/chat/s/stream?token={TOKEN}")).header("origin", origin);
    assert_eq!(Streaming::open(stream).await.headers["access-control-allow-origin"], origin);
}

#[tokio::test]
async fn pages_of_applications_have_origins_of_their_own() {
    let origins = ["tauri://localhost", "app://-", "capacitor://localhost", "chrome-extension://abcdef", "http://x:80"];
    let config = format!("[server]\nallowed_origins = {origins:?}");
    let scene = Scene::with(&config, Timeouts::default()).await;
    let asked = async |origin: &str| read(scene.ask(Method::GET, "/v1/sessions").header("origin", origin)).await;
    for origin in ["tauri://localhost", "app://-", "capacitor://localhost", "chrome-extension://abcdef", "http://x"] {
        let answer = asked(origin).await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, origin));
    }
    for origin in ["tauri://other", "app://localhost", "https://x", "http://x:81", "file://", "null"] {
        assert_eq!(asked(origin).await.refused(), (403, "forbidden_origin"), "{origin}");
    }
}

#[tokio::test]
async fn page_of_another_site_gets_nothing_without_an_origin() {
    let scene = Scene::with("[server]\nallowed_origins = [\"https://chat.example.com\"]", Timeouts::default()).await;
    let asked = |path: &str, site: &str| scene.ask(Method::GET, path).header("sec-fetch-site", site);
    for path in ["/v1/agents", "/readyz", "/v1/sessions", "/v1/sessions/s/events"] {
        for site in ["cross-site", "same-site"] {
            assert_eq!(read(asked(path, site)).await.refused(), (403, "forbidden_origin"), "{path} {site}");
        }
        let twice = asked(path, "same-origin").header("sec-fetch-site", "cross-site");
        assert_eq!(read(twice).await.refused(), (403, "forbidden_origin"), "{path}");
    }
    for site in ["same-origin", "none"] {
        assert_eq!(read(asked("/v1/sessions", site)).await.status, 200, "{site}");
    }
    let allowed = asked("/v1/sessions", "cross-site").header("origin", "https://chat.example.com");
    assert_eq!(read(allowed).await.status, 200);
}
