//! Redis Streams as a peer: a server started here, with a hand-written client. The server writes nothing to disk, which is to
//! its advantage.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A running server and a connection to it.
pub struct Redis {
    server: Child,
    stream: BufReader<TcpStream>,
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It stores nothing; it may be gone already.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Redis {
    /// Starts a server; `None`, with a message, if there is none on the `PATH`.
    pub fn start(dir: &Path) -> Option<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let spawned = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"])
            .arg(dir)
            .stdout(Stdio::null())
            .spawn();
        let server = match spawned {
            Ok(server) => server,
            Err(error) => {
                println!("  SKIPPED: Redis Streams, because redis-server does not start here ({error})");
                return None;
            }
        };
        for _ in 0..100 {
            if let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
                stream.set_nodelay(true).unwrap();
                return Some(Self { server, stream: BufReader::with_capacity(1 << 20, stream) });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("redis-server does not listen");
    }

    fn send(&mut self, commands: &[Vec<&str>]) {
        let mut text = String::new();
        for words in commands {
            text += &format!("*{}\r\n", words.len());
            for word in words {
                text += &format!("${}\r\n{word}\r\n", word.len());
            }
        }
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
    }

    /// Appends to a stream.
    pub fn add(&mut self, key: &str, events: &[String]) {
        let commands: Vec<_> = events.iter().map(|event| vec!["XADD", key, "*", "event", event]).collect();
        self.send(&commands);
        for _ in events {
            self.reply();
        }
    }

    /// Reads a stream from its beginning, page by page; returns the number of its entries, plus one for the `start` event that
    /// the other sides have.
    pub fn read(&mut self, key: &str, page: i64) -> usize {
        let (mut after, mut total) = ("-".to_owned(), 1);
        loop {
            self.send(&[vec!["XRANGE", key, &after, "+", "COUNT", &page.to_string()]]);
            let Reply::Many(entries) = self.reply() else { panic!("XRANGE answers with a list") };
            total += entries.len();
            let Some(Reply::Many(last)) = entries.last() else { return total };
            let Some(Reply::Bytes(id)) = last.first() else { panic!("an entry begins with its id") };
            after = format!("({}", String::from_utf8_lossy(id));
        }
    }

    fn reply(&mut self) -> Reply {
        let mut head = String::new();
        self.stream.read_line(&mut head).unwrap();
        let number = || head[1..].trim_end().parse::<usize>().unwrap();
        match head.as_bytes()[0] {
            b'*' => {
                let count = number();
                Reply::Many((0..count).map(|_| self.reply()).collect())
            }
            b'$' => {
                let mut bytes = vec![0; number() + 2];
                self.stream.read_exact(&mut bytes).unwrap();
                bytes.truncate(bytes.len() - 2);
                Reply::Bytes(bytes)
            }
            _ => panic!("redis-server said {head:?}"),
        }
    }
}

enum Reply {
    Many(Vec<Reply>),
    Bytes(Vec<u8>),
}
