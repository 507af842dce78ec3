//! Bodies of answers: lists as JSON in pieces, which are given back one by one as they are sent, and bodies that hold
//! something to their end.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use serde::Serialize;

use super::error::Error;

/// Small items are sent together, in pieces of about this size.
const PIECE_BYTES: usize = 64 * 1024;

/// JSON as it grows.
#[derive(Default)]
pub(super) struct JsonPieces {
    whole: VecDeque<Bytes>,
    last: Vec<u8>,
}

impl JsonPieces {
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.last.extend_from_slice(text.as_bytes());
        self
    }

    pub(super) fn value(&mut self, value: &impl Serialize) -> Result<&mut Self, Error> {
        serde_json::to_writer(&mut self.last, value).map_err(|error| Error::internal(error.to_string()))?;
        if self.last.len() >= PIECE_BYTES {
            self.end_piece();
        }
        Ok(self)
    }

    /// A list. Each item goes as soon as it is written.
    pub(super) fn list(&mut self, items: Vec<impl Serialize>) -> Result<&mut Self, Error> {
        self.text("[");
        for (index, item) in items.into_iter().enumerate() {
            self.text(if index == 0 { "" } else { "," }).value(&item)?;
        }
        Ok(self.text("]"))
    }

    fn end_piece(&mut self) {
        let mut piece = std::mem::take(&mut self.last);
        piece.shrink_to_fit();
        self.whole.push_back(piece.into());
    }

    /// The answer, which holds something to its end.
    pub(super) fn respond(mut self, holds: impl Send + Sync + Unpin + 'static) -> Response {
        self.end_piece();
        let body = Pieces { bytes: self.whole.iter().map(|piece| piece.len() as u64).sum(), pieces: self.whole };
        let body = Body::new(Holding { body: Body::new(body), _holds: holds });
        ([(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

struct Pieces {
    pieces: VecDeque<Bytes>,
    bytes: u64,
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.pieces.pop_front();
        self.bytes -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes)
    }
}

/// A body, and what it holds until it is dropped.
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

    #[tokio::test]
    async fn a_list_is_sent_in_pieces_that_are_its_json() {
        let items: Vec<_> = (0..10).map(|number| number.to_string().repeat(20_000)).collect();
        let mut json = JsonPieces::default();
        json.text("{\"items\":").list(items.clone()).unwrap().text(",\"n\":").value(&None::<u8>).unwrap().text("}");
        assert!(json.whole.len() > 1 && json.whole.iter().all(|piece| piece.len() < 2 * PIECE_BYTES));
        let response = json.respond(());
        let length = hyper::body::Body::size_hint(response.body()).exact();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        assert_eq!(length, Some(body.len() as u64));
        let read: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(read, serde_json::json!({"items": items, "n": null}));
    }
}
