//! The widths of a table's columns, and its text.
//!
//! Always: a row is one line, and no wider than the terminal, unless even the columns that have to stay do not fit. A column
//! that would become too narrow to be useful is left out.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Space between two columns.
const GAP: usize = 2;
/// The least width of an id: that of a short one.
const MIN_ID_WIDTH: usize = 13;
const CUT: char = '…';

/// A column of a table, by its title.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    pub(super) title: &'static str,
    stays: Stays,
    /// Left out if it would be empty for every item.
    pub(super) is_spare: bool,
}

/// How a column gives way if there is no room for all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stays {
    /// It is never cut.
    Whole,
    /// It may be cut, but not below this width.
    Cut(usize),
    /// It may be cut down to this width, and is then left out.
    CutOrNot(usize),
    /// It is left out first.
    OrNot,
}

impl Column {
    const fn new(title: &'static str, stays: Stays) -> Self {
        Self { title, stays, is_spare: false }
    }

    /// A column that is never cut, however narrow the terminal is.
    pub const fn whole(title: &'static str) -> Self {
        Self::new(title, Stays::Whole)
    }

    /// A column of ids, which clients may have made as long as they like.
    pub const fn id(title: &'static str) -> Self {
        Self::new(title, Stays::Cut(MIN_ID_WIDTH))
    }

    /// A column that gives way to the others until it is `least` wide, and is then left out.
    pub const fn narrow(title: &'static str, least: usize) -> Self {
        Self::new(title, Stays::CutOrNot(least))
    }

    /// A column for wide terminals.
    pub const fn extra(title: &'static str) -> Self {
        Self::new(title, Stays::OrNot)
    }

    /// The same column, left out if it would be empty for every item.
    pub const fn spare(self) -> Self {
        Self { is_spare: true, ..self }
    }

    fn least(&self, width: usize) -> usize {
        match self.stays {
            Stays::Whole | Stays::OrNot => width,
            Stays::Cut(least) | Stays::CutOrNot(least) => least.min(width),
        }
    }
}

/// The table as text, no wider than `room` if possible.
pub(super) fn layout(columns: &[Column], rows: &[Vec<String>], room: usize) -> String {
    let natural = |index: usize| {
        let cells = rows.iter().filter_map(|row| row.get(index)).map(|cell| cell.width());
        cells.chain([columns[index].title.width()]).max().unwrap_or(0)
    };
    let mut shown: Vec<(usize, usize)> = (0..columns.len()).map(|index| (index, natural(index))).collect();
    // First by least widths: as long as they do not fit, the last of the least important columns is left out.
    while total(shown.iter().map(|(index, width)| columns[*index].least(*width))) > room {
        let last = |stays: fn(Stays) -> bool| shown.iter().rposition(|(index, _)| stays(columns[*index].stays));
        let extra = last(|stays| stays == Stays::OrNot);
        let Some(goes) = extra.or_else(|| last(|stays| matches!(stays, Stays::CutOrNot(_)))) else { break };
        shown.remove(goes);
    }
    // Then the widest column shrinks, step by step.
    while total(shown.iter().map(|(_, width)| *width)) > room {
        let can_shrink = |(index, width): &&mut (usize, usize)| columns[*index].least(*width) < *width;
        let Some((_, width)) = shown.iter_mut().filter(can_shrink).max_by_key(|(_, width)| *width) else { break };
        *width -= 1;
    }
    let titles: Vec<_> = columns.iter().map(|column| column.title.to_owned()).collect();
    let lines = std::iter::once(&titles).chain(rows).map(|row| line(row, &shown));
    lines.collect::<Vec<_>>().join("\n")
}

fn total(widths: impl ExactSizeIterator<Item = usize>) -> usize {
    let gaps = GAP * widths.len().saturating_sub(1);
    widths.sum::<usize>() + gaps
}

fn line(row: &[String], shown: &[(usize, usize)]) -> String {
    let mut line = String::new();
    for (index, width) in shown {
        let cell = cut(row.get(*index).map_or("", String::as_str), *width);
        let pad = width.saturating_sub(cell.width()) + GAP;
        line.push_str(&cell);
        line.extend(std::iter::repeat_n(' ', pad));
    }
    line.trim_end().to_owned()
}

fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut used = 0;
    let fits = |c: &char| {
        used += c.width().unwrap_or(0);
        used < width
    };
    let kept: String = text.chars().take_while(fits).collect();
    format!("{}{CUT}", kept.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 4] =
        [Column::whole("RUN"), Column::id("SESSION"), Column::extra("AGENT"), Column::narrow("ERROR", 8)];

    fn rows() -> Vec<Vec<String>> {
        let row = |session: &str, error: &str| ["0192f0c1-2345", session, "demo", error].map(str::to_owned).to_vec();
        vec![row("s", "-"), row("a-session-with-a-long-name", "something went wrong over there")]
    }

    #[test]
    fn columns_give_way_before_they_go() {
        let shown = |room| layout(&COLUMNS, &rows(), room);
        assert_eq!(
            shown(200),
            "\
RUN            SESSION                     AGENT  ERROR
0192f0c1-2345  s                           demo   -
0192f0c1-2345  a-session-with-a-long-name  demo   something went wrong over there"
        );
        assert_eq!(
            shown(60),
            "\
RUN            SESSION             AGENT  ERROR
0192f0c1-2345  s                   demo   -
0192f0c1-2345  a-session-with-a-…  demo   something went wr…"
        );
        assert_eq!(
            shown(40),
            "\
RUN            SESSION        ERROR
0192f0c1-2345  s              -
0192f0c1-2345  a-session-wi…  something…"
        );
        assert_eq!(
            shown(30),
            "\
RUN            SESSION
0192f0c1-2345  s
0192f0c1-2345  a-session-with…"
        );
        assert!(shown(5).ends_with("0192f0c1-2345  a-session-wi…"), "what has to stay stays");
    }

    #[test]
    fn wide_characters_are_as_wide_as_terminals_show_them() {
        let columns = [Column::narrow("TITLE", 4), Column::whole("N")];
        let rows = [vec!["漢字漢字漢字".to_owned(), "1".to_owned()], vec!["é".to_owned(), "2".to_owned()]];
        assert_eq!(layout(&columns, &rows, 20), "TITLE         N\n漢字漢字漢字  1\né             2");
        assert_eq!(layout(&columns, &rows, 10), "TITLE    N\n漢字漢…  1\né        2");
    }

    proptest::proptest! {
        #[test]
        fn no_line_is_wider_than_there_is_room(
            cells in proptest::collection::vec(proptest::collection::vec("[a漢 ]{0,60}", 4), 0..4),
            room in 32..100_usize,
        ) {
            let rows: Vec<Vec<String>> = cells.into_iter().map(|mut row| { row[0].truncate(0); row }).collect();
            for line in layout(&COLUMNS, &rows, room).lines() {
                proptest::prop_assert!(line.width() <= room, "{line}");
            }
        }
    }
}
