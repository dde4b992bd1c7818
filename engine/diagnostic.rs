//! What is wrong with a pipeline, where, and how to mend it.
//!
//! A diagnostic keeps the place as line and column *in characters* beside the shared text of the
//! file, and is turned into terminal text only when shown. So every stage after parsing can report
//! against the user's own words, tests compare text, and `--format json` prints the same facts.

mod render;

use std::{fmt, sync::Arc};

use serde::Serialize;

/// Diagnostics that [`Diagnostics`] prints before it only counts.
const SHOWN: usize = 50;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_as_in_yaml() {
        let file = SourceText::new("p.yaml", "a\r\nb\rc\n\nd");
        let lines: Vec<&str> = (0..=6).map(|number| file.line(number)).collect();
        assert_eq!(lines, ["", "a", "b", "c", "", "d", ""]);
        assert_eq!(file.span_at(5), Span::At { line: 3, col: 1, len: 1 });
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
