//! serde over the positioned tree.
//!
//! A deserialiser of our own, instead of one for a foreign value type, because its error then says
//! in fields, not in English to be parsed back, what serde wanted and at which path; because it can
//! refuse unknown keys even of a type that forgot to; and because it alone can hand out a
//! [`Secret`](super::Secret).

use serde::{
    Deserializer,
    de::{
        self, DeserializeSeed, EnumAccess, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
        VariantAccess, Visitor,
        value::{SeqDeserializer, StrDeserializer},
    },
    forward_to_deserialize_any,
};

use super::{
    node::{Entry, Node, Step, Value},
    secret::{TOKEN, WANTED},
};

/// Why a tree is not a value of the wanted type, and where.
#[derive(Debug)]
pub(super) struct Fault {
    /// From the node at fault up to the root.
    pub path: Vec<Step>,
    pub kind: FaultKind,
}

#[derive(Debug)]
pub(super) enum FaultKind {
    /// The map at the path has a key that the type has not.
    UnknownKey { key: String, known: &'static [&'static str] },
    /// The map at the path lacks a key.
    Missing(&'static str),
    /// The text at the path is none of the words allowed.
    UnknownWord { word: String, known: &'static [&'static str] },
    /// The value at the path is of another type, or out of its range; serde's name of the type.
    Wants(String),
    /// A list at the path has the wrong length; serde's name of the right one.
    Length(String),
    /// A secret stands where the type takes none.
    Secret,
    /// A value nobody reads; becomes `UnknownKey` in its map.
    Ignored,
    /// Reported before.
    Poison,
    /// The type's own words.
    Custom(String),
}

impl Fault {
    fn new(kind: FaultKind) -> Self {
        Fault { path: Vec::new(), kind }
    }

    /// The same, one step further from the root.
    fn under(mut self, step: Step) -> Self {
        self.path.push(step);
        self
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.kind)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Fault::new(FaultKind::Custom(message.to_string()))
    }

    fn invalid_type(_: Unexpected<'_>, wants: &dyn Expected) -> Self {
        Fault::new(FaultKind::Wants(wants.to_string()))
    }

    fn invalid_value(_: Unexpected<'_>, wants: &dyn Expected) -> Self {
        Fault::new(FaultKind::Wants(wants.to_string()))
    }

    fn invalid_length(_: usize, wants: &dyn Expected) -> Self {
        Fault::new(FaultKind::Length(wants.to_string()))
    }

    fn unknown_variant(word: &str, known: &'static [&'static str]) -> Self {
        Fault::new(FaultKind::UnknownWord { word: word.to_owned(), known })
    }

    fn unknown_field(key: &str, known: &'static [&'static str]) -> Self {
        Fault::new(FaultKind::UnknownKey { key: key.to_owned(), known })
    }

    fn missing_field(key: &'static str) -> Self {
        Fault::new(FaultKind::Missing(key))
    }
}

/// Deserialises a node.
pub(super) struct NodeDe<'a>(pub &'a Node);

impl<'a> NodeDe<'a> {
    fn map<'de, V: Visitor<'de>>(
        entries: &'a [Entry],
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_map(Entries { entries: entries.iter(), value: None, known })
    }
}

