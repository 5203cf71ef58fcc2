//! Aligned tables: every column as wide as its widest cell, as a terminal counts it.

use std::ops::Range;

use unicode_width::UnicodeWidthStr as _;

use super::{Paint, Tone, text::printable};

/// To which side a column's cells go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A cell: text that a terminal cannot take for commands, and what it is to the reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell with a tone.
    pub(in crate::cli) fn toned(text: impl AsRef<str>, tone: Tone) -> Self {
        Self { text: printable(text.as_ref()), tone }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

/// A table of `N` columns.
#[derive(Debug)]
pub(in crate::cli) struct Table<const N: usize> {
    align: [Align; N],
    rows: Vec<[Cell; N]>,
    hidden: Range<usize>,
}

impl<const N: usize> Table<N> {
    /// A table without a heading.
    pub(in crate::cli) fn new(align: [Align; N]) -> Self {
        Self { align, rows: Vec::new(), hidden: 0..0 }
    }

    /// A table with a heading.
    pub(in crate::cli) fn headed(columns: [(&str, Align); N]) -> Self {
        let heading = columns.map(|(name, _)| Cell::toned(name, Tone::Faint));
        Self { align: columns.map(|(_, align)| align), rows: vec![heading], hidden: 0..0 }
    }

    /// One more row.
    pub(in crate::cli) fn row(&mut self, cells: [Cell; N]) {
        self.rows.push(cells);
    }

    /// These columns, numbered from 0, have nothing to say.
    pub(in crate::cli) fn hide(&mut self, columns: Range<usize>) {
        self.hidden = columns;
    }

    /// All rows, as lines.
    pub(in crate::cli) fn render(&self, paint: Paint) -> String {
        let mut widths = [0; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.text.width().max(*width);
            }
        }
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            // Blanks are owed until something follows them, so that no line ends in them.
            let mut owed = 0;
            let columns = row.iter().zip(widths).zip(self.align).enumerate();
            for (_, ((cell, width), align)) in columns.filter(|(column, _)| !self.hidden.contains(column)) {
                let rest = width.saturating_sub(cell.text.width());
                let (before, after) = if align == Align::Right { (rest, 0) } else { (0, rest) };
                owed += before;
                if !cell.text.is_empty() {
                    line.extend(std::iter::repeat_n(' ', owed));
                    line.push_str(&paint.paint(cell.tone, &cell.text));
                    owed = 0;
                }
                owed += after + 2;
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_no_line_ends_in_blanks() {
        let mut table = Table::headed([("NAME", Align::Left), ("NODES", Align::Right), ("TAGS", Align::Left)]);
        table.row(["orders".into(), "12".into(), "".into()]);
        table.row(["db".into(), "3".into(), "blue, eu".into()]);
        let expected = "\
NAME    NODES  TAGS
orders     12
db          3  blue, eu
";
        assert_eq!(table.render(Paint::PLAIN), expected);
    }

    #[test]
    fn hidden_columns_take_no_place() {
        let mut table = Table::headed([("A", Align::Left), ("B", Align::Right), ("C", Align::Left)]);
        table.row(["1".into(), "".into(), "3".into()]);
        table.hide(1..2);
        assert_eq!(table.render(Paint::PLAIN), "A  C\n1  3\n");
    }

    #[test]
    fn wide_characters_count_as_a_terminal_counts_them() {
        let mut table = Table::new([Align::Left, Align::Left]);
        table.row(["日本".into(), "a".into()]);
        table.row(["é".into(), "b".into()]);
        assert_eq!(table.render(Paint::PLAIN), "日本  a\né     b\n");
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown_instead() {
        let mut table = Table::new([Align::Left]);
        table.row(["\u{1b}[31mred\nline\u{9b}".into()]);
        assert_eq!(table.render(Paint::PLAIN), "\\u{1b}[31mred\\nline\\u{9b}\n");
    }
}
