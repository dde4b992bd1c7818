//! Users: the group each belongs to, features that hint at it, and how active each is.
//!
//! A user has exactly as many slates as a Zipf law over ranks gives, by rounding its running sum, so the
//! log has exactly the rows that were asked for; ranks are shuffled over users, so a number says nothing.
//! What all users need together is kept (16 bytes a user); a day's share of a user's slates is computed.

use super::{draws::Draws, parameters::Parameters};

/// Ages, from each of these to the next.
const AGES: [u64; 7] = [18, 25, 35, 45, 55, 65, 80];
const GENDERS: [&str; 2] = ["F", "M"];
const OCCUPATIONS: [&str; 8] =
    ["artist", "engineer", "farmer", "nurse", "salesperson", "student", "teacher", "retired"];

/// Users of the same age and gender: all that the logging policy knows of them.
pub(super) const SEGMENTS: usize = (AGES.len() - 1) * GENDERS.len();

/// What is known of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// In years.
    pub age: u64,
    /// `F` or `M`.
    pub gender: &'static str,
    /// One of eight.
    pub occupation: &'static str,
}

/// All users.
#[derive(Debug)]
pub struct Population {
    groups: Vec<u16>,
    /// The number of each user's first slate, and that of all slates.
    first: Vec<u64>,
    /// Share of users per group.
    shares: Vec<f64>,
    /// Age bracket, gender and occupation that are typical of a group.
    typical: Vec<[usize; 3]>,
    traits: Draws,
    rhythm: Draws,
    informative: f64,
    unrest: f64,
    days: u32,
}

impl Population {
    pub(super) fn new(parameters: &Parameters) -> Self {
        let seed = parameters.seed;
        let zipf = |exponent: f64, n: u32| -> Vec<f64> {
            (1..=n).map(|rank| libm::pow(f64::from(rank), -exponent)).collect()
        };
        let mut shares = zipf(parameters.group_exponent, parameters.groups);
        let all: f64 = shares.iter().sum();
        shares.iter_mut().for_each(|share| *share /= all);
        let typical = Draws::new(seed, "typical features");
        let typical = (0..u64::from(parameters.groups)).map(|group| {
            let mut draw = typical.at(group, 0);
            [AGES.len() - 1, GENDERS.len(), OCCUPATIONS.len()].map(|n| draw.below(n as u64) as usize)
        });
        let membership = Draws::new(seed, "groups");
        let running = running(&shares);
        let group = |user: u32| pick(&running, membership.unit(u64::from(user), 0)) as u16;
        Population {
            groups: (0..parameters.users).map(group).collect(),
            first: first_slates(parameters, &zipf(parameters.user_exponent, parameters.users)),
            typical: typical.collect(),
            shares,
            traits: Draws::new(seed, "features"),
            rhythm: Draws::new(seed, "rhythm"),
            informative: parameters.informative,
            unrest: parameters.unrest,
            days: parameters.days,
        }
    }

    /// The group of a user.
    pub(super) fn group(&self, user: u32) -> usize {
        usize::from(self.groups[user as usize])
    }

    /// The slates of a user on a day of the log, by their numbers.
    pub(super) fn slates(&self, user: u32, day: u32) -> std::ops::Range<u64> {
        let first = self.first[user as usize];
        let count = self.first[user as usize + 1] - first;
        first + self.before(user, day, count)..first + self.before(user, day.saturating_add(1), count)
    }

    /// How many of a user's slates come before a day. The ends of days are moved by up to half a day
    /// at random, so days differ and yet none has a place in front of the one before.
    fn before(&self, user: u32, day: u32, count: u64) -> u64 {
        if day == 0 || day >= self.days {
            return if day == 0 { 0 } else { count };
        }
        let moved = self.unrest * (self.rhythm.unit(u64::from(user), u64::from(day)) - 0.5);
        let part = (f64::from(day) + moved) / f64::from(self.days);
        let rounding = self.rhythm.unit(u64::from(user), 0);
        ((count as f64 * part + rounding) as u64).min(count)
    }

    /// What is known of a user.
    pub(super) fn profile(&self, user: u32) -> Profile {
        let mut draw = self.traits.at(u64::from(user), 0);
        let [bracket, gender, occupation] = self.features(user, &mut draw);
        let (from, to) = (AGES[bracket], AGES[bracket + 1]);
        let (gender, occupation) = (GENDERS[gender], OCCUPATIONS[occupation]);
        Profile { age: from + draw.below(to - from), gender, occupation }
    }

    /// The segment of a user.
    pub(super) fn segment(&self, user: u32) -> usize {
        let [bracket, gender, _] = self.features(user, &mut self.traits.at(u64::from(user), 0));
        bracket * GENDERS.len() + gender
    }

    fn features(&self, user: u32, draw: &mut super::draws::Draw) -> [usize; 3] {
        let typical = self.typical[self.group(user)];
        let sizes = [AGES.len() - 1, GENDERS.len(), OCCUPATIONS.len()];
        [0, 1, 2].map(|at| {
            let (told, any) = (draw.unit() < self.informative, draw.below(sizes[at] as u64) as usize);
            if told { typical[at] } else { any }
        })
    }

    /// P(group | segment): what features tell of the group, by Bayes.
    pub(super) fn given_segment(&self, segment: usize) -> Vec<f64> {
        let chance = |typical: usize, is: usize, n: usize| {
            (1.0 - self.informative) / n as f64 + if typical == is { self.informative } else { 0.0 }
        };
        let joint = |(share, typical): (&f64, &[usize; 3])| {
            let bracket = chance(typical[0], segment / GENDERS.len(), AGES.len() - 1);
            share * bracket * chance(typical[1], segment % GENDERS.len(), GENDERS.len())
        };
        let joint: Vec<f64> = self.shares.iter().zip(&self.typical).map(joint).collect();
        let all: f64 = joint.iter().sum();
        // A segment that no group has (informative = 1) has no users either.
        joint.iter().map(|p| if all > 0.0 { p / all } else { 1.0 / joint.len() as f64 }).collect()
    }
}

/// Where each user's slates begin: one slate each, and the rest by rank.
fn first_slates(parameters: &Parameters, weights: &[f64]) -> Vec<u64> {
    let running = running(weights);
    let more = parameters.slates() - u64::from(parameters.users);
    let upto = |rank: usize| if rank == 0 { 0 } else { (more as f64 * running[rank - 1]) as u64 };
    let mut ranks: Vec<u32> = (0..parameters.users).collect();
    Draws::new(parameters.seed, "ranks of users").at(0, 0).shuffle(&mut ranks);
    let mut first = vec![0];
    let mut all = 0;
    for rank in ranks {
        all += 1 + upto(rank as usize + 1) - upto(rank as usize);
        first.push(all);
    }
    first
}

/// Running sums, scaled to end at 1.
pub(super) fn running(weights: &[f64]) -> Vec<f64> {
    let all: f64 = weights.iter().sum();
    let mut sum = 0.0;
    let mut sums: Vec<f64> = weights
        .iter()
        .map(|weight| {
            sum += weight;
            sum / all
        })
        .collect();
    // The same numbers were added in the same order, so it is 1 already, but for an empty list.
    if let Some(last) = sums.last_mut() {
        *last = 1.0;
    }
    sums
}

/// The first place whose running sum is above a number below 1.
pub(super) fn pick(running: &[f64], unit: f64) -> usize {
    running.partition_point(|sum| *sum <= unit).min(running.len() - 1)
}