impl<'de> Deserializer<'de> for NodeDe<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.0.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Int(value) => match u64::try_from(*value) {
                Ok(value) => visitor.visit_u64(value),
                Err(_) => visitor.visit_i64(*value as i64),
            },
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) => visitor.visit_str(text),
            Value::Seq(items) => visitor.visit_seq(Items { items: items.iter().enumerate() }),
            Value::Map(entries) => Self::map(entries, &[], visitor),
            Value::Secret(_) => Err(Fault::new(FaultKind::Secret)),
            Value::Param(_) | Value::Poison => Err(Fault::new(FaultKind::Poison)),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.0.raw {
            Some(raw) => visitor.visit_str(raw),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.0.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.0.value {
            Value::Secret(secret) if name == TOKEN => {
                visitor.visit_seq(SeqDeserializer::new([secret.name(), secret.reveal()].into_iter()))
            }
            Value::Poison => Err(Fault::new(FaultKind::Poison)),
            _ if name == TOKEN => Err(Fault::new(FaultKind::Wants(WANTED.to_owned()))),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.0.value {
            Value::Map(entries) => Self::map(entries, fields, visitor),
            // A derived struct would also take a list of its fields.
            Value::Seq(_) => Err(Fault::new(FaultKind::Wants("a map".to_owned()))),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.0.value {
            Value::Text(word) => visitor.visit_enum(Variant { word, value: None }),
            Value::Map(entries) => match entries.as_slice() {
                [only] => visitor.visit_enum(Variant { word: &only.key, value: Some(&only.value) }),
                _ => Err(Fault::new(FaultKind::Wants(one_of(known)))),
            },
            Value::Secret(_) | Value::Param(_) | Value::Poison => self.deserialize_any(visitor),
            Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) | Value::Seq(_) => {
                Err(Fault::new(FaultKind::Wants(one_of(known))))
            }
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Fault> {
        Err(Fault::new(FaultKind::Ignored))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier
    }
}

/// "one of `a`, `b`".
pub(super) fn one_of(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match words.as_slice() {
        [only] => only.clone(),
        _ => format!("one of {}", words.join(", ")),
    }
}

/// The items of a list, without those reported before.
struct Items<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        match self.items.find(|(_, item)| item.value != Value::Poison) {
            Some((index, item)) => {
                seed.deserialize(NodeDe(item)).map(Some).map_err(|e| e.under(Step::Index(index)))
            }
            None => Ok(None),
        }
    }
}

/// The entries of a map, without those reported before.
struct Entries<'a> {
    entries: std::slice::Iter<'a, Entry>,
    value: Option<&'a Entry>,
    known: &'static [&'static str],
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        self.value = self.entries.find(|entry| entry.value.value != Value::Poison);
        let Some(entry) = self.value else { return Ok(None) };
        let key: StrDeserializer<'_, Fault> = entry.key.as_str().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|fault| match fault.kind {
            FaultKind::UnknownKey { .. } => fault,
            _ => fault.under(Step::Key(entry.key.value.clone())),
        })
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let Some(entry) = self.value else { return Err(de::Error::custom("a value without a key")) };
        let key = || entry.key.value.clone();
        seed.deserialize(NodeDe(&entry.value)).map_err(|fault| match fault.kind {
            FaultKind::Ignored => Fault::new(FaultKind::UnknownKey { key: key(), known: self.known }),
            _ => fault.under(Step::Key(key())),
        })
    }
}

/// A word, or `{ word: value }`.
struct Variant<'a> {
    word: &'a str,
    value: Option<&'a Node>,
}

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = Fault;
    type Variant = Variant<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Variant<'a>), Fault> {
        let word: StrDeserializer<'_, Fault> = self.word.into_deserializer();
        Ok((seed.deserialize(word)?, self))
    }
}

impl Variant<'_> {
    /// Reads the value that the variant needs.
    fn with<T>(self, read: impl FnOnce(NodeDe<'_>) -> Result<T, Fault>) -> Result<T, Fault> {
        match self.value {
            Some(value) => read(NodeDe(value)).map_err(|fault| fault.under(Step::Key(self.word.to_owned()))),
            None => {
                Err(Fault::new(FaultKind::Wants(format!("a value with it, as in `{{ {}: … }}`", self.word))))
            }
        }
    }
}

impl<'de> VariantAccess<'de> for Variant<'_> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        match self.value {
            None => Ok(()),
            Some(_) => Err(Fault::new(FaultKind::Wants(format!("the word `{}` alone", self.word)))),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Fault> {
        self.with(|value| seed.deserialize(value))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.with(|value| value.deserialize_any(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.with(|value| value.deserialize_struct("", known, visitor))
    }
}
