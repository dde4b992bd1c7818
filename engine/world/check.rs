//! Which parameters are a world: bounds, and what must fit together.
//!
//! All misfits are told at once, each with what would do, and by the names of `world.json`: whoever
//! writes a world by hand reads nothing else.

use std::fmt;

use super::parameters::Parameters;

/// Slates that one user can be shown in a day, with sessions that stay apart.
const DAILY_SLATES: f64 = 40_000.0;

/// A parameter that cannot be.
#[derive(Clone, Debug, PartialEq)]
pub struct Misfit {
    /// Which one.
    pub name: &'static str,
    /// What it is.
    pub value: String,
    /// What it must be.
    pub must: String,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is {}, but must be {}", self.name, self.value, self.must)
    }
}

/// What was found so far.
#[derive(Default)]
struct Misfits(Vec<Misfit>);

impl Misfits {
    fn check(&mut self, fits: bool, name: &'static str, value: impl ToString, must: impl Into<String>) {
        if !fits {
            self.0.push(Misfit { name, value: value.to_string(), must: must.into() });
        }
    }
}

impl Parameters {
    /// Everything that keeps these parameters from being a world.
    pub fn misfits(&self) -> Vec<Misfit> {
        let mut found = Misfits::default();
        self.check_sizes(&mut found);
        self.check_strengths(&mut found);
        if found.0.is_empty() {
            let busiest = self.activity(1) as f64 * (1.0 + self.unrest) / f64::from(self.days);
            let must = format!(
                "at least {:.0}, or the most active user sees {busiest:.0} slates a day; or let there be \
                 more users, or a smaller `user_exponent`",
                (f64::from(self.days) * busiest / DAILY_SLATES).ceil()
            );
            found.check(busiest <= DAILY_SLATES, "days", self.days, must);
        }
        found.0
    }

    fn check_sizes(&self, found: &mut Misfits) {
        let counts = [
            ("users", self.users),
            ("categories", self.categories),
            ("groups", self.groups),
            ("days", self.days),
            ("slate", self.slate),
            ("burst_days", self.burst_days),
        ];
        for (name, value) in counts {
            found.check(value > 0, name, value, "at least 1");
        }
        found.check((1..=20).contains(&self.session), "session", self.session, "from 1 to 20");
        found.check(self.days <= 36_500, "days", self.days, "at most 36500, a century");
        found.check(self.start >= 0, "start", self.start, "0 or later, in seconds since 1970");
        found.check(self.start <= i64::from(u32::MAX), "start", self.start, "at most 4294967295");
        found.check(self.users < 1 << 31, "users", self.users, "below 2147483648");
        let most = 10_000;
        found.check(self.categories <= most, "categories", self.categories, format!("at most {most}"));
        found.check(self.groups <= most, "groups", self.groups, format!("at most {most}"));
        found.check(
            self.items >= self.categories,
            "items",
            self.items,
            format!("at least {}, one for each category", self.categories),
        );
        let of_categories = format!("at most {}, the number of categories", self.categories);
        found.check(self.slate <= self.categories, "slate", self.slate, of_categories);
        let least = u64::from(self.users) * u64::from(self.slate);
        found.check(
            self.interactions >= least,
            "interactions",
            self.interactions,
            format!("at least {least}: a slate of {} for each user", self.slate),
        );
        let odd = self.interactions.checked_rem(u64::from(self.slate)).unwrap_or(0);
        found.check(
            odd == 0 || self.interactions < least,
            "interactions",
            self.interactions,
            format!("a multiple of {}, the items of a slate: {}, say", self.slate, self.interactions - odd),
        );
        found.check(self.interactions < 1 << 40, "interactions", self.interactions, "below 1099511627776");
        found.check(
            self.burst_every >= self.burst_days,
            "burst_every",
            self.burst_every,
            format!("at least {}, the days that a burst lasts", self.burst_days),
        );
    }

    fn check_strengths(&self, found: &mut Misfits) {
        let shares = [
            ("unrest", self.unrest),
            ("informative", self.informative),
            ("kinship", self.kinship),
            ("exploration", self.exploration),
        ];
        for (name, value) in shares {
            found.check((0.0..=1.0).contains(&value), name, value, "from 0 to 1");
        }
        // Propensities are to be divided by, so none may be 0.
        found.check(self.exploration >= 0.001, "exploration", self.exploration, "at least 0.001");
        let strengths = [
            ("user_exponent", self.user_exponent, 4.0),
            ("item_exponent", self.item_exponent, 4.0),
            ("group_exponent", self.group_exponent, 4.0),
            ("taste", self.taste, 20.0),
            ("deviation", self.deviation, 20.0),
            ("drift", self.drift, 20.0),
            ("quality", self.quality, 20.0),
            ("fatigue", self.fatigue, 20.0),
            ("greed", self.greed, 20.0),
        ];
        for (name, value, most) in strengths {
            found.check((0.0..=most).contains(&value), name, value, format!("from 0 to {most}"));
        }
        for (name, value) in [("base", self.base), ("burst", self.burst)] {
            found.check((-20.0..=20.0).contains(&value), name, value, "from -20 to 20");
        }
        let must = "from 1 to 36500";
        found.check((1.0..=36_500.0).contains(&self.drift_days), "drift_days", self.drift_days, must);
    }

    /// Slates of the user of a rank from 1, to within one.
    fn activity(&self, rank: u32) -> u64 {
        let weight = |r: u32| libm::pow(f64::from(r), -self.user_exponent);
        let all: f64 = (1..=self.users).map(weight).sum();
        let more = self.slates().saturating_sub(u64::from(self.users));
        1 + (more as f64 * weight(rank) / all) as u64
    }
}
