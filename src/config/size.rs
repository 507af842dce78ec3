//! Sizes as the config writes them: `256MiB`, `1GiB`, or a whole number of bytes.

const UNITS: [(&str, usize); 3] = [("GiB", 1024 * 1024 * 1024), ("MiB", 1024 * 1024), ("KiB", 1024)];

/// Parses a size in bytes; none if the text is not one.
pub fn parse(text: &str) -> Option<usize> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let (_, bytes) = UNITS.iter().find(|(name, _)| *name == unit)?;
    number.parse::<usize>().ok()?.checked_mul(*bytes)
}

/// The size in the notation of the config, in the largest unit that divides it.
pub fn show(bytes: usize) -> String {
    let unit = UNITS.iter().find(|(_, unit)| bytes > 0 && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| bytes.to_string(), |(name, unit)| format!("{}{name}", bytes / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_numbers_with_a_unit() {
        for (text, bytes) in [
            ("1KiB", Some(1024)),
            ("256MiB", Some(256 << 20)),
            ("1GiB", Some(1 << 30)),
            ("0MiB", Some(0)),
            ("", None),
            ("1", None),
            ("MiB", None),
            ("1 MiB", None),
            ("1MB", None),
            ("1mib", None),
            ("1.5GiB", None),
            ("-1GiB", None),
            ("99999999999999999999GiB", None),
            ("99999999999999GiB", None),
        ] {
            assert_eq!(parse(text), bytes, "{text:?}");
        }
        for bytes in [1024, 5 << 20, 256 << 20, 1 << 30, 3 << 30] {
            assert_eq!(parse(&show(bytes)), Some(bytes));
        }
        assert_eq!(show(1500), "1500");
    }
}
