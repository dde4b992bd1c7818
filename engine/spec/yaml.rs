//! YAML text to the positioned tree.
//!
//! The parser's events are first laid on a tape, where depth is counted, and the tree is then built
//! from the tape with an explicit stack; an alias plays its anchor's stretch of tape again. So the
//! limits on depth and expansion are counted per event, in one place, before anything can recurse.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span as Marks};

use super::{
    LIMIT_BYTES, LIMIT_DEPTH,
    node::{Entry, Node, Value},
};
use crate::diagnostic::{Diagnostic, Diagnostics, SourceText, Span, Spanned};

/// The one document of a file. Problems that leave a tree are pushed to `problems`.
///
/// # Errors
/// The first syntax error or limit, after which nothing can be trusted.
pub(super) fn parse(file: &Arc<SourceText>, problems: &mut Diagnostics) -> Result<Node, Diagnostic> {
    refuse_controls(file)?;
    let tape = record(file)?;
    let builder = Builder {
        file,
        tape: &tape,
        problems,
        stack: Vec::new(),
        anchors: BTreeMap::new(),
        weight: 0,
        outer: 0,
        root: None,
    };
    builder.run()
}

/// The type that serde_yaml gives an unquoted scalar; a number beyond 64 bits is text.
pub(super) fn resolve_plain(text: &str) -> Value {
    if let Some(name) = text.strip_prefix("$params.")
        && !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
    {
        return Value::Param(name.to_owned());
    }
    // What serde_yaml could read as anything but text has only these characters; asking it about
    // other text could start a document or an alias.
    let may_be_typed = text.len() <= 400
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.~".contains(c))
        && text.contains(|c: char| c.is_ascii_alphanumeric() || c == '~');
    match may_be_typed.then(|| serde_yaml::from_str(text)) {
        _ if text.is_empty() => Value::Null,
        Some(Ok(serde_yaml::Value::Null)) => Value::Null,
        Some(Ok(serde_yaml::Value::Bool(value))) => Value::Bool(value),
        Some(Ok(serde_yaml::Value::Number(number))) => {
            match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(value), ..) => Value::Int(value.into()),
                (_, Some(value), _) => Value::Int(value.into()),
                (_, _, Some(value)) => Value::Float(value),
                _ => Value::Text(text.to_owned()),
            }
        }
        _ => Value::Text(text.to_owned()),
    }
}

/// YAML allows no control characters; the parser would take NUL for the end of the file.
fn refuse_controls(file: &Arc<SourceText>) -> Result<(), Diagnostic> {
    match file.text().char_indices().find(|(_, c)| c.is_control() && !"\t\n\r\u{85}".contains(*c)) {
        Some((offset, c)) => {
            let message = format!("the control character U+{:04X} cannot stand in YAML", u32::from(c));
            Err(Diagnostic::error(file, file.span_at(offset), message))
        }
        None => Ok(()),
    }
}

type Tape<'a> = Vec<(Event<'a>, Span)>;

/// All events of the one document, without those of stream and document.
fn record(file: &Arc<SourceText>) -> Result<Tape<'_>, Diagnostic> {
    let mut parser = Parser::new_from_str(file.text());
    let mut tape = Tape::new();
    let (mut depth, mut documents) = (0usize, 0);
    loop {
        let (event, marks) = match parser.next_event() {
            None | Some(Ok((Event::StreamEnd, _))) => break,
            Some(Ok(next)) => next,
            Some(Err(error)) => return Err(syntax(file, &error)),
        };
        let mut span = span_of(marks);
        // Of a container, its bracket or first character: the parser's mark takes blanks with it.
        if let (Event::SequenceStart(..) | Event::MappingStart(..), Span::At { len, .. }) =
            (&event, &mut span)
        {
            *len = 1;
        }
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => continue,
            Event::DocumentStart(_) => {
                documents += 1;
                if documents > 1 {
                    return Err(Diagnostic::error(file, span, "a second document starts here")
                        .help("a pipeline is one document; give each its own file".to_owned()));
                }
                continue;
            }
            Event::SequenceStart(..) | Event::MappingStart(..) => depth += 1,
            Event::SequenceEnd | Event::MappingEnd => depth = depth.saturating_sub(1),
            Event::Alias(_) | Event::Scalar(..) => {}
        }
        if depth > LIMIT_DEPTH {
            return Err(too_deep(file, span));
        }
        tape.push((event, span));
    }
    match tape.is_empty() {
        true => Err(Diagnostic::error(file, Span::File, "the file is empty")
            .help("a pipeline has at least `version: 1`, `name:` and `nodes:`".to_owned())),
        false => Ok(tape),
    }
}

