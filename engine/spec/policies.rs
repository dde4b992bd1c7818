//! When a node works and what it may spend: `refit`, `after` and `limits`.
//!
//! Read as a whole and then checked, because what is wrong with a policy is mostly how its keys go
//! together, which no type says.

use std::{fmt, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};

use super::{
    After, Block, Limits, Refit, When,
    node::Value,
    read::{Fields, Reader},
    time::duration,
};

impl Reader<'_> {
    pub(super) fn refit(&mut self, fields: &Fields<'_>) -> Option<Refit> {
        let (block, read) = self.policy::<RefitFields>(fields, "refit")?;
        match read.policy() {
            Ok(when) => Some(Refit { when, span: block.span_of(&["when"]) }),
            Err((key, message)) => {
                self.error(&block.span_of(&[key]), format!("`refit` of {}: {message}", fields.what), None);
                None
            }
        }
    }

    pub(super) fn after(&mut self, fields: &Fields<'_>) -> Option<After> {
        let (block, AfterFields { events, time }) = self.policy::<AfterFields>(fields, "after")?;
        let what = format!("`after` of {}", fields.what);
        match (events, time) {
            (None, None) => {
                let help = "write `after: { events: 1000, time: 10m }`, or one of the two".to_owned();
                self.error(&block.span_of(&[]), format!("{what} needs `events` or `time`"), Some(help));
                None
            }
            (Some(0), _) => {
                let help = "remove `after` to ask in every epoch".to_owned();
                self.error(
                    &block.span_of(&["events"]),
                    format!("{what}: `events` wants 1 or more"),
                    Some(help),
                );
                None
            }
            (events, time) => {
                Some(After { events, time: time.map(|Time(time)| time), span: block.span_of(&[]) })
            }
        }
    }

    pub(super) fn limits(&mut self, fields: &Fields<'_>) -> Option<Limits> {
        let (block, LimitsFields { calls }) = self.policy::<LimitsFields>(fields, "limits")?;
        Some(Limits { calls, span: block.span_of(&[]) })
    }

    /// The block of a policy and its fields; nothing where there is none, or it was reported.
    fn policy<T: de::DeserializeOwned>(&mut self, fields: &Fields<'_>, key: &str) -> Option<(Block, T)> {
        let node = fields.get(key).filter(|node| node.value != Value::Null)?;
        let block = self.block(fields, key);
        node.entries()?;
        match block.parse(&format!("`{key}` of {}", fields.what)) {
            Ok(read) => Some((block, read)),
            Err(problems) => {
                self.problems.extend(problems);
                None
            }
        }
    }
}

/// `after` as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AfterFields {
    events: Option<u64>,
    time: Option<Time>,
}

/// `limits` as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsFields {
    calls: u64,
}

/// A length of time.
struct Time(Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;

        impl Visitor<'_> for Written {
            type Value = Time;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time such as 10m")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Time, E> {
                duration(text).map(Time).map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Time, E> {
                self.visit_str(&seconds.to_string())
            }
        }

        deserializer.deserialize_any(Written)
    }
}

/// `refit` as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RefitFields {
    when: Word,
    above: Option<f64>,
    epochs: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Once,
    Cycle,
    Changed,
    Drift,
    Every,
}

impl RefitFields {
    /// The policy; otherwise the key at fault and what is wrong with it.
    fn policy(&self) -> Result<When, (&'static str, &'static str)> {
        if self.above.is_some() && self.when != Word::Drift {
            return Err(("above", "`above` goes with `when: drift` only"));
        }
        if self.epochs.is_some() && self.when != Word::Every {
            return Err(("epochs", "`epochs` goes with `when: every` only"));
        }
        match self.when {
            Word::Once => Ok(When::Once),
            Word::Cycle => Ok(When::Cycle),
            Word::Changed => Ok(When::Changed),
            Word::Drift => match self.above {
                Some(above) if above > 0.0 && above.is_finite() => Ok(When::Drift { above }),
                Some(_) => Err(("above", "`above` wants a number above 0")),
                None => Err(("when", "`when: drift` needs `above`, the drift tolerated")),
            },
            Word::Every => match self.epochs {
                Some(0) => Err(("epochs", "`epochs` wants 1 or more")),
                Some(epochs) => Ok(When::Every { epochs }),
                None => Err(("when", "`when: every` needs `epochs`")),
            },
        }
    }
}
