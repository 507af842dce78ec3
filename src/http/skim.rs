//! Parses JSON while it arrives: requested values are kept up to a limit, the rest is skipped.
//!
//! Always: memory holds one piece of the body and what is kept, whatever the body's length and depth. Of what is skipped
//! only the structure is checked: strings, brackets and what may stand between them.

use bytes::Bytes;
use futures_util::{Stream, StreamExt};

use super::error::Error;

/// Longest key that is compared with the requested ones; a longer one matches none.
const MAX_KEY_BYTES: usize = 64;

/// A JSON text that is arriving.
pub(super) struct Skim<S> {
    source: S,
    piece: Bytes,
    /// Bytes of the previous pieces.
    passed: usize,
    copies: Vec<Copy>,
}

/// A copy of the text from some position on; none once it is longer than its limit.
struct Copy {
    bytes: Option<Vec<u8>>,
    limit: usize,
}

/// The reader's position in an object or an array: whether it is before the first element.
pub(super) struct Inside {
    is_first: bool,
}

impl<S: Stream<Item = Result<Bytes, Error>> + Unpin> Skim<S> {
    pub(super) fn new(source: S) -> Self {
        Self { source, piece: Bytes::new(), passed: 0, copies: Vec::new() }
    }

    /// Begins a copy of what is read from here on, of at most `limit` bytes.
    pub(super) fn keep(&mut self, limit: usize) {
        self.copies.push(Copy { bytes: Some(Vec::new()), limit });
    }

    /// Ends the newest copy. `None` if it was too long.
    pub(super) fn kept(&mut self) -> Option<Vec<u8>> {
        self.copies.pop().and_then(|copy| copy.bytes)
    }

    /// Steps into an object or an array; `None` if the next value does not begin with `open`.
    pub(super) async fn enter(&mut self, open: u8) -> Result<Option<Inside>, Error> {
        if self.token().await? != open {
            return Ok(None);
        }
        self.take(1);
        Ok(Some(Inside { is_first: true }))
    }

    /// The next key of an object, whose value comes next; `None` at the end of the object.
    pub(super) async fn key(&mut self, inside: &mut Inside) -> Result<Option<String>, Error> {
        if !self.goes_on(inside, b'}').await? {
            return Ok(None);
        }
        if self.token().await? != b'"' {
            return Err(self.malformed());
        }
        self.keep(MAX_KEY_BYTES);
        self.pass_string().await?;
        let key = self.kept().unwrap_or_else(|| br#""""#.to_vec());
        let key = serde_json::from_slice(&key).map_err(|_| self.malformed())?;
        if self.token().await? != b':' {
            return Err(self.malformed());
        }
        self.take(1);
        Ok(Some(key))
    }

    /// Whether the array has another element, which comes next; if not, the array has been read.
    pub(super) async fn element(&mut self, inside: &mut Inside) -> Result<bool, Error> {
        self.goes_on(inside, b']').await
    }

    /// The next value, if it is no longer than `limit`.
    pub(super) async fn value(&mut self, limit: usize) -> Result<Option<Vec<u8>>, Error> {
        self.keep(limit);
        self.pass().await?;
        Ok(self.kept())
    }

    /// Skips the next value.
    pub(super) async fn pass(&mut self) -> Result<(), Error> {
        let mut depth = 0_usize;
        loop {
            match self.token().await? {
                b'"' => self.pass_string().await?,
                b'{' | b'[' => {
                    self.take(1);
                    depth += 1;
                }
                b'}' | b']' if depth > 0 => {
                    self.take(1);
                    depth -= 1;
                }
                b',' | b':' if depth > 0 => self.take(1),
                byte if is_scalar(byte) => self.pass_while(is_scalar).await?,
                _ => return Err(self.malformed()),
            }
            if depth == 0 {
                return Ok(());
            }
        }
    }

    /// Reads to the end, where only white space may follow.
    pub(super) async fn end(mut self) -> Result<(), Error> {
        self.pass_while(is_space).await?;
        if self.piece.is_empty() { Ok(()) } else { Err(self.malformed()) }
    }

    async fn goes_on(&mut self, inside: &mut Inside, close: u8) -> Result<bool, Error> {
        let is_first = std::mem::replace(&mut inside.is_first, false);
        match self.token().await? {
            byte if byte == close => {
                self.take(1);
                Ok(false)
            }
            _ if is_first => Ok(true),
            b',' => {
                self.take(1);
                Ok(true)
            }
            _ => Err(self.malformed()),
        }
    }

    async fn pass_string(&mut self) -> Result<(), Error> {
        self.take(1);
        loop {
            self.fill().await?;
            match memchr::memchr2(b'"', b'\\', &self.piece) {
                None if self.piece.is_empty() => return Err(self.malformed()),
                None => self.take(self.piece.len()),
                Some(at) if self.piece.get(at) == Some(&b'"') => {
                    self.take(at + 1);
                    return Ok(());
                }
                Some(at) => {
                    self.take(at + 1);
                    self.fill().await?;
                    // An escaped character does not end the string.
                    self.take(1);
                }
            }
        }
    }

    async fn pass_while(&mut self, is_wanted: fn(u8) -> bool) -> Result<(), Error> {
        loop {
            self.fill().await?;
            match self.piece.iter().position(|byte| !is_wanted(*byte)) {
                None if self.piece.is_empty() => return Ok(()),
                None => self.take(self.piece.len()),
                Some(at) => {
                    self.take(at);
                    return Ok(());
                }
            }
        }
    }

    /// The next byte that is not white space.
    async fn token(&mut self) -> Result<u8, Error> {
        self.pass_while(is_space).await?;
        self.piece.first().copied().ok_or_else(|| self.malformed())
    }

    /// Makes sure that the next byte is there, unless the text is over.
    async fn fill(&mut self) -> Result<(), Error> {
        while self.piece.is_empty() {
            let Some(piece) = self.source.next().await else { return Ok(()) };
            self.piece = piece?;
        }
        Ok(())
    }

    fn take(&mut self, count: usize) {
        let taken = self.piece.split_to(count.min(self.piece.len()));
        self.passed += taken.len();
        for copy in &mut self.copies {
            copy.extend(&taken);
        }
    }

    fn malformed(&self) -> Error {
        Error::malformed("malformed_json", format!("the body is no JSON from byte {} on", self.passed + 1))
    }
}

impl Copy {
    fn extend(&mut self, taken: &[u8]) {
        let Some(bytes) = &mut self.bytes else { return };
        if bytes.len() + taken.len() > self.limit {
            self.bytes = None;
        } else {
            bytes.extend_from_slice(taken);
        }
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Characters of numbers, `true`, `false` and `null`.
fn is_scalar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.')
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, stream};
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;

