//! Times as people write them, with a unit.
//!
//! Always with one: sixty of what is a question that a number alone leaves open.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de::Error};

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
        let digits = text.trim_end_matches(char::is_alphabetic);
        let wrong = || D::Error::custom("expected a whole number with ms, s or m, such as 60s");
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let millis = match &text[digits.len()..] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "" => return Err(wrong()),
            unit => return Err(D::Error::custom(format!("unknown unit `{unit}`; there are ms, s and m"))),
        };
        match number.checked_mul(millis) {
            Some(1..=86_400_000) => Ok(Wait(Duration::from_millis(number * millis))),
            _ => Err(D::Error::custom("a time from 1ms to a day belongs here")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_number_and_a_unit() {
        let read = |text: &str| serde_json::from_str::<Wait>(&format!("{text:?}"));
        assert_eq!(read("1500ms").unwrap().0, Duration::from_millis(1500));
        assert_eq!(read("2m").unwrap(), Wait::seconds(120));
        for wrong in
            ["60", "3h", "", "s", "0s", "-1s", "1.5s", "99999999999999999999s", "18446744073709551615m"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
