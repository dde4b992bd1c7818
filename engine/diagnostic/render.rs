//! Diagnostics as text for a terminal, and as fields for programs.
//!
//! A line of a pipeline may be a file of a mebibyte, hold characters of any width and some that
//! steer a terminal. So only a window around the span is looked at, widths are counted as drawn, and
//! control characters are replaced.

use std::fmt;

use serde::{Serialize, Serializer, ser::SerializeStruct};
use unicode_width::UnicodeWidthChar;

use super::{Diagnostic, Severity, Span};

/// Columns of a source line that are shown; longer lines are cut to a window around the span.
const WINDOW: usize = 100;
/// What a tab is drawn as.
const TAB: &str = "    ";

impl Severity {
    /// The word and its terminal colour.
    fn label(self) -> (&'static str, &'static str) {
        match self {
            Severity::Error => ("error", "\x1b[1;31m"),
            Severity::Warning => ("warning", "\x1b[1;33m"),
        }
    }
}

impl Diagnostic {
    /// The text for a terminal, ending in a line break:
    ///
    /// ```text
    /// pipeline.yaml:3:9: error: unknown parameter `min_click` of click_filter
    ///   3 |   with: { min_click: 2 }
    ///     |           ^^^^^^^^^
    ///     help: did you mean `min_clicks`?
    /// ```
    pub fn render(&self, colour: bool) -> String {
        let paint = |code: &str, text: &str| match colour {
            true => format!("{code}{text}\x1b[0m"),
            false => text.to_owned(),
        };
        let (word, hue) = self.severity.label();
        let place = match &self.span {
            Span::File => self.file.name.clone(),
            Span::At { line, col, .. } => format!("{}:{line}:{col}", self.file.name),
            Span::Flag(flag) => flag.to_string(),
        };
        let mut out = format!("{}: {}: {}\n", printable(&place), paint(hue, word), printable(&self.message));
        let mut margin = 2;
        if let Span::At { line, col, len } = self.span {
            let number = line.to_string();
            margin += number.len() + 1;
            let (text, caret) = excerpt(self.file.line(line), col as usize, len as usize);
            let edge = " ".repeat(margin);
            out += &format!("  {number} | {text}\n{edge}| {}\n", paint(hue, &caret));
        }
        if let Some(help) = &self.help {
            out += &format!("{}{}: {}\n", " ".repeat(margin), paint("\x1b[1;36m", "help"), printable(help));
        }
        out
    }
}

/// The plain text of [`Diagnostic::render`].
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

/// `{severity, file, line, col, len, flag, message, help, code}`, unknown ones `null`.
impl Serialize for Diagnostic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let at = match self.span {
            Span::At { line, col, len } => [Some(line), Some(col), Some(len)],
            Span::File | Span::Flag(_) => [None; 3],
        };
        let flag = match &self.span {
            Span::Flag(flag) => Some(&**flag),
            Span::File | Span::At { .. } => None,
        };
        let mut map = serializer.serialize_struct("Diagnostic", 9)?;
        map.serialize_field("severity", &self.severity)?;
        map.serialize_field("file", &self.file.name)?;
        map.serialize_field("line", &at[0])?;
        map.serialize_field("col", &at[1])?;
        map.serialize_field("len", &at[2])?;
        map.serialize_field("flag", &flag)?;
        map.serialize_field("message", &self.message)?;
        map.serialize_field("help", &self.help)?;
        map.serialize_field("code", &self.code)?;
        map.end()
    }
}

/// Text without characters that would steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// How a character of a source line is drawn, and how many columns that takes.
fn drawn(c: char) -> (String, usize) {
    match c {
        '\t' => (TAB.to_owned(), TAB.len()),
        c if c.is_control() => ('\u{fffd}'.to_string(), 1),
        c => (c.to_string(), c.width().unwrap_or(0)),
    }
}

