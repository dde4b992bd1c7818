//! How long to wait before a request is repeated.
//!
//! Exponential, with full jitter: threads that failed together do not come back together. What a
//! server asks for in `Retry-After` goes first. Jitter is random and never reaches an answer; it
//! moves when something is asked, not what.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The wait before repetition number `tries` (from 1): what the server asked for, or a random part
/// of the first wait doubled for each try before. Never more than `most`.
pub(super) fn pause(tries: u32, asked: Option<Duration>, first: Duration, most: Duration) -> Duration {
    if let Some(asked) = asked {
        return asked.min(most);
    }
    let bound = first.saturating_mul(2u32.saturating_pow(tries.saturating_sub(1))).min(most);
    bound.mul_f64(chance())
}

/// A number from 0 to 1. The standard library seeds each `RandomState` differently.
fn chance() -> f64 {
    let bits = RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// The wait that a `Retry-After` asks for: seconds, or a date.
pub(super) fn retry_after(value: &str) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Some(Duration::from_secs(http_date(value)?).saturating_sub(now))
}

/// Seconds since 1970 of a date as HTTP writes it: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let parts: Vec<&str> = text.split_whitespace().collect();
    let [_, day, month, year, time, "GMT"] = parts.as_slice() else { return None };
    let (day, year): (i64, i64) = (day.parse().ok()?, year.parse().ok()?);
    let month = MONTHS.iter().position(|name| name == month)? as i64 + 1;
    let clock: Vec<i64> = time.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let [hours, minutes, seconds] = clock.as_slice() else { return None };
    if !(1970..=9999).contains(&year) || !(1..=31).contains(&day) {
        return None;
    }
    // Days of the proleptic Gregorian calendar, in years that begin with March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    u64::try_from(((days * 24 + hours) * 60 + minutes) * 60 + seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_are_random_and_bounded() {
        let (first, most) = (Duration::from_millis(100), Duration::from_secs(1));
        for tries in 1..40 {
            let bound = first.saturating_mul(2u32.saturating_pow(tries - 1)).min(most);
            let waits: Vec<Duration> = (0..64).map(|_| pause(tries, None, first, most)).collect();
            assert!(waits.iter().all(|wait| *wait <= bound), "{tries}: {waits:?}");
            assert!(waits.iter().any(|wait| *wait > bound / 2), "{tries}: {waits:?}");
            assert!(waits.iter().any(|wait| *wait < bound / 2), "{tries}: {waits:?}");
        }
        assert_eq!(pause(1, Some(first), first, most), first);
        assert_eq!(pause(1, Some(Duration::from_secs(600)), first, most), most);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(retry_after(" 120 "), Some(Duration::from_secs(120)));
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(http_date("Thu, 29 Feb 2024 00:00:00 GMT"), Some(1_709_164_800));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        for wrong in ["soon", "-1", "Sun, 06 Foo 1994 08:49:37 GMT", "Sun, 99 Nov 1994 08:49:37 GMT", ""] {
            assert_eq!(retry_after(wrong), None, "{wrong}");
        }
    }
}
