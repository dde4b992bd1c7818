//! Lengths of time as parameters.
//!
//! A type of its own, because a field says with it where a wrong one stands and what its schema is.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de::Error};

use crate::spec::duration;

/// What nobody means to wait.
const LONGEST: Duration = Duration::from_secs(86_400);

/// A time, written with its unit: `500ms`, `60s`, `2m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, JsonSchema)]
#[schemars(with = "String")]
pub struct Wait(pub Duration);

impl Wait {
    /// So many seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Wait(Duration::from_secs(seconds))
    }
}

impl<'de> Deserialize<'de> for Wait {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wait = duration(&text).map_err(D::Error::custom)?;
        match wait <= LONGEST {
            true => Ok(Wait(wait)),
            false => Err(D::Error::custom("longer than a day")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_within_a_day() {
        let read = |text: &str| serde_json::from_str::<Wait>(&format!("{text:?}"));
        assert_eq!(read("1500ms").unwrap().0, Duration::from_millis(1500));
        assert_eq!(read("24h").unwrap(), Wait::seconds(86_400));
        for wrong in ["25h", "3d", "", "0s"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