    fn skim(text: &[u8], piece: usize) -> Skim<impl Stream<Item = Result<Bytes, Error>> + Unpin> {
        let pieces: Vec<_> = text.chunks(piece).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Skim::new(stream::iter(pieces))
    }

    /// Rebuilds an object from its keys and the values that are within the limit.
    fn object(text: &[u8], piece: usize, limit: usize) -> Result<Map<String, Value>, Error> {
        let reading = async {
            let mut json = skim(text, piece);
            let mut read = Map::new();
            let mut inside = json.enter(b'{').await?.unwrap();
            while let Some(key) = json.key(&mut inside).await? {
                if let Some(value) = json.value(limit).await? {
                    read.insert(key, serde_json::from_slice(&value).unwrap());
                }
            }
            json.end().await?;
            Ok(read)
        };
        reading.now_or_never().unwrap()
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::hash_map(".{0,6}", inner, 0..5).prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn a_text_is_read_as_it_is_in_pieces_of_any_size(value in any_json(), pretty: bool, piece in 1_usize..40) {
            let whole = json!({"a\"\\": value, "b": [value, {"c": value}]});
            let text = if pretty { serde_json::to_vec_pretty(&whole) } else { serde_json::to_vec(&whole) }.unwrap();
            prop_assert_eq!(Value::from(object(&text, piece, usize::MAX).unwrap()), whole);
        }
    }

    #[test]
    fn what_is_too_long_is_passed_over() {
        let whole = json!({"a": "x".repeat(10_000), "k".repeat(200): 1, "b": [[[]]], "c": 7});
        let read = object(whole.to_string().as_bytes(), 100, 20).unwrap();
        assert_eq!(Value::from(read), json!({"": 1, "b": [[[]]], "c": 7}));
    }

    #[test]
    fn what_is_no_json_is_refused_with_its_place() {
        for (text, place) in [
            ("{", 2),
            (r#"{"a""#, 5),
            (r#"{"a":"#, 6),
            (r#"{"a":1 "b""#, 8),
            (r#"{"a":"x"#, 8),
            ("{} x", 4),
            ("{1:2}", 2),
        ] {
            let error = object(text.as_bytes(), 3, 100).unwrap_err();
            assert!(error.to_string().ends_with(&format!("from byte {place} on")), "{text}: {error}");
        }
        let deep = format!("{{\"a\":{}", "[".repeat(1_000_000));
        assert!(object(deep.as_bytes(), 1000, 100).is_err());
    }

    #[test]
    fn a_copy_may_be_made_within_another() {
        let reading = async {
            let mut json = skim(br#"{"a": {"b": [1, 2]}, "c": 3}"#, 2);
            json.keep(100);
            let mut outer = json.enter(b'{').await?.unwrap();
            json.key(&mut outer).await?;
            let inner = json.value(100).await?;
            while json.key(&mut outer).await?.is_some() {
                json.pass().await?;
            }
            Ok::<_, Error>((json.kept(), inner))
        };
        let (outer, inner) = reading.now_or_never().unwrap().unwrap();
        assert_eq!(outer.unwrap(), br#"{"a": {"b": [1, 2]}, "c": 3}"#);
        assert_eq!(inner.unwrap(), br#" {"b": [1, 2]}"#);
    }
}
