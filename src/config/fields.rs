//! The names of a struct's fields, taken from serde, so that the keys of a file are written only once.

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// The keys that `T` is read from; none when it is not a struct.
pub(super) fn of<T: Deserialize<'static>>() -> &'static [&'static str] {
    match T::deserialize(Ask) {
        Err(Answer(fields)) => fields,
        Ok(_) => &[],
    }
}

struct Ask;

#[derive(Debug, thiserror::Error)]
#[error("{0:?}")]
struct Answer(&'static [&'static str]);

impl de::Error for Answer {
    fn custom<T: std::fmt::Display>(_: T) -> Self {
        Self(&[])
    }
}

impl<'de> Deserializer<'de> for Ask {
    type Error = Answer;
    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Answer> {
        Err(Answer(&[]))
    }
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Answer> {
        Err(Answer(fields))
    }
    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