fn too_deep(file: &Arc<SourceText>, span: Span) -> Diagnostic {
    Diagnostic::error(file, span, format!("nested deeper than {LIMIT_DEPTH} levels"))
}

/// A syntax error in the parser's words.
fn syntax(file: &Arc<SourceText>, error: &ScanError) -> Diagnostic {
    let (line, col) = (error.marker().line().max(1) as u32, error.marker().col() as u32 + 1);
    // The parser sometimes notices only on the next line; the tab is then on the one before.
    let tabbed = |line: u32| file.line(line).trim_start_matches(' ').starts_with('\t');
    let tab = [line, line.saturating_sub(1)].into_iter().any(tabbed);
    let span = Span::At { line, col, len: 1 };
    let help = match error.info() {
        // The parser's own limit on brackets, 255, which it meets while looking ahead.
        "recursion limit exceeded" => return too_deep(file, span),
        _ if tab => Some("indent with spaces; YAML allows no tabs there".to_owned()),
        "invalid indentation" => Some("is a bracket or a quote left open above?".to_owned()),
        _ => None,
    };
    Diagnostic::error(file, span, format!("this is not YAML: {}", error.info())).help(help)
}

/// The stretch on the first line that the marks cover.
fn span_of(marks: Marks) -> Span {
    let (start, end) = (marks.start, marks.end);
    let len = if start.line() == end.line() { end.col().saturating_sub(start.col()) } else { 1 };
    Span::At { line: start.line().max(1) as u32, col: start.col() as u32 + 1, len: len.max(1) as u32 }
}

/// A container being filled.
struct Frame {
    span: Span,
    anchor: usize,
    /// Where on the tape it starts.
    start: usize,
    kind: Kind,
}

enum Kind {
    Seq(Vec<Node>),
    Map { entries: Vec<Entry>, seen: HashMap<String, Span>, key: Option<Spanned<String>> },
}

struct Builder<'a, 't> {
    file: &'a Arc<SourceText>,
    tape: &'t Tape<'t>,
    problems: &'a mut Diagnostics,
    stack: Vec<Frame>,
    /// The stretch of tape of each finished anchor.
    anchors: BTreeMap<usize, (usize, usize)>,
    weight: usize,
    /// Where on the tape the document itself is, while aliases play other stretches.
    outer: usize,
    root: Option<Node>,
}

impl Builder<'_, '_> {
    /// Plays the tape; each alias adds a cursor, which ends before its own can go on.
    fn run(mut self) -> Result<Node, Diagnostic> {
        let mut cursors = vec![(0, self.tape.len())];
        loop {
            let outermost = cursors.len() == 1;
            let Some((next, end)) = cursors.last_mut() else { break };
            if next == end {
                cursors.pop();
                continue;
            }
            let at = *next;
            *next += 1;
            if outermost {
                self.outer = at;
            }
            if let Some(stretch) = self.event(at)? {
                cursors.push(stretch);
            }
        }
        match self.root {
            Some(root) => Ok(root),
            None => {
                Err(Diagnostic::error(self.file, Span::File, "this is not YAML: the document does not end"))
            }
        }
    }

