//! Host and Origin: a page of another site, opened in a browser on this machine, cannot drive the daemon.
//!
//! The Host must be one of the daemon's names; otherwise a foreign name could be pointed at this machine (DNS rebinding) and
//! its pages would count as the daemon's own. The Origin, which browsers send with every request that can do harm, must be the
//! daemon's own or allowed. Links, images and frames come without an Origin; for those, a browser says in `Sec-Fetch-Site` which
//! site made the request, and another site's is refused: some GETs start programs (`/v1/agents`), write (`/readyz`) or hold a
//! connection (streams). A refusal is logged with the config line that would allow it, because a browser does not show why.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::App;
use super::error::Error;
use super::roles::Needs;
use crate::config::{Origin, ServerConfig};

const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE");
/// Which site made the browser send this: `same-origin`, `same-site`, `cross-site`, or `none` for a typed address.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const HEADERS: HeaderValue = HeaderValue::from_static("authorization, content-type, last-event-id, x-request-id");
const EXPOSED: HeaderValue = HeaderValue::from_static("retry-after, x-request-id, x-vercel-ai-ui-message-stream");
/// How long a browser may cache a preflight response.
const MAX_AGE_SECONDS: HeaderValue = HeaderValue::from_static("600");

/// How often the log repeats that a host or an origin was refused.
const HINT_INTERVAL: Duration = Duration::from_secs(10 * 60);
/// How many different ones it names in that time.
const HINTS: usize = 16;

/// The names under which this server may be addressed, and the origins whose pages may call it.
pub(super) struct Guard {
    /// It listens on every address of the machine and is protected by a token: its names are not known here.
    any_host: bool,
    listen: IpAddr,
    allowed_hosts: Vec<String>,
    allowed_origins: Vec<Origin>,
    hints: Hints,
}

