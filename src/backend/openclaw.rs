//! openclaw
use super::*;
/// parser
pub fn parser() -> LineParser {
    Box::new(|_| None)
}
