//! Lists: `?limit=&cursor=` in, `{"items","next_cursor"}` out. A cursor is opaque to clients; here it is one or two numbers.

use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::App;
use super::answer::JsonPieces;
use super::error::Error;
use crate::engine::LargeText;

pub(super) const DEFAULT_LIMIT: i64 = 50;
/// Most items of a page. A list of messages also begins with as many, so that a usual conversation comes in one response.
pub(super) const MAX_LIMIT: i64 = 500;

/// Which page is wanted.
#[derive(Deserialize)]
pub(super) struct Page {
    limit: Option<i64>,
    cursor: Option<String>,
}

impl Page {
    pub(super) fn limit(&self) -> Result<i64, Error> {
        self.limit_or(DEFAULT_LIMIT)
    }

    pub(super) fn limit_or(&self, default: i64) -> Result<i64, Error> {
        limit("limit", self.limit.unwrap_or(default))
    }

    /// Whether neither a limit nor a cursor is given.
    pub(super) fn is_plain(&self) -> bool {
        self.limit.is_none() && self.cursor.is_none()
    }

    /// The cursor of a list that is ordered by one number.
    pub(super) fn cursor(&self) -> Result<Option<i64>, Error> {
        self.cursor.as_deref().map(number).transpose()
    }

    /// The cursor of a list that is ordered by two numbers.
    pub(super) fn cursor_pair(&self) -> Result<Option<(i64, i64)>, Error> {
        self.cursor.as_deref().map(read_pair).transpose()
    }
}

/// Checks a limit on the number of items.
pub(super) fn limit(name: &str, given: i64) -> Result<i64, Error> {
    let message = format!("{name} must be between 1 and {MAX_LIMIT}");
    if (1..=MAX_LIMIT).contains(&given) { Ok(given) } else { Err(Error::malformed("invalid_query", message)) }
}

/// Parses a cursor made by [`pair`].
pub(super) fn read_pair(cursor: &str) -> Result<(i64, i64), Error> {
    let (a, b) = cursor.split_once('-').ok_or_else(invalid)?;
    Ok((number(a)?, number(b)?))
}

fn number(text: &str) -> Result<i64, Error> {
    text.parse().ok().filter(|number| *number >= 0).ok_or_else(invalid)
}

fn invalid() -> Error {
    Error::malformed("invalid_cursor", "this cursor is not one that a list here gave out")
}

/// Formats two numbers as a cursor.
pub(super) fn pair(a: i64, b: i64) -> String {
    format!("{a}-{b}")
}

/// A page of a list.
#[derive(Serialize)]
pub(super) struct Items<T> {
    pub(super) items: Vec<T>,
    /// Where the next page begins; none on the last page.
    pub(super) next_cursor: Option<String>,
}

impl<T> Items<T> {
    /// A page of a list that the engine returns whole, because it is short: its cursor is a position.
    pub(super) fn of(all: Vec<T>, page: &Page) -> Result<Self, Error> {
        let (limit, skip) = (page.limit()?, page.cursor()?.unwrap_or_default());
        let next = skip.saturating_add(limit);
        let rows = all.into_iter().skip(usize::try_from(skip).unwrap_or(usize::MAX)).collect();
        Ok(Self::first(rows, limit, |_| next.to_string()))
    }

    /// The first `limit` of rows, of which one more was read, if there is one.
    pub(super) fn first(mut rows: Vec<T>, limit: i64, cursor_behind: impl Fn(&T) -> String) -> Self {
        let limit = usize::try_from(limit).unwrap_or_default();
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next_cursor = rows.last().filter(|_| more).map(cursor_behind);
        Self { items: rows, next_cursor }
    }

    /// The response in pieces, for lists that may be large; `large` is a text of the only item.
    pub(super) fn respond(self, app: &App, large: Option<LargeText>) -> Result<Response, Error>
    where
        T: Serialize,
    {
        let mut json = JsonPieces::default();
        json.text("{\"items\":").list(self.items, large)?.text(",\"next_cursor\":").value(&self.next_cursor)?.text("}");
        Ok(json.respond(app.engine.memory().readers()))
    }

    pub(super) fn map<U>(self, to: impl FnMut(T) -> U) -> Items<U> {
        Items { items: self.items.into_iter().map(to).collect(), next_cursor: self.next_cursor }
    }
}
