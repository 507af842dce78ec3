//! Finds the known word that a misspelled one is meant for.

/// Minimum length of a partial match: a shorter part occurs in too many words.
const MIN_PART: usize = 4;

/// The known words that the given one may be meant for, as the end of a sentence: the nearest if one is near, else all.
pub(crate) fn hint(word: &str, known: &[&str]) -> String {
    match nearest(word, known) {
        Some(nearest) => format!("the nearest known one is {nearest}"),
        None => format!("the known ones are {}", known.join(", ")),
    }
}

/// The known word that the given one is most likely meant for: one that differs by a typo or a missing part. None when none is
/// that near.
pub(crate) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let has_it =
        |key: &&&str| word.len() >= MIN_PART && key.len() >= MIN_PART && (key.contains(word) || word.contains(**key));
    let likeness = |key: &str| strsim::jaro_winkler(word, key);
    let part = || known.iter().filter(has_it).max_by(|a, b| likeness(a).total_cmp(&likeness(b))).copied();
    // The search is quadratic in the length; a key of this length is not a typo.
    if word.len() > 64 { None } else { nearest_by_slips(word, known).or_else(part) }
}

/// The known word that differs by typos: one, or in a long word one in four characters.
pub(crate) fn nearest_by_slips<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word = word.to_ascii_lowercase();
    let slips = |key: &str| strsim::osa_distance(&word, key);
    let likeness = |key: &str| strsim::jaro_winkler(&word, key);
    // Two transposed letters are likelier than a missing one.
    let by_slips = |key: &str| (slips(key), key.len().abs_diff(word.len()));
    let closer = |a: &str, b: &str| by_slips(a).cmp(&by_slips(b)).then(likeness(b).total_cmp(&likeness(a)));
    let nearest = known.iter().min_by(|a, b| closer(a, b))?;
    (slips(nearest) <= (word.chars().count() / 4).max(1)).then_some(*nearest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_near_word_is_suggested() {
        let known = ["lease", "workers", "turn_timeout", "idle_timeout", "max_backends", "dir", "on_shutdown"];
        for (word, expected) in [
            ("leese", Some("lease")),
            ("Lease", Some("lease")),
            ("worker", Some("workers")),
            ("turn-timeout", Some("turn_timeout")),
            ("timeout", Some("turn_timeout")),
            ("backends", Some("max_backends")),
            ("dirr", Some("dir")),
            ("colour", None),
            ("port", None),
            ("x", None),
            ("", None),
        ] {
            let found = nearest(word, &known);
            assert!(found == expected || (word == "timeout" && found == Some("idle_timeout")), "{word}: {found:?}");
        }
        assert_eq!(hint("port", &["a", "b"]), "the known ones are a, b");
    }
}
