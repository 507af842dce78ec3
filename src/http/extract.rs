//! What handlers extract from a request, and how invalid input is refused: [`Id`] from the path, [`Params`] from the query,
//! [`Body`], and [`Cursor`].

use std::str::FromStr;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::App;
use super::error::Error;
use super::places::StreamPlace;
use crate::event::Seq;
use crate::id::InvalidId;

/// The `{id}` of the path.
pub(super) struct Id<T>(pub(super) T);

impl<T: FromStr<Err = InvalidId>, S: Send + Sync> FromRequestParts<S> for Id<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let Path(id) = path.map_err(|rejection| Error::malformed("invalid_id", rejection.body_text()))?;
        Ok(Self(id.parse()?))
    }
}

/// Parameters of the query. Other extractors may read further ones; those that no extractor reads were refused before (`query`).
pub(super) struct Params<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        Ok(Self(params(&parts.uri)?))
    }
}

fn params<T: DeserializeOwned>(uri: &Uri) -> Result<T, Error> {
    let query = Query::<T>::try_from_uri(uri);
    query.map(|Query(params)| params).map_err(|rejection| Error::malformed("invalid_query", rejection.body_text()))
}

/// A JSON body.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, app: &App) -> Result<Self, Error> {
        check_json(request.headers())?;
        Ok(Self(parse(&read_body(request, app).await?)?))
    }
}

/// A JSON body that may be left out.
pub(super) struct OptionalBody<T>(pub(super) T);

impl<T: DeserializeOwned + Default> FromRequest<App> for OptionalBody<T> {
    type Rejection = Error;

    async fn from_request(request: Request, app: &App) -> Result<Self, Error> {
        if axum::body::HttpBody::is_end_stream(request.body()) {
            return Ok(Self(T::default()));
        }
        let Body(body) = Body::from_request(request, app).await?;
        Ok(Self(body))
    }
}

/// Refuses a body whose headers do not declare uncompressed JSON.
pub(super) fn check_json(headers: &HeaderMap) -> Result<(), Error> {
    let is_identity = |encoding: &HeaderValue| encoding.as_bytes().eq_ignore_ascii_case(b"identity");
    if !headers.get_all(header::CONTENT_ENCODING).iter().all(is_identity) {
        let message = "a compressed body is not taken: send it without Content-Encoding";
        return Err(Error::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", message));
    }
    let given = headers.get(header::CONTENT_TYPE).and_then(|given| given.to_str().ok()).unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        return Ok(());
    }
    let message = "the body must be JSON, with \"Content-Type: application/json\"";
    Err(Error::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message))
}

/// The longest body of a request: less than `max_body_bytes` on some routes.
#[derive(Debug, Clone, Copy)]
pub(super) struct BodyLimit(pub(super) usize);

/// The whole body, within its [`BodyLimit`].
pub(super) async fn read_body(request: Request, app: &App) -> Result<Bytes, Error> {
    let limit = request.extensions().get().map_or(app.max_body_bytes, |BodyLimit(limit)| *limit);
    let too_large = || {
        let way_out = if limit < app.max_body_bytes { "" } else { ", or raise max_body_bytes under [server]" };
        let message = format!("the body may have at most {limit} bytes; send less{way_out}");
        Error::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    let announced = axum::body::HttpBody::size_hint(request.body()).lower();
    // Refused before the body is sent: a client that waits for "100 Continue" need not send it.
    if usize::try_from(announced).unwrap_or(usize::MAX) > limit {
        return Err(too_large());
    }
    match tokio::time::timeout(app.timeouts.body, Bytes::from_request(request, app)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(too_large()),
        Ok(Err(rejection)) => Err(unreadable(rejection.body_text())),
        Err(_) => Err(timed_out()),
    }
}

/// A body that broke off.
pub(super) fn unreadable(detail: String) -> Error {
    Error::malformed("unreadable_body", detail)
}

/// A body that took too long to arrive.
pub(super) fn timed_out() -> Error {
    Error::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "the body took too long to arrive")
}

/// A body that is not JSON.
pub(super) fn malformed_json(error: serde_json::Error) -> Error {
    Error::malformed("malformed_json", error.to_string())
}

/// Parses JSON as a `T`: 400 if it is not JSON, 422 with the path of the value if it is not a `T`.
pub(super) fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, Error> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let error = match serde_path_to_error::deserialize(&mut reader) {
        Ok(value) => return reader.end().map(|()| value).map_err(malformed_json),
        Err(error) => error,
    };
    // A wrong type may be found before a syntax error, but only valid JSON gets a 422.
    serde_json::from_slice::<IgnoredAny>(json).map_err(malformed_json)?;
    // An escape that is no character is found only when the text is decoded.
    let has_shape = error.inner().is_data() || is_no_word(error.inner());
    if has_shape {
        Err(Error::invalid("invalid_body", with_path(&error)))
    } else {
        Err(malformed_json(error.into_inner()))
    }
}

