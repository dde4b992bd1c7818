//! Lengths of time as people write them: one whole number and one unit.
//!
//! One parser for flags and pipelines, so that `--interval 10m` and `time: 10m` are the same ten
//! minutes. No sums (`1h30m` is `90m`) and no fractions: each length has few writings.

use std::time::Duration;

/// Reads `500ms`, `2s`, `10m`, `1h`; a number alone counts seconds.
///
/// # Errors
/// What is wrong with it, and what to write instead.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(char::is_alphabetic);
    let number: u64 = digits.parse().map_err(|_| "expected a number with ms, s, m or h, such as 10m")?;
    let unit = match &text[digits.len()..] {
        "ms" => 1,
        "s" | "" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        unit => return Err(format!("unknown unit `{unit}`; there are ms, s, m and h")),
    };
    match number.checked_mul(unit) {
        Some(0) => Err("expected some time, such as 100ms".to_string()),
        Some(ms) => Ok(Duration::from_millis(ms)),
        None => Err("longer than can be waited for".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_numbers_with_a_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("3m"), Ok(Duration::from_secs(180)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7_200)));
        for wrong in ["", "soon", "0s", "-5m", "1.5h", "2d", "1h30m", "99999999999999999h", "m"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
