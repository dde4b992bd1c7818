//! What the cells of an edge mean: key columns, value columns, and notes an operator leaves for
//! those downstream.
//!
//! The types are the few the engine computes with; [`Schema::to_arrow`] gives the Arrow schema that
//! SQL, Parquet and other programs see. A column may name its *domain*, the node whose labels it
//! holds, so that a scorer finds the label set of the candidates it is given.

use std::{collections::BTreeMap, fmt, sync::Arc};

use arrow_schema::{DataType, Field, TimeUnit};
use serde::{Deserialize, Serialize};

/// The type of a column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Type {
    /// True or false.
    Bool,
    /// Unsigned whole number.
    U64,
    /// Signed whole number.
    I64,
    /// Real number.
    F64,
    /// UTF-8 text.
    Text,
    /// Seconds since 1970, kept as [`Value::I64`](crate::row::Value::I64).
    Timestamp,
    /// Opaque bytes.
    Bytes,
    /// A sequence of one type.
    List(Box<Type>),
    /// A fixed sequence of types, kept as a list cell.
    Tuple(Vec<Type>),
}

impl Type {
    /// A list of this type.
    pub fn list(self) -> Type {
        Type::List(Box::new(self))
    }

    /// The Arrow type that other programs see.
    pub fn to_arrow(&self) -> DataType {
        match self {
            Type::Bool => DataType::Boolean,
            Type::U64 => DataType::UInt64,
            Type::I64 => DataType::Int64,
            Type::F64 => DataType::Float64,
            Type::Text => DataType::Utf8,
            Type::Timestamp => DataType::Timestamp(TimeUnit::Second, None),
            Type::Bytes => DataType::Binary,
            Type::List(item) => DataType::List(Arc::new(Field::new("item", item.to_arrow(), true))),
            Type::Tuple(items) => DataType::Struct(
                items
                    .iter()
                    .enumerate()
                    .map(|(i, t)| Field::new(format!("c{i}"), t.to_arrow(), true))
                    .collect(),
            ),
        }
    }
}

/// As written in YAML: `u64`, `list<text>`.
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Bool => f.write_str("bool"),
            Type::U64 => f.write_str("u64"),
            Type::I64 => f.write_str("i64"),
            Type::F64 => f.write_str("f64"),
            Type::Text => f.write_str("text"),
            Type::Timestamp => f.write_str("timestamp"),
            Type::Bytes => f.write_str("bytes"),
            Type::List(item) => write!(f, "list<{item}>"),
            Type::Tuple(items) => {
                let items: Vec<String> = items.iter().map(Type::to_string).collect();
                write!(f, "({})", items.join(", "))
            }
        }
    }
}

/// A type as YAML names it, the inverse of its display (tuples are never written by users).
impl std::str::FromStr for Type {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(item) = text.strip_prefix("list<").and_then(|t| t.strip_suffix('>')) {
            return Ok(item.parse::<Type>()?.list());
        }
        Ok(match text {
            "bool" => Type::Bool,
            "u64" => Type::U64,
            "i64" => Type::I64,
            "f64" => Type::F64,
            "text" => Type::Text,
            "timestamp" => Type::Timestamp,
            _ => {
                return Err(format!(
                    "`{text}` is no type; there are bool, u64, i64, f64, text, timestamp, list<text>"
                ));
            }
        })
    }
}

/// One named column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: Type,
    /// The node whose labels it holds, where it holds labels.
    pub domain: Option<String>,
}

impl Column {
    /// A column without a domain.
    pub fn new(name: &str, ty: Type) -> Self {
        Column { name: name.to_string(), ty, domain: None }
    }

    /// The same column, holding labels of `node`.
    pub fn of(mut self, node: &str) -> Self {
        self.domain = Some(node.to_string());
        self
    }
}

/// The columns of an edge: those it is keyed by, then the rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Schema {
    /// Columns of the key.
    pub key: Vec<Column>,
    /// Columns of the row.
    pub columns: Vec<Column>,
    /// What an operator tells those downstream, such as the content-free prompt of a template.
    pub notes: BTreeMap<String, String>,
}

impl Schema {
    /// A schema of key and value columns.
    pub fn new(key: impl IntoIterator<Item = Column>, columns: impl IntoIterator<Item = Column>) -> Self {
        Schema {
            key: key.into_iter().collect(),
            columns: columns.into_iter().collect(),
            notes: BTreeMap::new(),
        }
    }

    /// The same schema with one more note.
    pub fn with_note(mut self, name: &str, text: impl Into<String>) -> Self {
        self.notes.insert(name.to_string(), text.into());
        self
    }

    /// The position and definition of a value column.
    pub fn column(&self, name: &str) -> Option<(usize, &Column)> {
        self.columns.iter().enumerate().find(|(_, c)| c.name == name)
    }

    /// All columns, key first.
    pub fn all(&self) -> impl Iterator<Item = &Column> {
        self.key.iter().chain(&self.columns)
    }

    /// The Arrow schema that other programs see: key columns first, domains as field metadata.
    pub fn to_arrow(&self) -> arrow_schema::Schema {
        let field = |column: &Column| {
            let field = Field::new(&column.name, column.ty.to_arrow(), true);
            match &column.domain {
                Some(node) => field.with_metadata([("domain".to_string(), node.clone())].into()),
                None => field,
            }
        };
        arrow_schema::Schema::new(self.all().map(field).collect::<Vec<_>>())
    }
}

/// `user_id → items, since`
impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |columns: &[Column]| {
            columns.iter().map(|c| format!("{}: {}", c.name, c.ty)).collect::<Vec<_>>().join(", ")
        };
        write!(f, "{} → {}", names(&self.key), names(&self.columns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_read_back_as_written() {
        for text in ["bool", "u64", "i64", "f64", "text", "timestamp", "list<text>", "list<list<u64>>"] {
            assert_eq!(text.parse::<Type>().unwrap().to_string(), text);
        }
        assert!("strng".parse::<Type>().unwrap_err().contains("strng"));
    }

    #[test]
    fn arrow_keeps_order_and_domains() {
        let schema =
            Schema::new([Column::new("key", Type::Text)], [Column::new("category", Type::Text).of("label")]);
        let arrow = schema.to_arrow();
        assert_eq!(arrow.field(0).name(), "key");
        assert_eq!(arrow.field(1).metadata()["domain"], "label");
    }
}
