//! How fast requests may go: token buckets, and how far: a budget.
//!
//! A bucket may be overdrawn, and whoever overdraws it waits until it is level again. So a request
//! larger than a bucket still passes, nobody starves, and a wait is worked out once instead of
//! polled for. A bucket holds one second's worth: what a server counts in any stretch of time is at
//! most the rate times that, and one second more.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use coea_operators::shape::Cost;

use super::{
    failure::Failure,
    settings::{Budget, Settings},
};
use crate::price::Price;

/// So many units a second.
struct Bucket {
    rate: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    fn new(per_minute: f64) -> Self {
        let rate = per_minute / 60.0;
        Bucket { rate, level: rate.max(1.0), at: Instant::now() }
    }

    /// Takes units, and says how long to wait before they are used.
    fn take(&mut self, units: f64, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed * self.rate).min(self.rate.max(1.0)) - units;
        self.at = now;
        Duration::from_secs_f64((-self.level / self.rate).clamp(0.0, 86_400.0))
    }
}

/// The limits on requests and tokens.
pub(super) struct Pace {
    requests: Option<Mutex<Bucket>>,
    tokens: Option<Mutex<Bucket>>,
}

fn take(bucket: &Option<Mutex<Bucket>>, units: f64) -> Duration {
    bucket.as_ref().map_or(Duration::ZERO, |bucket| {
        bucket.lock().unwrap_or_else(PoisonError::into_inner).take(units, Instant::now())
    })
}

impl Pace {
    pub fn new(settings: &Settings) -> Self {
        let bucket = |rate: Option<f64>| rate.map(|rate| Mutex::new(Bucket::new(rate)));
        Pace { requests: bucket(settings.requests_per_minute), tokens: bucket(settings.tokens_per_minute) }
    }

    /// Waits until a request of about so many tokens may go.
    pub fn wait(&self, tokens: u64) {
        std::thread::sleep(take(&self.requests, 1.0).max(take(&self.tokens, tokens as f64)));
    }

    /// Puts right what was guessed.
    pub fn correct(&self, guessed: u64, used: u64) {
        take(&self.tokens, used as f64 - guessed as f64);
    }
}

/// What a model has cost, and is about to.
#[derive(Default)]
struct Ledger {
    calls: u64,
    spent: Cost,
    reserved: Cost,
}

/// The budget of a model.
pub(super) struct Meter {
    budget: Budget,
    price: Option<Price>,
    ledger: Mutex<Ledger>,
}

/// What a question under way has reserved and not used yet.
pub(super) struct Ticket<'a> {
    meter: &'a Meter,
    left: Cost,
}

impl Meter {
    pub fn new(budget: Budget, price: Option<Price>) -> Self {
        Meter { budget, price, ledger: Mutex::default() }
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves what a question is expected to cost, so that none is begun that cannot be finished.
    pub fn begin(&self, expected: Cost) -> Result<Ticket<'_>, Failure> {
        let mut ledger = self.ledger();
        if let Some(most) = self.budget.calls.filter(|most| ledger.calls >= *most) {
            return Err(Failure::Spent(format!("the budget of {most} calls is spent")));
        }
        let mut total = ledger.spent;
        total += ledger.reserved;
        total += expected;
        self.allows(total)?;
        ledger.calls += 1;
        ledger.reserved += expected;
        Ok(Ticket { meter: self, left: expected })
    }

    /// A ticket for what is asked beside questions, such as the tokens of a label.
    pub fn aside(&self) -> Ticket<'_> {
        Ticket { meter: self, left: Cost::default() }
    }

    fn allows(&self, total: Cost) -> Result<(), Failure> {
        if let Some(most) = self.budget.tokens.filter(|most| tokens(&total) > *most) {
            return Err(Failure::Spent(format!("the budget of {most} tokens is spent")));
        }
        let money = self.budget.money.zip(self.price.as_ref());
        if let Some((most, price)) = money.filter(|(most, price)| price.of(&total) > *most) {
            return Err(Failure::Spent(format!("the budget of {most} {} is spent", price.currency)));
        }
        Ok(())
    }
}

