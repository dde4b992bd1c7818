//! A value that must not be seen.
//!
//! Only `{ secret: NAME }` makes one, and only a field of this type receives it: the deserialiser
//! hands the value over under a name of its own, so neither a text field nor a catch-all value can
//! take a secret by accident. What is printed, serialised, compared or hashed is the name.

use std::{borrow::Cow, fmt, sync::Arc};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, SeqAccess, Visitor},
    ser::SerializeMap,
};

/// What [`Secret`] asks a deserialiser for; no other type does.
pub(super) const TOKEN: &str = "$coea::Secret";

/// What messages call the type.
pub(super) const WANTED: &str = "a secret, written `{ secret: NAME }`";

/// A password, token or key, known by the name of the variable it came from.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Secret {
    name: Arc<str>,
    value: Hidden,
}

/// The value itself: equal to every other, so that nothing derived from a secret depends on it.
#[derive(Clone)]
struct Hidden(Arc<str>);

impl PartialEq for Hidden {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Hidden {}

impl PartialOrd for Hidden {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Hidden {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl std::hash::Hash for Hidden {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

impl Secret {
    /// A secret of this name and value.
    pub fn new(name: &str, value: &str) -> Self {
        Secret { name: name.into(), value: Hidden(value.into()) }
    }

    /// The name of the variable; free to show.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The value, for the one call that needs it.
    pub fn reveal(&self) -> &str {
        &self.value.0
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{ secret: {} }}", self.name)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// As written: `{"secret": NAME}`.
impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("secret", &*self.name)?;
        map.end()
    }
}

/// Only from a pipeline's `{ secret: NAME }`; any other deserialiser fails.
impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pair;

        impl<'de> Visitor<'de> for Pair {
            type Value = Secret;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str(WANTED)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Secret, A::Error> {
                let mut next =
                    || pair.next_element::<String>()?.ok_or_else(|| A::Error::custom("half a secret"));
                Ok(Secret::new(&next()?, &next()?))
            }
        }

        deserializer.deserialize_newtype_struct(TOKEN, Pair)
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A secret: the name of an environment variable whose value is never shown.",
            "type": "object",
            "properties": { "secret": { "type": "string" } },
            "required": ["secret"],
            "additionalProperties": false
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_derived_from_a_secret_shows_or_depends_on_its_value() {
        let (old, new) = (Secret::new("TOKEN", "hunter2"), Secret::new("TOKEN", "hunter3"));
        let shown = format!("{old} {old:?} {}", serde_json::to_string(&old).unwrap());
        assert!(!shown.contains("hunter"), "{shown}");
        assert_eq!(old, new);
        assert_ne!(old, Secret::new("OTHER", "hunter2"));
        assert_eq!(old.reveal(), "hunter2");
    }

    #[test]
    fn other_formats_cannot_make_one() {
        assert!(serde_json::from_str::<Secret>(r#"["TOKEN", "hunter2"]"#).is_err());
        assert!(serde_json::from_str::<Secret>(r#"{"secret": "TOKEN"}"#).is_err());
    }
}
