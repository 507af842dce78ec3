//! A web origin as browsers send it in the `Origin` header: `https://chat.example.com:8443`, `tauri://localhost`.

use std::fmt;
use std::str::FromStr;

/// Scheme, host and port; the default port of the scheme is omitted, as browsers do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

/// A text that is not an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a web origin as browsers send it is needed, such as https://chat.example.com")]
pub struct InvalidOrigin;

impl Origin {
    /// Whether it is the origin of the server that a request names by `host` and `port`. Ignores TLS, which only a proxy in
    /// front of the server would know about.
    pub fn is_at(&self, host: &str, port: Option<u16>) -> bool {
        let own_port = port.filter(|port| Some(*port) != default_port(&self.scheme));
        matches!(self.scheme.as_str(), "http" | "https")
            && self.host.eq_ignore_ascii_case(host)
            && self.port == own_port
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

impl FromStr for Origin {
    type Err = InvalidOrigin;

    fn from_str(text: &str) -> Result<Self, InvalidOrigin> {
        let text = text.to_ascii_lowercase();
        let (scheme, authority) = text.split_once("://").ok_or(InvalidOrigin)?;
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (authority, None),
        };
        let is_number = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.map(|port| port.parse().ok().filter(|_| is_number(port)).ok_or(InvalidOrigin)).transpose()?;
        if !is_scheme(scheme) || !is_host(host) {
            return Err(InvalidOrigin);
        }
        let port = port.filter(|port| Some(*port) != default_port(scheme));
        Ok(Self { scheme: scheme.to_owned(), host: host.to_owned(), port })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// Includes the schemes of applications: `tauri`, `app`, `capacitor`, `chrome-extension`. A `file:` page has no origin of its
/// own.
fn is_scheme(text: &str) -> bool {
    const MAX_SCHEME_BYTES: usize = 40;
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
    (1..=MAX_SCHEME_BYTES).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(legal)
        && text != "file"
}

/// A name or an address, as in the `Host` header before the port.
pub(super) fn is_host(text: &str) -> bool {
    const MAX_HOST_BYTES: usize = 253;
    let name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
    let v6 = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    match v6 {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => (1..=MAX_HOST_BYTES).contains(&text.len()) && text.bytes().all(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_compared_without_case_and_default_port() {
        for (text, plain) in [
            ("https://chat.example.com:443", "https://chat.example.com"),
            ("HTTP://Localhost:80", "http://localhost"),
            ("http://localhost:443", "http://localhost:443"),
            ("http://[::1]:80", "http://[::1]"),
            ("http://[::1]", "http://[::1]"),
            ("tauri://localhost", "tauri://localhost"),
            ("capacitor://localhost:80", "capacitor://localhost:80"),
            ("app://-", "app://-"),
            ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
        ] {
            assert_eq!(text.parse::<Origin>().map(|origin| origin.to_string()).as_deref(), Ok(plain));
        }
        for text in [
            "",
            "null",
            "https://",
            "://x",
            "chat.example.com",
            "https://x/",
            "https://x:",
            "https://x:+1",
            "https://x:99999",
            "https://a@b",
            "https://a b",
            "file://",
            "file://x",
            "1a://x",
            "https://ü",
            "https://x?y",
            "https://x\n",
        ] {
            assert_eq!(text.parse::<Origin>(), Err(InvalidOrigin), "{text:?}");
        }
    }

    #[test]
    fn own_pages_are_known_by_the_host_of_the_request() {
        let origin = |text: &str| text.parse::<Origin>().unwrap();
        for (text, host, port, own) in [
            ("http://localhost:7717", "localhost", Some(7717), true),
            ("https://engine.lan", "ENGINE.lan", None, true),
            ("https://engine.lan", "engine.lan", Some(443), true),
            ("http://engine.lan", "engine.lan", Some(80), true),
            ("http://engine.lan", "engine.lan", Some(443), false),
            ("http://localhost", "localhost", Some(7717), false),
            ("tauri://localhost", "localhost", None, false),
        ] {
            assert_eq!(origin(text).is_at(host, port), own, "{text} at {host} {port:?}");
        }
    }
}