/// The shown part of a line, and the caret line below it, for `len` characters from column `col`.
fn excerpt(line: &str, col: usize, len: usize) -> (String, String) {
    // Only this stretch is looked at, for a line may be a file of a mebibyte.
    let skipped = (col - 1).saturating_sub(WINDOW);
    let mut chars = line.chars().skip(skipped);
    let cells: Vec<(String, usize)> = chars.by_ref().take(3 * WINDOW).map(drawn).collect();
    let start = (col - 1 - skipped).min(cells.len());
    let end = start.saturating_add(len.max(1)).min(cells.len());
    let width = |from: usize, to: usize| cells[from..to].iter().map(|cell| cell.1).sum::<usize>();
    // The window starts at the line's own start where it can, else a third before the span.
    let mut first = 0;
    if skipped > 0 || width(0, end) > WINDOW {
        first = start;
        while first > 0 && width(first - 1, start) <= WINDOW / 3 {
            first -= 1;
        }
    }
    let mut last = first;
    let mut used = 0;
    while last < cells.len() && used + cells[last].1 <= WINDOW {
        used += cells[last].1;
        last += 1;
    }
    let mut text: String = cells[first..last].iter().map(|cell| cell.0.as_str()).collect();
    let mut indent = width(first, start.min(last));
    if skipped + first > 0 {
        text.insert(0, '…');
        indent += 1;
    }
    if last < cells.len() || chars.next().is_some() {
        text.push('…');
    }
    let carets = width(start.min(last), end.min(last)).max(1);
    (text, " ".repeat(indent) + &"^".repeat(carets))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::diagnostic::SourceText;

    fn shown(text: &str, line: u32, col: u32, len: u32) -> String {
        let file = Arc::new(SourceText::new("p.yaml", text));
        Diagnostic::error(&file, Span::At { line, col, len }, "wrong").render(false)
    }

    #[test]
    fn carets_stand_below_wide_characters_and_tabs() {
        assert_eq!(
            shown("a\n日本: x\n", 2, 5, 1),
            "p.yaml:2:5: error: wrong\n  2 | 日本: x\n    |       ^\n"
        );
        assert_eq!(shown("日本", 1, 1, 2), "p.yaml:1:1: error: wrong\n  1 | 日本\n    | ^^^^\n");
        assert_eq!(shown("\tx", 1, 2, 1), "p.yaml:1:2: error: wrong\n  1 |     x\n    |     ^\n");
    }

    #[test]
    fn a_long_line_is_cut_around_the_span() {
        for col in [1, 50, 120, 500, 1000] {
            let line: String = (1..=1000).map(|at| if at == col { 'X' } else { '.' }).collect();
            let shown = shown(&line, 1, col, 1);
            let lines: Vec<&str> = shown.lines().collect();
            let place = |text: &str, what: char| text.chars().position(|c| c == what);
            assert_eq!(place(lines[1], 'X'), place(lines[2], '^'), "{shown}");
            assert!(lines[1].chars().count() <= WINDOW + 8, "{shown}");
            assert_eq!(lines[1].contains("| …"), col > 100, "{shown}");
            assert_eq!(lines[1].ends_with('…'), col < 1000, "{shown}");
        }
    }

    #[test]
    fn places_beyond_the_text_are_shown_at_its_end() {
        for (line, col) in [(1, 9), (7, 1), (0, 1)] {
            assert!(shown("a: b", line, col, u32::MAX).contains("error: wrong"));
        }
    }

    #[test]
    fn nothing_shown_steers_the_terminal() {
        let file = Arc::new(SourceText::new("p.yaml", "a\u{1b}[31m"));
        let problem = Diagnostic::error(&file, Span::At { line: 1, col: 1, len: 1 }, "b\u{1b}[0m");
        assert!(!problem.render(false).contains('\u{1b}'));
        assert!(problem.render(true).contains("\u{1b}[1;31merror\u{1b}[0m"));
    }

    #[test]
    fn programs_get_the_place_in_fields() {
        let file = Arc::new(SourceText::new("p.yaml", "a"));
        let at = Diagnostic::error(&file, Span::At { line: 1, col: 2, len: 3 }, "m").code("c");
        let json = serde_json::to_value(&at).unwrap();
        assert_eq!((&json["line"], &json["col"], &json["len"]), (&1.into(), &2.into(), &3.into()));
        assert_eq!((&json["severity"], &json["code"]), (&"error".into(), &"c".into()));
        let flag = Diagnostic::warning(&file, Span::Flag("--set a=1".into()), "m");
        let json = serde_json::to_value(&flag).unwrap();
        assert_eq!((&json["line"], &json["flag"]), (&serde_json::Value::Null, &"--set a=1".into()));
    }
}
