//! What an agent is doing, on one line: the tail of its text, for an operator who watches many runs.

use super::fold::Fold;

/// Longest line, in characters.
const MAX_CHARS: usize = 240;

/// The tail of the text of a message, with each run of white space as one blank; none while there is no text.
pub fn progress(message: &Fold) -> Option<String> {
    tail(message.texts())
}

fn tail<'a>(texts: impl DoubleEndedIterator<Item = &'a str>) -> Option<String> {
    // A blank between two texts: they are apart in the message, too.
    let backwards = texts.rev().flat_map(|text| text.chars().rev().chain([' ']));
    let mut line = Vec::with_capacity(MAX_CHARS);
    let mut blank = false;
    for c in backwards {
        if c.is_whitespace() {
            blank = !line.is_empty();
            continue;
        }
        if line.len() + 1 + usize::from(blank) > MAX_CHARS {
            line.truncate(MAX_CHARS - 1);
            line.push('…');
            break;
        }
        if std::mem::take(&mut blank) {
            line.push(' ');
        }
        line.push(c);
    }
    (!line.is_empty()).then(|| line.into_iter().rev().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[&str]) -> Option<String> {
        tail(texts.iter().copied())
    }

    #[test]
    fn the_tail_is_kept_on_one_line() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["", " \n\t "]), None);
        assert_eq!(of(&["Hello, \n\n  world\t"]).as_deref(), Some("Hello, world"));
        assert_eq!(of(&["I look.", "Done."]).as_deref(), Some("I look. Done."));
        let exact = "x".repeat(MAX_CHARS);
        assert_eq!(of(&[&exact]).as_deref(), Some(exact.as_str()));
        let cut = of(&["first ", &exact, "é"]).unwrap();
        assert_eq!(cut, format!("…{} é", "x".repeat(MAX_CHARS - 3)));
    }

    proptest::proptest! {
        #[test]
        fn the_line_is_short_and_the_end_of_what_was_said(texts in proptest::collection::vec(".{0,200}", 0..6)) {
            let words = texts.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
            let line = tail(texts.iter().map(String::as_str)).unwrap_or_default();
            proptest::prop_assert!(line.chars().count() <= MAX_CHARS);
            let end = line.strip_prefix('…').filter(|_| words.chars().count() > MAX_CHARS).unwrap_or(&line);
            proptest::prop_assert!(words.ends_with(end.trim_start()), "{:?} of {:?}", line, words);
            proptest::prop_assert!(words.chars().count() > MAX_CHARS || line == words);
        }
    }
}