/// Whether another value stands where a string is expected, which serde_json reports as a syntax error.
fn is_no_word(error: &serde_json::Error) -> bool {
    error.is_syntax() && error.to_string().starts_with("expected value")
}

/// What is wrong with a value, after the path to it: `message.parts[3].text: …`.
pub(super) fn with_path(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let what = match error.inner() {
        inner if is_no_word(inner) => "a value of another type is expected".to_owned(),
        inner => inner.to_string(),
    };
    match error.path().iter().next() {
        Some(_) => format!("{}: {what}", error.path()),
        None => what,
    }
}

/// Where in a log the client wants to continue: `Last-Event-ID`, else the query.
pub(super) struct Cursor(pub(super) Seq);

#[derive(Deserialize)]
struct CursorParams {
    after: Option<String>,
    /// The name that the previous page gives it.
    cursor: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for Cursor {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        read_cursor(&parts.uri, &parts.headers).map(Self)
    }
}

/// Where in a log a request wants to continue: behind the event that `Last-Event-ID` names, else `?cursor=`, else `?after=`;
/// 0 is the beginning.
///
/// # Errors
/// 400 if it is no seq: digits, 0 to 2⁶³−1.
pub fn read_cursor(uri: &Uri, headers: &HeaderMap) -> Result<Seq, Error> {
    let query: CursorParams = params(uri)?;
    let header = headers.get("last-event-id").map(|id| id.to_str().unwrap_or("?").to_owned());
    let Some(given) = header.or(query.cursor).or(query.after) else { return Ok(0) };
    let digits = !given.is_empty() && given.bytes().all(|b| b.is_ascii_digit());
    let seq = given.parse().ok().filter(|_| digits);
    seq.ok_or_else(|| Error::malformed("invalid_cursor", "a cursor is the seq of an event, 0 or more"))
}

/// Whether the client wants a stream. Its place is taken only once the body has arrived, which may take long or never happen.
pub(super) struct WantsStream(bool);

impl WantsStream {
    /// A place for the requested stream.
    pub(super) fn place(&self, app: &App) -> Result<Option<StreamPlace>, Error> {
        self.0.then(|| StreamPlace::take(app)).transpose()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for WantsStream {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        Ok(Self(wants_stream(&parts.headers)))
    }
}

pub(super) fn wants_stream(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut kinds = accepted.flat_map(|value| value.split(',')).filter_map(|kind| kind.split(';').next());
    kinds.any(|kind| kind.trim().eq_ignore_ascii_case("text/event-stream"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::response::IntoResponse;
    use serde_json::Value;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Named {
        #[expect(dead_code, reason = "only its shape is tested")]
        name: String,
    }

    async fn refused<T>(result: Result<T, Error>) -> (u16, String) {
        let response = result.err().map(IntoResponse::into_response).unwrap();
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        (status, body["error"]["message"].as_str().unwrap().to_owned())
    }

    #[tokio::test]
    async fn what_is_no_json_is_told_from_what_is_the_wrong_json() {
        for malformed in ["", "{", r#"{"name":"#, r#"{"other":1,"#, r#"{"name":"\ud800"}"#, r#"{"name":"a"} x"#] {
            let (status, message) = refused(parse::<Named>(malformed.as_bytes())).await;
            assert_eq!(status, 400, "{malformed}: {message}");
            assert!(message.contains("column"), "{message}");
        }
        for (wrong, word) in [("[]", "expected"), (r#"{"other":1}"#, "`other`"), (r#"{"name":1}"#, "string")] {
            let (status, message) = refused(parse::<Named>(wrong.as_bytes())).await;
            assert_eq!(status, 422, "{wrong}: {message}");
            assert!(message.contains(word), "{message}");
        }
        assert!(parse::<Named>(br#"{"name":"a"}"#).is_ok());
    }

    #[tokio::test]
    async fn a_wrong_type_is_told_with_its_path() {
        #[derive(Debug, Deserialize)]
        struct Outer {
            #[expect(dead_code, reason = "only its shape is tested")]
            inner: Vec<Option<Named>>,
            #[expect(dead_code, reason = "only its shape is tested")]
            when_busy: Option<crate::run::WhenBusy>,
        }
        for (wrong, told) in [
            (r#"{"inner":[null,{"name":[]}]}"#, "inner[1].name: invalid type: sequence, expected a string"),
            (r#"{"inner":[{"name":"a","x":1}]}"#, "inner[0].x: unknown field `x`, expected `name`"),
            (r#"{"inner":{}}"#, "inner: invalid type: map, expected a sequence"),
            (r#"{"inner":[],"when_busy":1}"#, "when_busy: a value of another type is expected"),
            (r#"{"inner":[],"when_busy":"x"}"#, "when_busy: unknown variant `x`"),
            (r#"{}"#, "missing field `inner`"),
            (r#"7"#, "invalid type: integer `7`"),
        ] {
            let (status, message) = refused(parse::<Outer>(wrong.as_bytes())).await;
            assert!(status == 422 && message.starts_with(told), "{wrong}: {status} {message}");
        }
    }
}
