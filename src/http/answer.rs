//! Response bodies: JSON lists, whose memory is released piece by piece as they are sent and whose large texts are read from the
//! store in pieces, and bodies that keep a value alive until they are sent.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::body::{Frame, SizeHint};
use serde::Serialize;

use super::error::Error;
use crate::engine::{EngineError, LargeText};
use crate::memory::{PIECE_BYTES, Pool};
use crate::metrics::METRICS;

/// Small items are sent together, in pieces of about this size.
const JSON_BYTES: usize = 64 * 1024;

/// JSON as it grows.
#[derive(Default)]
pub(super) struct JsonPieces {
    whole: VecDeque<Piece>,
    last: Vec<u8>,
}

enum Piece {
    Json(Bytes),
    /// Read from the store when its turn comes, so that a client that does not read keeps none of it in memory.
    Large(LargeText),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Self::Json(bytes) => bytes.len(),
            Self::Large(text) => text.len(),
        }
    }
}

/// How many bytes of a response are in memory, if that is not all of it.
#[derive(Clone, Copy)]
pub(super) struct InMemory(pub(super) usize);

impl JsonPieces {
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.last.extend_from_slice(text.as_bytes());
        self
    }

    pub(super) fn value(&mut self, value: &impl Serialize) -> Result<&mut Self, Error> {
        serde_json::to_writer(&mut self.last, value).map_err(|error| Error::internal(error.to_string()))?;
        if self.last.len() >= JSON_BYTES {
            self.end_piece();
        }
        Ok(self)
    }

    /// A list. Each item is released once it is written. `large` replaces the null at the end of the last item.
    pub(super) fn list(&mut self, items: Vec<impl Serialize>, large: Option<LargeText>) -> Result<&mut Self, Error> {
        self.text("[");
        for (index, item) in items.into_iter().enumerate() {
            self.text(if index == 0 { "" } else { "," }).value(&item)?;
        }
        if let Some(large) = large {
            let head = self.last.strip_suffix(b"null}").map(<[u8]>::len);
            self.last.truncate(head.ok_or_else(|| Error::internal("a large text has no place"))?);
            self.end_piece();
            self.whole.push_back(Piece::Large(large));
            self.text("}");
        }
        Ok(self.text("]"))
    }

    fn end_piece(&mut self) {
        let mut piece = std::mem::take(&mut self.last);
        piece.shrink_to_fit();
        self.whole.push_back(Piece::Json(piece.into()));
    }

    /// The response. What is read for it while it is sent is reserved in `memory`.
    pub(super) fn respond(mut self, memory: &Pool) -> Response {
        self.end_piece();
        let in_memory = self.whole.iter().map(|piece| if let Piece::Json(json) = piece { json.len() } else { 0 }).sum();
        let bytes = self.whole.iter().map(|piece| piece.len() as u64).sum();
        let body = Body::new(Pieces { bytes, pieces: self.whole, reading: None, memory: memory.clone() });
        let mut response = ([(header::CONTENT_TYPE, "application/json")], body).into_response();
        response.extensions_mut().insert(InMemory(in_memory));
        response
    }
}

struct Pieces {
    pieces: VecDeque<Piece>,
    /// What is left to be sent.
    bytes: u64,
    reading: Option<BoxFuture<'static, Read>>,
    memory: Pool,
}

/// A piece of a text, and the text positioned behind that piece.
type Read = Result<(Bytes, LargeText, usize), EngineError>;

async fn read(text: LargeText, from: usize, memory: Pool) -> Read {
    let allowed = memory.allow_piece(PIECE_BYTES);
    let piece = text.piece(from, allowed.bytes()).await?;
    let behind = from + piece.len();
    Ok((allowed.hold(piece), text, behind))
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = EngineError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, EngineError>>> {
        if self.reading.is_none() {
            match self.pieces.pop_front() {
                None => return Poll::Ready(None),
                Some(Piece::Json(json)) => {
                    self.bytes -= json.len() as u64;
                    return Poll::Ready(Some(Ok(Frame::data(json))));
                }
                Some(Piece::Large(text)) => self.reading = Some(Box::pin(read(text, 0, self.memory.clone()))),
            }
        }
        let Some(reading) = &mut self.reading else { return Poll::Ready(None) };
        let read_one = ready!(reading.as_mut().poll(cx));
        self.reading = None;
        Poll::Ready(Some(match read_one {
            Ok((piece, text, behind)) => {
                self.bytes -= piece.len() as u64;
                if behind < text.len() {
                    self.reading = Some(Box::pin(read(text, behind, self.memory.clone())));
                }
                Ok(Frame::data(piece))
            }
            Err(error) => {
                METRICS.streams_failed.inc();
                tracing::warn!(%error, "failed to read on for an answer; its client has to ask again");
                Err(error)
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && self.reading.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes)
    }
}

/// A body, and a value that lives until the body is dropped.
pub(super) struct Holding<T> {
    pub(super) body: Body,
    pub(super) _holds: T,
}

impl<T: Unpin> hyper::body::Body for Holding<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;

    #[tokio::test]
    async fn a_list_is_sent_in_pieces_that_are_its_json() {
        let items: Vec<_> = (0..10).map(|number| number.to_string().repeat(20_000)).collect();
        let mut json = JsonPieces::default();
        json.text("{\"items\":")
            .list(items.clone(), None)
            .unwrap()
            .text(",\"n\":")
            .value(&None::<u8>)
            .unwrap()
            .text("}");
        assert!(json.whole.len() > 1 && json.whole.iter().all(|piece| piece.len() < 2 * JSON_BYTES));
        let response = json.respond(Memory::default().readers());
        let length = hyper::body::Body::size_hint(response.body()).exact();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        assert_eq!(length, Some(body.len() as u64));
        let read: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(read, serde_json::json!({"items": items, "n": null}));
    }
}
