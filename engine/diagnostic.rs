//! What is wrong with a pipeline, where, and how to mend it.
//!
//! A diagnostic keeps the place as line and column *in characters* beside the shared text of the
//! file, and is turned into terminal text only when shown. So every stage after parsing can report
//! against the user's own words, tests compare text, and `--format json` prints the same facts.

use std::{fmt, sync::Arc};

use serde::{Serialize, Serializer, ser::SerializeStruct};
use unicode_width::UnicodeWidthChar;

/// Columns of a source line that are shown; longer lines are cut to a window around the span.
const WINDOW: usize = 100;
/// Diagnostics that [`Diagnostics`] prints before it only counts.
const SHOWN: usize = 50;
/// What a tab is drawn as.
const TAB: &str = "    ";

/// A file's name and text, with the starts of its lines.
#[derive(Debug, PartialEq, Eq)]
pub struct SourceText {
    name: String,
    text: String,
    starts: Vec<usize>,
}

impl SourceText {
    /// Wraps the text of a file; lines end with `\n`, `\r\n` or `\r`, as in YAML.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let bytes = text.as_bytes();
        let breaks = (0..bytes.len()).filter(|&i| match bytes[i] {
            b'\n' => true,
            b'\r' => bytes.get(i + 1) != Some(&b'\n'),
            _ => false,
        });
        let starts = std::iter::once(0).chain(breaks.map(|i| i + 1)).collect();
        SourceText { name: name.into(), text, starts }
    }

    /// The name the user gave the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Line `number`, counted from 1, without its end; empty beyond the text.
    pub fn line(&self, number: u32) -> &str {
        let index = number as usize;
        let Some(&start) = index.checked_sub(1).and_then(|i| self.starts.get(i)) else { return "" };
        let end = self.starts.get(index).copied().unwrap_or(self.text.len());
        self.text[start..end].trim_end_matches(['\n', '\r'])
    }

    /// The span of one character at a byte offset that lies on a character's boundary.
    pub fn span_at(&self, offset: usize) -> Span {
        let line = self.starts.partition_point(|&start| start <= offset);
        let col = self.text[self.starts[line - 1]..offset].chars().count() + 1;
        Span::At { line: line as u32, col: col as u32, len: 1 }
    }
}

/// Where a value was written. The order is that of reading: the file, its lines, then flags.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Span {
    /// The file as a whole.
    File,
    /// A stretch of one line; all in characters, line and column from 1.
    At {
        /// Line, from 1.
        line: u32,
        /// Column of the first character, from 1.
        col: u32,
        /// Characters covered, at least 1 when shown.
        len: u32,
    },
    /// A flag of the command line, as typed: `--set params.groups=6`.
    Flag(Arc<str>),
}

/// A value and where it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Where it was written.
    pub span: Span,
}

impl<T> std::ops::Deref for Spanned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing runs until it is mended.
    Error,
    /// Worth a look.
    Warning,
}

impl Severity {
    /// The word and its terminal colour.
    fn label(self) -> (&'static str, &'static str) {
        match self {
            Severity::Error => ("error", "\x1b[1;31m"),
            Severity::Warning => ("warning", "\x1b[1;33m"),
        }
    }
}

/// One problem, with its place and, where one is known, the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file it is about.
    pub file: Arc<SourceText>,
    /// The place in the file, or the flag.
    pub span: Span,
    /// What is wrong, in one line.
    pub message: String,
    /// How to mend it.
    pub help: Option<String>,
    /// A stable word for programs, such as `unreadable`.
    pub code: Option<&'static str>,
}

impl Diagnostic {
    /// An error at a place of `file`.
    pub fn error(file: &Arc<SourceText>, span: Span, message: impl Into<String>) -> Self {
        let (file, message) = (Arc::clone(file), message.into());
        Diagnostic { severity: Severity::Error, file, span, message, help: None, code: None }
    }

    /// A warning at a place of `file`.
    pub fn warning(file: &Arc<SourceText>, span: Span, message: impl Into<String>) -> Self {
        Diagnostic { severity: Severity::Warning, ..Diagnostic::error(file, span, message) }
    }

    /// The same with a way out; `None` leaves it as it is.
    pub fn help(mut self, help: impl Into<Option<String>>) -> Self {
        self.help = help.into().or(self.help);
        self
    }

    /// The same with a word for programs.
    pub fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

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

/// All that was found, to be shown together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.0.push(diagnostic);
    }

    /// Whether one of them is an error.
    pub fn has_errors(&self) -> bool {
        self.iter().any(|d| d.severity == Severity::Error)
    }

    /// Puts them in reading order, each once.
    pub fn sort(&mut self) {
        self.0.sort_by(|a, b| (&a.span, &a.message).cmp(&(&b.span, &b.message)));
        self.0.dedup();
    }

    /// The text for a terminal; after the first 50 they are only counted.
    pub fn render(&self, colour: bool) -> String {
        let mut out: String = self.iter().take(SHOWN).map(|d| d.render(colour)).collect();
        if let Some(more) = self.len().checked_sub(SHOWN).filter(|&more| more > 0) {
            out += &format!("… and {more} more\n");
        }
        out
    }
}

impl std::ops::Deref for Diagnostics {
    type Target = [Diagnostic];

    fn deref(&self) -> &[Diagnostic] {
        &self.0
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(diagnostic: Diagnostic) -> Self {
        Diagnostics(vec![diagnostic])
    }
}

impl Extend<Diagnostic> for Diagnostics {
    fn extend<I: IntoIterator<Item = Diagnostic>>(&mut self, more: I) {
        self.0.extend(more);
    }
}

impl FromIterator<Diagnostic> for Diagnostics {
    fn from_iter<I: IntoIterator<Item = Diagnostic>>(items: I) -> Self {
        Diagnostics(items.into_iter().collect())
    }
}

impl IntoIterator for Diagnostics {
    type Item = Diagnostic;
    type IntoIter = std::vec::IntoIter<Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Diagnostics {}

/// The candidate a mistyped name most likely meant: at most a third of its characters apart.
///
/// ```
/// use coea_engine::diagnostic::did_you_mean;
/// assert_eq!(did_you_mean("min_click", ["dim", "min_clicks"]).as_deref(), Some("min_clicks"));
/// assert_eq!(did_you_mean("colour", ["dim", "min_clicks"]), None);
/// ```
pub fn did_you_mean<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    crate::nearest::nearest(name, candidates).map(str::to_owned)
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
    use super::*;

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
    fn lines_end_as_in_yaml() {
        let file = SourceText::new("p.yaml", "a\r\nb\rc\n\nd");
        let lines: Vec<&str> = (0..=6).map(|number| file.line(number)).collect();
        assert_eq!(lines, ["", "a", "b", "c", "", "d", ""]);
        assert_eq!(file.span_at(5), Span::At { line: 3, col: 1, len: 1 });
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

    #[test]
    fn many_problems_are_counted_not_listed() {
        let file = Arc::new(SourceText::new("p.yaml", "a"));
        let all: Diagnostics =
            (0..70).map(|n| Diagnostic::error(&file, Span::File, format!("{n}"))).collect();
        assert!(all.to_string().ends_with("… and 20 more\n"));
    }

    #[test]
    fn suggestions_are_near() {
        assert_eq!(did_you_mean("shrot", ["short", "shirt"]).as_deref(), Some("short"));
        assert_eq!(did_you_mean("b", ["a"]), None);
        assert_eq!(did_you_mean(&"x".repeat(5000), ["a"]), None);
    }
}
