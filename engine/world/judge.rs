//! What comes of recommending categories, and what could have come of it at best.
//!
//! Regret is taken on expectations, not on clicks that happened: it is what the choice cost, without the
//! luck of the day. A recommender that may not repeat what a user knows is held against the best that may
//! be recommended, not against the best there is.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use super::truth::{Category, Item, Truth, User, asked};

/// When recommendations of a day are answered, in seconds of the day: when the log's users sleep, so
/// no answer is in front of what was logged that day.
pub const SERVED_AT: i64 = 23 * 3600 + 1800;

/// What came of recommending a category.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The category.
    pub category: Category,
    /// The chance of a click.
    pub probability: f64,
    /// Whether it was clicked.
    pub clicked: bool,
    /// The item that stood for it, drawn by popularity.
    pub item: Item,
    /// The chance that it would be this item.
    pub share: f64,
}

/// What came of a recommendation.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// For each category, in the order of the recommendation.
    pub answers: Vec<Answer>,
    /// Clicks to be expected: the sum of the chances.
    pub expected: f64,
    /// Clicks to be expected of as many categories at best.
    pub best: f64,
}

impl Judgement {
    /// Expected clicks that the choice cost.
    pub fn regret(&self) -> f64 {
        self.best - self.expected
    }
}

impl Truth {
    /// The best categories for a user on a day among those that may be recommended, with the chance
    /// of a click on each, best first.
    pub fn best(
        &self,
        user: User,
        day: u32,
        count: usize,
        may: impl Fn(Category) -> bool,
    ) -> Vec<(Category, f64)> {
        let all = self.categories().filter(|category| may(*category));
        let mut all: Vec<(Category, f64)> = all.map(|c| (c, self.probability(user, c, day))).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        all.truncate(count);
        all
    }

    /// Recommends categories to a user on a day; one that is named twice counts once.
    pub fn judge(
        &self,
        user: User,
        day: u32,
        recommended: &[Category],
        may: impl Fn(Category) -> bool,
    ) -> Judgement {
        let mut answers: Vec<Answer> = Vec::with_capacity(recommended.len());
        for category in recommended {
            if !answers.iter().any(|answer| answer.category == *category) {
                answers.push(self.answer(user, day, *category));
            }
        }
        let best = self.best(user, day, answers.len(), may);
        Judgement {
            expected: answers.iter().map(|answer| answer.probability).sum(),
            best: best.iter().map(|(_, chance)| chance).sum(),
            answers,
        }
    }

    /// Writes answers to users on some days as a CSV delta of the world's events, which must not be there
    /// yet; slates go on where the log's end.
    ///
    /// # Errors
    /// If the file is there, or cannot be written.
    pub fn write_answers(&self, path: &Path, judged: &[(u32, (User, Judgement))]) -> std::io::Result<()> {
        let mut out = BufWriter::new(File::create_new(path)?);
        writeln!(out, "user_id,item_id,timestamp,slate,propensity,clicked")?;
        for (slate, (day, (user, judgement))) in (self.parameters().slates()..).zip(judged) {
            let timestamp = self.parameters().midnight(*day) + SERVED_AT;
            for answer in &judgement.answers {
                let (item, share, clicked) = (answer.item.id(), answer.share, answer.clicked);
                writeln!(out, "{},{item},{timestamp},{slate},{share},{clicked}", user.id())?;
            }
        }
        out.flush()
    }

    fn answer(&self, user: User, day: u32, category: Category) -> Answer {
        let unit = self.served.unit(u64::from(user.0), asked(category, day));
        let (item, share) = self.catalogue.draw(category.index(), unit);
        Answer {
            category,
            probability: self.probability(user, category, day),
            clicked: self.would_click(user, category, day),
            item: Item(item),
            share,
        }
    }
}
