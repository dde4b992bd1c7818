//! What a world is made of: its sizes, its seed and the strengths of everything that moves in it.
//!
//! `world.json` is these parameters and nothing else. The truth is a function of them, so whoever has
//! the file has the world, and nothing derived can disagree with what it was derived from.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::WorldError;
use crate::nearest::did_you_mean;

/// Says which model of a world `world.json` was written for; it changes when the same parameters
/// come to mean another world.
const SCHEMA: &str = "coea.world/1";
/// Seconds of a day.
pub const DAY: i64 = 86_400;

/// The parameters of a world.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// Which of all worlds with these parameters.
    pub seed: u64,
    /// Users, numbered from 1.
    pub users: u32,
    /// Items, numbered from 1.
    pub items: u32,
    /// Categories of items.
    pub categories: u32,
    /// Groups of users, planted; no file tells who is in which.
    pub groups: u32,
    /// Items shown to users: the rows of `events`, clicked or not.
    pub interactions: u64,
    /// Days of the log.
    pub days: u32,
    /// Items shown together.
    pub slate: u32,
    /// Slates of one session.
    pub session: u32,
    /// When the first day begins, in seconds since 1970.
    pub start: i64,
    /// Activity of the r-th most active user is ∝ r^-this, above one slate each.
    pub user_exponent: f64,
    /// Popularity of the r-th item of a category is ∝ r^-this.
    pub item_exponent: f64,
    /// Size of the r-th group is ∝ r^-this.
    pub group_exponent: f64,
    /// How unequal a user's days are: 0 for equal ones, at most 1.
    pub unrest: f64,
    /// Chance that a feature of a user is the one typical of the group; else it is any.
    pub informative: f64,
    /// The logit of a click where nothing speaks for or against it.
    pub base: f64,
    /// Deviation of a group's preferences over categories.
    pub taste: f64,
    /// Share of their variance that categories of a department have in common.
    pub kinship: f64,
    /// Deviation of a user's own preferences about the group's.
    pub deviation: f64,
    /// Deviation of a user's preference for a category over time.
    pub drift: f64,
    /// Days in which it comes back, at least; at most twice as many.
    pub drift_days: f64,
    /// What is added for a category while it is hot.
    pub burst: f64,
    /// Days that a burst lasts.
    pub burst_days: u32,
    /// Each category has one burst in so many days.
    pub burst_every: u32,
    /// Deviation of items' quality.
    pub quality: f64,
    /// What is taken off per ln(1 + times the category was shown to the user that day before).
    pub fatigue: f64,
    /// Share of the logging policy that is uniform over categories.
    pub exploration: f64,
    /// How strongly the rest of it prefers what users of the same features like on average.
    pub greed: f64,
}

/// The known shapes of worlds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// A thousand users and a month: seconds.
    #[default]
    Small,
    /// Users, items and categories of MovieLens-100k, and about as many clicks as it has ratings.
    Movielens,
    /// The size of MTRec in the CoEA paper: 330,722,395 interactions.
    Mtrec,
}

impl Shape {
    /// Its parameters.
    pub fn parameters(self) -> Parameters {
        let small = Parameters::default();
        match self {
            Shape::Small => small,
            Shape::Movielens => Parameters {
                users: 943,
                items: 1_682,
                categories: 18,
                groups: 12,
                interactions: 570_000,
                days: 214,
                ..small
            },
            Shape::Mtrec => Parameters {
                users: 1_450_381,
                items: 27_953,
                categories: 594,
                groups: 50,
                interactions: 330_722_395,
                slate: 5,
                ..small
            },
        }
    }
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters {
            seed: 0,
            users: 1_000,
            items: 600,
            categories: 40,
            groups: 8,
            interactions: 200_000,
            days: 30,
            slate: 10,
            session: 5,
            start: 1_704_067_200,
            user_exponent: 0.75,
            item_exponent: 1.0,
            group_exponent: 0.5,
            unrest: 0.8,
            informative: 0.5,
            base: -2.2,
            taste: 1.2,
            kinship: 0.5,
            deviation: 0.6,
            drift: 0.5,
            drift_days: 60.0,
            burst: 1.0,
            burst_days: 4,
            burst_every: 40,
            quality: 0.4,
            fatigue: 0.3,
            exploration: 0.3,
            greed: 2.0,
        }
    }
}

impl Parameters {
    /// Slates of the whole log.
    pub fn slates(&self) -> u64 {
        self.interactions / u64::from(self.slate)
    }

    /// When a day begins, in seconds since 1970.
    pub fn midnight(&self, day: u32) -> i64 {
        self.start + i64::from(day) * DAY
    }

    /// Sets one of them by name.
    ///
    /// # Errors
    /// If there is no such parameter, or the text is no value of its type.
    pub fn set(&mut self, name: &str, text: &str) -> Result<(), String> {
        let mut all = serde_json::to_value(&*self).map_err(|error| error.to_string())?;
        let Some(fields) = all.as_object_mut() else {
            unreachable!("a struct with named fields is an object")
        };
        if !fields.contains_key(name) {
            let near = did_you_mean(name, fields.keys().map(String::as_str));
            return Err(format!("a world has no parameter `{name}`{near}"));
        }
        let value =
            serde_json::from_str(text).map_err(|_| format!("`{name}` is `{text}`, but must be a number"))?;
        fields.insert(name.to_string(), value);
        *self =
            serde_json::from_value(all).map_err(|error| format!("`{name}` cannot be `{text}`: {error}"))?;
        Ok(())
    }

    /// Writes them as `world.json`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), WorldError> {
        let document = Document { schema: SCHEMA.to_string(), parameters: self.clone() };
        let text =
            serde_json::to_string_pretty(&document).map_err(|error| WorldError::encoding(path, error))?;
        std::fs::write(path, text + "\n").map_err(WorldError::io(path))
    }

    /// Reads them back.
    ///
    /// # Errors
    /// If the file is none of this kind, or what it says is no world.
    pub fn read(path: &Path) -> Result<Self, WorldError> {
        let unfit = |message: String| WorldError::Unfit { path: path.to_path_buf(), message };
        let text = std::fs::read_to_string(path).map_err(|error| unfit(error.to_string()))?;
        let document: Document = serde_json::from_str(&text).map_err(|error| unfit(error.to_string()))?;
        if document.schema != SCHEMA {
            return Err(unfit(format!("its schema is {}, and this program knows {SCHEMA}", document.schema)));
        }
        Ok(document.parameters)
    }
}

/// `world.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    schema: String,
    parameters: Parameters,
}
