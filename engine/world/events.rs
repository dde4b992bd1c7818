//! The log of one day: who was shown what when, and what was clicked.
//!
//! A day is made by itself, user by user in the order of their numbers, and handed over row by row, so
//! a log of any length needs the memory of one user's day: a number per category. Rows are in order of
//! time within a user, which is all that a history needs.

use super::{
    draws::{Draw, Draws},
    policy::{Line, ORDERS},
    population::SEGMENTS,
    truth::{Item, Truth, User},
};

/// Nobody is up before seven or after eleven in the evening.
const WAKING: i64 = 7 * 3600;
const AWAKE: u64 = 16 * 3600;
/// Most seconds from one slate of a session to the next.
const PAUSE: u64 = 120;

/// An item was shown to a user.
#[derive(Clone, Debug, PartialEq)]
pub struct Exposure {
    /// To whom.
    pub user: User,
    /// What.
    pub item: Item,
    /// When, in seconds since 1970.
    pub timestamp: i64,
    /// With what else: rows of one slate share its number.
    pub slate: u64,
    /// The probability that it would be on a slate of that user.
    pub propensity: f64,
    /// What came of it.
    pub clicked: bool,
}

/// A day in the making.
pub struct Today<'a> {
    truth: &'a Truth,
    day: u32,
    /// For each segment all its orders.
    lines: Vec<Line<'a>>,
    sessions: Draws,
    slates: Draws,
    /// What the user of the moment likes today and was shown of it, where that was asked already.
    seen: Vec<Seen>,
    touched: Vec<usize>,
}

/// A category in the day of a user.
#[derive(Clone, Copy, Default)]
struct Seen {
    liking: Option<f64>,
    shown: u32,
}

impl<'a> Today<'a> {
    /// A day of the log.
    pub fn new(truth: &'a Truth, day: u32) -> Self {
        let parameters = truth.parameters();
        let line = |at: usize| truth.policy.line(at / ORDERS, day, at % ORDERS);
        Today {
            truth,
            day,
            lines: (0..SEGMENTS * ORDERS).map(line).collect(),
            sessions: Draws::new(parameters.seed, "sessions"),
            slates: Draws::new(parameters.seed, "slates"),
            seen: vec![Seen::default(); parameters.categories as usize],
            touched: Vec::new(),
        }
    }

    /// Hands over everything that a user was shown.
    ///
    /// # Errors
    /// What the receiver says.
    pub fn of_user<E>(
        &mut self,
        user: User,
        each: &mut impl FnMut(Exposure) -> Result<(), E>,
    ) -> Result<(), E> {
        let slates = self.truth.population.slates(user.0, self.day);
        if slates.is_empty() {
            return Ok(());
        }
        for category in self.touched.drain(..) {
            self.seen[category] = Seen::default();
        }
        let segment = self.truth.population.segment(user.0);
        let mut times = self.times(user, slates.end - slates.start);
        for slate in slates {
            let timestamp = times.next_slate();
            self.slate(user, segment, timestamp, slate, each)?;
        }
        Ok(())
    }

    fn slate<E>(
        &mut self,
        user: User,
        segment: usize,
        timestamp: i64,
        slate: u64,
        each: &mut impl FnMut(Exposure) -> Result<(), E>,
    ) -> Result<(), E> {
        // Ten thousand categories on a slate at most: its numbers fit into 2048 blocks.
        let mut draw = self.slates.at(u64::from(self.day), slate << 11);
        let truth = self.truth;
        let line = &self.lines[segment * ORDERS + draw.below(ORDERS as u64) as usize];
        let first = draw.unit();
        let mut shown = Vec::with_capacity(truth.parameters().slate as usize);
        shown.extend(line.sample(first, truth.parameters().slate));
        for (category, included) in shown {
            let (item, share) = truth.catalogue.draw(category, draw.unit());
            let chance = self.chance(user, item, category);
            each(Exposure {
                user,
                item: Item(item),
                timestamp,
                slate,
                propensity: included * share,
                clicked: truth.clicks(user.0, item, timestamp, chance),
            })?;
        }
        Ok(())
    }

    /// The chance of a click on an item that is shown for a category, which counts as shown then.
    fn chance(&mut self, user: User, item: u32, category: usize) -> f64 {
        let categories = self.truth.catalogue.categories(item);
        let liking = categories.iter().map(|c| self.liking(user, usize::from(*c))).sum::<f64>();
        let shown = &mut self.seen[category].shown;
        *shown += 1;
        self.truth.chance(liking / categories.len() as f64, item, *shown - 1)
    }

    fn liking(&mut self, user: User, category: usize) -> f64 {
        let (truth, day, touched) = (self.truth, self.day, &mut self.touched);
        *self.seen[category].liking.get_or_insert_with(|| {
            touched.push(category);
            truth.liking(user.0, category, day)
        })
    }

    fn times(&self, user: User, slates: u64) -> Times {
        let parameters = self.truth.parameters();
        // As many numbers as a day may need lie between this place and the next.
        let draw = self.sessions.at(u64::from(user.0), u64::from(self.day) << 32);
        let session = u64::from(parameters.session);
        Times {
            draw,
            midnight: parameters.midnight(self.day),
            session,
            left: slates,
            number: 0,
            sessions: slates.div_ceil(session),
            of_session: 0,
            next: 0,
            gap: 1,
        }
    }
}

/// The times of a user's slates on a day: sessions spread over it, slates close to each other in them.
struct Times {
    draw: Draw,
    midnight: i64,
    /// Slates of a full session.
    session: u64,
    /// Slates to come today.
    left: u64,
    /// Sessions that began, of how many.
    number: u64,
    sessions: u64,
    /// Slates to come in this session.
    of_session: u64,
    /// Earliest second since waking for the next slate, and the room it has.
    next: u64,
    gap: u64,
}

impl Times {
    /// The next time; each is later than the one before.
    fn next_slate(&mut self) -> i64 {
        if self.of_session == 0 {
            self.begin_session();
        }
        let second = self.next + self.draw.below(self.gap);
        self.next += self.gap;
        self.of_session -= 1;
        self.left -= 1;
        self.midnight + WAKING + second as i64
    }

    /// A session lies anywhere in its part of the day; parts are equally long and have a second for
    /// each slate, which is what bounds the slates of a day.
    fn begin_session(&mut self) {
        let part = |number: u64| AWAKE * number / self.sessions;
        let (from, to) = (part(self.number), part(self.number + 1));
        self.number += 1;
        self.of_session = self.left.min(self.session);
        self.gap = ((to - from) / self.of_session).clamp(1, PAUSE);
        let room = (to - from).saturating_sub(self.gap * self.of_session);
        self.next = from + self.draw.below(room + 1);
    }
}
