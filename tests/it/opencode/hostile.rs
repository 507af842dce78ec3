//! Bytes that break rules.

use mainstay::failure::ErrorClass;
use serde_json::json;
use testkit::fake::opencode::Server;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use testkit::within;

use super::{Relay, begins, delta, ends, error_of, options, text_of, turn};

#[tokio::test]
async fn half_a_character_costs_no_other_words() {
    within(async {
        let mut fake = Server::start().await.unwrap();
        let relay = Relay::start(turn(&fake.endpoint, None, options())).await;
        let follower = fake.followed().await.unwrap();
        begins(&follower).await;
        let properties = delta("HALF").to_string().replace("HALF", r"two \ud83d");
        let event = json!({"type": "message.part.delta", "properties": {"sessionID": "ses_new"}}).to_string();
        let event =
            event.replace(r#""sessionID":"ses_new"}"#, &format!(r#""sessionID":"ses_new",{}"#, &properties[1..]));
        follower.raw(&format!("data: {event}\n\n")).await;
        follower.of_session("message.part.delta", delta(" three")).await;
        ends(&follower, "one two \u{fffd} three").await;
        assert_eq!(text_of(&relay.end().await), "one two \u{fffd} three");
    })
    .await;
}

#[tokio::test]
async fn garbage_and_endless_events_are_passed_over_and_counted() {
    within(async {
        let mut fake = Server::start().await.unwrap();
        let relay = Relay::start(turn(&fake.endpoint, None, options())).await;
        let follower = fake.followed().await.unwrap();
        begins(&follower).await;
        follower.raw("data: {\"type\":\n\ndata: [1,2\n\nevent: x\nid: 3\n: comment\n\u{0}\u{1}\r\r\ndata: 7\n\n").await;
        follower.raw("data: ").await;
        let piece = "x".repeat(1024 * 1024);
        for _ in 0..20 {
            follower.raw(&piece).await;
        }
        // An event of another session does not count.
        follower.raw("\n\ndata: {\"sessionID\":\"ses_other\",\n\n").await;
        follower.of_session("message.part.delta", delta("two ")).await;
        ends(&follower, "one two three").await;
        let (events, unread) = relay.ends().await;
        assert_eq!((text_of(&events).as_str(), error_of(&events)), ("one two three", None));
        assert_eq!(
            unread.iter().map(|line| line.chars().take(3).collect::<String>()).collect::<Vec<_>>(),
            ["{\"t", "[1,", "7…", "xxx"]
        );
        assert!(unread.iter().all(|line| line.len() < 1000));
    })
    .await;
}

#[tokio::test]
async fn an_endless_header_is_an_error() {
    within(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let relay = Relay::start(turn(&endpoint, None, options())).await;
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await.unwrap();
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
        let events = relay.end().await;
        assert_eq!(error_of(&events).unwrap().class, Some(ErrorClass::Crashed));
    })
    .await;
}
