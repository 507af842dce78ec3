//! The log lines of requests.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::service::scene::{Scene, block_until};

#[test]
fn refused_pages_are_logged_with_the_line_that_allows_them() {
    let scene = Scene::new("[server]\nallowed_origins = [\"https://a.example\"]\n");
    let daemon = scene.daemon();
    let address = daemon.address();
    let ask = |host: &str, origin: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        let head =
            format!("GET /v1/sessions HTTP/1.1\r\nhost: {host}\r\norigin: {origin}\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    };
    for _ in 0..3 {
        ask("localhost", "http://LOCALHOST:5173");
    }
    ask("proxy.example", "https://a.example");
    ask("localhost", "null");
    let line = |text: &str| scene.log().lines().filter(|line| line.replace('\\', "").contains(text)).count();
    let (origins, hosts) =
        (r#"allowed_origins = ["https://a.example", "http://localhost:5173"]"#, r#"allowed_hosts = ["proxy.example"]"#);
    block_until(|| line(origins) > 0 && line(hosts) > 0);
    assert_eq!((line(origins), line(hosts), line("null")), (1, 1, 0), "{}", scene.log());
}