/// Passes a request on, or refuses it with the reason.
pub(super) async fn admit(State((app, needs)): State<(App, Arc<Needs>)>, request: Request, next: Next) -> Response {
    let origin = match app.guard.check(&request) {
        Ok(origin) => origin.cloned(),
        Err(error) => return error.into_response(),
    };
    let Some(origin) = origin else { return authorized(&app, &needs, request, next).await };
    let mut response = match is_preflight(&request) {
        // A preflight never carries a token; the request that it announces will.
        true => allow(&request),
        false => authorized(&app, &needs, request, next).await,
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    // A proxy in front may authenticate by cookie. Here no cookie counts, and the origin is an allowed one.
    headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    response
}

async fn authorized(app: &App, needs: &Needs, mut request: Request, next: Next) -> Response {
    let shown = app.auth.read(needs, &request);
    match app.auth.check(shown).await {
        Ok(caller) => {
            caller.map(|caller| request.extensions_mut().insert(caller));
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn allow(request: &Request) -> Response {
    // An allowed page may add headers of its own: they have no effect here.
    let asked = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, asked.unwrap_or(HEADERS)),
        (header::ACCESS_CONTROL_MAX_AGE, MAX_AGE_SECONDS),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

impl Guard {
    pub(super) fn new(config: &ServerConfig, listen: IpAddr, needs_token: bool) -> Self {
        // The config has validated them.
        let origins = config.allowed_origins.iter().filter_map(|origin| origin.trim_end_matches('/').parse().ok());
        Self {
            any_host: listen.is_unspecified() && needs_token,
            listen,
            allowed_hosts: config.allowed_hosts.clone(),
            allowed_origins: origins.collect(),
            hints: Hints::default(),
        }
    }

    /// The request's origin, if it has one. An error if its Host or Origin is not allowed.
    fn check<'a>(&self, request: &'a Request) -> Result<Option<&'a HeaderValue>, Error> {
        let host = host(request)?;
        if !self.knows_host(&host) {
            if is_name(host.host()) {
                self.hints.tell("Host", "allowed_hosts", host.host(), &self.allowed_hosts);
            }
            let message = "this host name is none of ours: add it to allowed_hosts";
            return Err(Error::new(StatusCode::FORBIDDEN, "forbidden_host", message));
        }
        let mut origins = request.headers().get_all(header::ORIGIN).iter();
        match (origins.next(), origins.next()) {
            (None, _) if is_other_site(request.headers()) => {
                let message = "a page of another site made the browser ask, without an Origin that could be allowed";
                Err(Error::new(StatusCode::FORBIDDEN, "forbidden_origin", message))
            }
            (None, _) => Ok(None),
            (Some(origin), None) if self.knows_origin(origin, &host) => Ok(Some(origin)),
            (origin, _) => {
                if let Some(origin) = origin.and_then(origin_of) {
                    self.hints.tell("Origin", "allowed_origins", &origin.to_string(), &self.allowed_origins);
                }
                let message = "pages of this origin may not drive the daemon: add it to allowed_origins";
                Err(Error::new(StatusCode::FORBIDDEN, "forbidden_origin", message))
            }
        }
    }

    fn knows_host(&self, host: &Authority) -> bool {
        let name = host.host().trim_start_matches('[').trim_end_matches(']');
        let ours = match name.parse::<IpAddr>() {
            Ok(ip) => ip.is_loopback() || ip == self.listen,
            Err(_) => name.eq_ignore_ascii_case("localhost"),
        };
        // An entry with a port allows only that port, one without allows any.
        let allowed = |allowed: &String| [host.as_str(), host.host()].iter().any(|h| h.eq_ignore_ascii_case(allowed));
        ours || self.any_host || self.allowed_hosts.iter().any(allowed)
    }

    fn knows_origin(&self, origin: &HeaderValue, host: &Authority) -> bool {
        let Some(origin) = origin_of(origin) else { return false };
        origin.is_at(host.host(), host.port_u16()) || self.allowed_origins.contains(&origin)
    }
}

/// Whether a browser says that another site made the request. Other programs do not send the header.
fn is_other_site(headers: &HeaderMap) -> bool {
    headers.get_all(SEC_FETCH_SITE).iter().any(|site| site != "same-origin" && site != "none")
}

fn origin_of(header: &HeaderValue) -> Option<Origin> {
    header.to_str().ok()?.parse().ok()
}

/// Whether it could be an entry in the config.
fn is_name(host: &str) -> bool {
    format!("http://{host}").parse::<Origin>().is_ok()
}

/// The log's hints about refused hosts and origins: each with the line that would allow it.
#[derive(Default)]
struct Hints {
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    since: Option<Instant>,
    names: HashSet<String>,
}

impl Hints {
    fn tell(&self, header: &str, key: &str, name: &str, allowed: &[impl ToString]) {
        if !self.is_due(&format!("{key} {name}")) {
            return;
        }
        let names = allowed.iter().map(ToString::to_string).chain([name.to_owned()]);
        let names = names.map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
        let line = format!("{key} = [{names}]");
        tracing::warn!(name, line, "{header} refused; to allow it, put the line under [server] in the config");
    }

    /// Each name once per interval, and only a few: any client can send any name.
    fn is_due(&self, name: &str) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.since.is_none_or(|since| since.elapsed() >= HINT_INTERVAL) {
            *told = Told { since: Some(Instant::now()), names: HashSet::new() };
        }
        told.names.len() < HINTS && told.names.insert(name.to_owned())
    }
}

/// The host that is addressed: the request target's if it names one (then Host is to be ignored), else Host.
fn host(request: &Request) -> Result<Authority, Error> {
    let missing = || Error::malformed("invalid_host", "one header Host, with a host name, is needed");
    let host = match request.uri().authority() {
        Some(authority) => authority.clone(),
        None => only_host(request.headers()).ok_or_else(missing)?,
    };
    if host.as_str().contains('@') || host.host().is_empty() { Err(missing()) } else { Ok(host) }
}

fn only_host(headers: &HeaderMap) -> Option<Authority> {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => Authority::try_from(host.as_bytes()).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn guard(listen: &str, token: bool) -> Guard {
        let config = ServerConfig {
            allowed_origins: vec!["https://chat.example.com:443".into(), "tauri://localhost".into()],
            allowed_hosts: vec!["engine.lan".into(), "proxy.lan:8443".into()],
            ..Config::builtin(std::path::Path::new("/")).server
        };
        Guard::new(&config, listen.parse().unwrap(), token)
    }

    fn check(guard: &Guard, host: &str, origin: Option<&str>) -> Result<bool, u16> {
        let mut request = Request::get("/").header("host", host);
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        let request = request.body(axum::body::Body::empty()).unwrap();
        guard.check(&request).map(|origin| origin.is_some()).map_err(|e| e.into_response().status().as_u16())
    }

    #[test]
    fn only_our_own_names_are_answered() {
        let local = guard("127.0.0.1", false);
        for host in ["localhost", "LOCALHOST:7717", "127.0.0.1", "127.9.9.9:1", "[::1]:7717", "engine.lan:99"] {
            assert_eq!(check(&local, host, None), Ok(false), "{host}");
        }
        assert_eq!(check(&local, "proxy.lan:8443", None), Ok(false));
        for host in ["evil.example", "localhost.evil.example", "10.0.0.1", "proxy.lan:80", "127.0.0.1.nip.io"] {
            assert_eq!(check(&local, host, None), Err(403), "{host}");
        }
        for host in ["", "a b", "user@localhost"] {
            assert_eq!(check(&local, host, None), Err(400), "{host}");
        }
        assert_eq!(check(&guard("10.0.0.1", true), "10.0.0.1:80", None), Ok(false));
        assert_eq!(check(&guard("0.0.0.0", true), "anything.example", None), Ok(false));
        assert_eq!(check(&guard("0.0.0.0", false), "anything.example", None), Err(403));
    }

    #[test]
    fn only_our_own_and_allowed_pages_are_answered() {
        let local = guard("127.0.0.1", false);
        for origin in
            ["http://localhost:7717", "https://LOCALHOST:7717", "https://chat.example.com", "tauri://localhost"]
        {
            assert_eq!(check(&local, "localhost:7717", Some(origin)), Ok(true), "{origin}");
        }
        for origin in [
            "null",
            "",
            "http://localhost",
            "http://localhost:7718",
            "http://chat.example.com",
            "https://chat.example.com:444",
            "app://localhost",
            "file://",
        ] {
            assert_eq!(check(&local, "localhost:7717", Some(origin)), Err(403), "{origin}");
        }
        for (origin, host) in [("http://localhost", "localhost:80"), ("https://localhost", "localhost")] {
            assert_eq!(check(&local, host, Some(origin)), Ok(true), "{origin} at {host}");
        }
    }

    #[test]
    fn each_refused_origin_is_told_once_and_not_without_end() {
        let hints = Hints::default();
        assert_eq!([hints.is_due("a"), hints.is_due("b"), hints.is_due("a")], [true, true, false]);
        let told = (0..1000).filter(|number| hints.is_due(&number.to_string())).count();
        assert_eq!(told, HINTS - 2);
    }
}