    /// Takes the event at a place of the tape; an alias answers with the stretch to play.
    fn event(&mut self, at: usize) -> Result<Option<(usize, usize)>, Diagnostic> {
        let (event, span) = &self.tape[at];
        self.spend(event)?;
        match event {
            Event::Alias(id) => return self.alias(*id, span).map(Some),
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_tag(tag.is_some(), span)?;
                self.anchors.insert(*anchor, (at, at + 1));
                self.scalar(text, *style, span)?;
            }
            Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag) => {
                self.refuse_tag(tag.is_some(), span)?;
                self.refuse_key(span)?;
                let kind = match event {
                    Event::SequenceStart(..) => Kind::Seq(Vec::new()),
                    _ => Kind::Map { entries: Vec::new(), seen: HashMap::new(), key: None },
                };
                self.stack.push(Frame { span: span.clone(), anchor: *anchor, start: at, kind });
                if self.stack.len() > LIMIT_DEPTH {
                    return Err(too_deep(self.file, self.tape[self.outer].1.clone()));
                }
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(frame) = self.stack.pop() {
                    self.anchors.insert(frame.anchor, (frame.start, at + 1));
                    let value = match frame.kind {
                        Kind::Seq(items) => Value::Seq(items),
                        Kind::Map { entries, .. } => Value::Map(entries),
                    };
                    self.place(Node::new(frame.span, value));
                }
            }
            // `record` leaves these out.
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => {}
        }
        Ok(None)
    }

    /// Counts an event against the limit on the expanded document.
    fn spend(&mut self, event: &Event<'_>) -> Result<(), Diagnostic> {
        self.weight += match event {
            Event::Scalar(text, ..) => text.len() + 2,
            _ => 1,
        };
        if self.weight > LIMIT_BYTES {
            let message = format!("the document expands beyond {} KiB", LIMIT_BYTES / 1024);
            return Err(Diagnostic::error(self.file, self.tape[self.outer].1.clone(), message)
                .help("repeat less through anchors and aliases".to_owned()));
        }
        Ok(())
    }

    fn alias(&self, id: usize, span: &Span) -> Result<(usize, usize), Diagnostic> {
        let open = self.stack.iter().any(|frame| frame.anchor == id);
        match self.anchors.get(&id) {
            Some(stretch) if !open => Ok(*stretch),
            _ => Err(Diagnostic::error(self.file, span.clone(), "this alias stands inside its own anchor")),
        }
    }

    fn refuse_tag(&self, tagged: bool, span: &Span) -> Result<(), Diagnostic> {
        match tagged {
            true => Err(Diagnostic::error(self.file, span.clone(), "tags are not supported")
                .help("quotes make text; everything else is typed by its form".to_owned())),
            false => Ok(()),
        }
    }

    /// Keys are text: a list or map in the place of a key is an error.
    fn refuse_key(&self, span: &Span) -> Result<(), Diagnostic> {
        match self.stack.last() {
            Some(Frame { kind: Kind::Map { key: None, .. }, .. }) => {
                Err(Diagnostic::error(self.file, span.clone(), "a key must be text"))
            }
            _ => Ok(()),
        }
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, span: &Span) -> Result<(), Diagnostic> {
        let plain = style == ScalarStyle::Plain;
        if let Some(Frame { kind: Kind::Map { key: key @ None, .. }, .. }) = self.stack.last_mut() {
            if plain && text == "<<" {
                return Err(Diagnostic::error(
                    self.file,
                    span.clone(),
                    "merge keys (`<<`) are not supported",
                )
                .help("write the entries out, or alias a whole value".to_owned()));
            }
            if plain && text.is_empty() {
                return Err(Diagnostic::error(self.file, span.clone(), "a key is missing"));
            }
            *key = Some(Spanned { value: text.to_owned(), span: span.clone() });
            return Ok(());
        }
        let value = if plain { resolve_plain(text) } else { Value::Text(text.to_owned()) };
        self.place(Node::new(span.clone(), value));
        Ok(())
    }

    /// Puts a finished node where it belongs.
    fn place(&mut self, node: Node) {
        match self.stack.last_mut().map(|frame| &mut frame.kind) {
            None => self.root = Some(node),
            Some(Kind::Seq(items)) => items.push(node),
            Some(Kind::Map { entries, seen, key }) => {
                let Some(key) = key.take() else { return };
                match seen.get(&key.value) {
                    Some(first) => {
                        let line = match first {
                            Span::At { line, .. } => Some(format!("it is first given on line {line}")),
                            Span::File | Span::Flag(_) => None,
                        };
                        let message = format!("`{}` is given twice", key.value);
                        self.problems.push(Diagnostic::error(self.file, key.span, message).help(line));
                    }
                    None => {
                        seen.insert(key.value.clone(), key.span.clone());
                        entries.push(Entry { key, value: node });
                    }
                }
            }
        }
    }
}