impl Ticket<'_> {
    /// Refuses a request that would exceed the budget, whatever was reserved.
    pub fn check(&self, request: Cost) -> Result<(), Failure> {
        let mut total = self.meter.ledger().spent;
        total += request;
        self.meter.allows(total)
    }

    /// Books what a request did cost.
    pub fn pay(&mut self, cost: Cost) {
        let mut ledger = self.meter.ledger();
        ledger.spent += cost;
        let left = less(self.left, cost);
        ledger.reserved = less(ledger.reserved, less(self.left, left));
        self.left = left;
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut ledger = self.meter.ledger();
        ledger.reserved = less(ledger.reserved, self.left);
    }
}

/// All tokens of a cost.
pub(super) fn tokens(cost: &Cost) -> u64 {
    cost.prompt_tokens + cost.reused_prompt_tokens + cost.completion_tokens
}

/// What is left of `a` after `b`; reused tokens count as those of prompts.
fn less(a: Cost, b: Cost) -> Cost {
    Cost {
        prompt_tokens: a.prompt_tokens.saturating_sub(b.prompt_tokens + b.reused_prompt_tokens),
        completion_tokens: a.completion_tokens.saturating_sub(b.completion_tokens),
        ..Cost::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_rate_and_a_second_more() {
        let mut bucket = Bucket::new(600.0);
        let start = bucket.at;
        let mut at = start;
        for _ in 0..50 {
            at += bucket.take(1.0, at);
        }
        // Ten at once, then ten a second: the fiftieth after four seconds.
        assert!((at - start).abs_diff(Duration::from_secs(4)) < Duration::from_millis(1), "{:?}", at - start);
        // An hour of rest does not save up more.
        at += Duration::from_secs(3600);
        assert_eq!(bucket.take(10.0, at), Duration::ZERO);
        assert!(bucket.take(1.0, at) > Duration::from_millis(99));
    }

    #[test]
    fn what_was_guessed_too_high_is_given_back() {
        let mut bucket = Bucket::new(60_000.0);
        let at = bucket.at;
        assert_eq!(bucket.take(3000.0, at), Duration::from_secs(2));
        assert_eq!(bucket.take(-2500.0, at), Duration::ZERO);
        assert_eq!(bucket.take(500.0, at), Duration::ZERO);
    }

    fn prompt(tokens: u64) -> Cost {
        Cost { prompt_tokens: tokens, ..Cost::default() }
    }

    #[test]
    fn no_question_is_begun_that_the_budget_cannot_finish() {
        let meter = Meter::new(Budget { tokens: Some(100), ..Budget::default() }, None);
        let mut first = meter.begin(prompt(60)).unwrap();
        assert!(meter.begin(prompt(60)).is_err(), "what is reserved counts");
        first.pay(prompt(20));
        assert!(meter.begin(prompt(41)).is_err(), "20 are spent and 40 still reserved");
        drop(first);
        let mut second = meter.begin(prompt(80)).unwrap();
        second.pay(prompt(75));
        assert!(second.check(prompt(5)).is_ok());
        assert!(second.check(prompt(6)).is_err(), "a budget is never exceeded by a request");
    }

    #[test]
    fn calls_and_money_are_bounded() {
        let meter = Meter::new(Budget { calls: Some(2), ..Budget::default() }, None);
        assert!(meter.begin(prompt(1)).is_ok() && meter.begin(prompt(1)).is_ok());
        assert!(matches!(meter.begin(prompt(1)), Err(Failure::Spent(_))));
        let price = Price { prompt: 1e6, cached: None, completion: None, currency: "EUR".to_string() };
        let meter = Meter::new(Budget { money: Some(3.0), ..Budget::default() }, Some(price));
        assert!(meter.begin(prompt(4)).is_err());
        assert!(meter.begin(prompt(3)).is_ok());
    }
}
