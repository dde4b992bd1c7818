//! What is true of a world: who would click on what.
//!
//! It is computed from the parameters alone, by the very code that writes the log, so a logged click
//! and an answer given here never disagree. Two questions can be asked. *Would this user click this
//! item now* is answered as the log answers it. *Would this user click this category today* is for a
//! recommender of categories: it means an item of that category only, of average quality, shown for
//! the first time that day. Its random number belongs to user, category and day: a policy that
//! recommends the same gets the same answers, so two policies differ by what they recommend and not by luck.

use std::path::Path;

use super::{
    WorldError,
    catalogue::Catalogue,
    draws::Draws,
    parameters::{DAY, Parameters},
    policy::Policy,
    population::{Population, Profile},
    preferences::Preferences,
};

/// A user that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct User(pub(super) u32);

impl User {
    /// Its number in the files.
    pub fn id(self) -> u64 {
        u64::from(self.0) + 1
    }
}

/// An item that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Item(pub(super) u32);

impl Item {
    /// Its number in the files.
    pub fn id(self) -> u64 {
        u64::from(self.0) + 1
    }
}

/// A category that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Category(pub(super) u16);

impl Category {
    /// Its place among the categories, from 0.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A world whose parameters are known.
#[derive(Debug)]
pub struct Truth {
    pub(super) parameters: Parameters,
    pub(super) population: Population,
    pub(super) catalogue: Catalogue,
    pub(super) preferences: Preferences,
    pub(super) policy: Policy,
    item_clicks: Draws,
    category_clicks: Draws,
    pub(super) served: Draws,
}

impl Truth {
    /// The world of these parameters.
    ///
    /// # Errors
    /// Everything that keeps them from being one.
    pub fn new(parameters: Parameters) -> Result<Self, WorldError> {
        let misfits = parameters.misfits();
        if !misfits.is_empty() {
            return Err(WorldError::Misfits(misfits));
        }
        let population = Population::new(&parameters);
        let preferences = Preferences::new(&parameters);
        Ok(Truth {
            policy: Policy::new(&parameters, &population, &preferences),
            catalogue: Catalogue::new(&parameters),
            item_clicks: Draws::new(parameters.seed, "clicks on items"),
            category_clicks: Draws::new(parameters.seed, "clicks on categories"),
            served: Draws::new(parameters.seed, "items served"),
            population,
            preferences,
            parameters,
        })
    }

    /// The world that a `world.json` describes.
    ///
    /// # Errors
    /// If the file cannot be read or describes none.
    pub fn restore(path: &Path) -> Result<Self, WorldError> {
        Truth::new(Parameters::read(path)?)
    }

    /// Its parameters.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The user with a number of the files.
    pub fn user(&self, id: u64) -> Option<User> {
        let index = u32::try_from(id.checked_sub(1)?).ok()?;
        (index < self.parameters.users).then_some(User(index))
    }

    /// All users, in the order of their numbers.
    pub fn users(&self) -> impl Iterator<Item = User> + use<> {
        (0..self.parameters.users).map(User)
    }

    /// The item with a number of the files.
    pub fn item(&self, id: u64) -> Option<Item> {
        let index = u32::try_from(id.checked_sub(1)?).ok()?;
        (index < self.catalogue.len()).then_some(Item(index))
    }

    /// The category of a name.
    pub fn category(&self, name: &str) -> Option<Category> {
        self.catalogue.names().iter().position(|known| known == name).map(|at| Category(at as u16))
    }

    /// All categories.
    pub fn categories(&self) -> impl Iterator<Item = Category> + use<> {
        (0..self.parameters.categories as u16).map(Category)
    }

    /// The name of a category.
    pub fn name(&self, category: Category) -> &str {
        &self.catalogue.names()[category.index()]
    }

    /// The categories of an item, the one it is shown for first.
    pub fn categories_of(&self, item: Item) -> impl Iterator<Item = Category> {
        self.catalogue.categories(item.0).iter().map(|category| Category(*category))
    }

    /// The planted group of a user, from 0.
    pub fn group(&self, user: User) -> usize {
        self.population.group(user.0)
    }

    /// What the files tell of a user.
    pub fn profile(&self, user: User) -> Profile {
        self.population.profile(user.0)
    }

    /// What a group likes: τ, category by category.
    pub fn taste(&self, group: usize) -> Option<&[f64]> {
        (group < self.parameters.groups as usize).then(|| self.preferences.of_group(group))
    }

    /// The day of the world that a time belongs to, the first being 0.
    pub fn day(&self, timestamp: i64) -> Option<u32> {
        u32::try_from(timestamp.checked_sub(self.parameters.start)?.div_euclid(DAY)).ok()
    }

    /// θ(u, c, d).
    pub(super) fn liking(&self, user: u32, category: usize, day: u32) -> f64 {
        self.preferences.of_user(user, self.population.group(user), category, u64::from(day))
    }

    /// The chance of a click on an item whose categories the user likes so much on average.
    pub(super) fn chance(&self, liking: f64, item: u32, shown: u32) -> f64 {
        let tired = self.parameters.fatigue * libm::log(1.0 + f64::from(shown));
        sigmoid(self.parameters.base + liking + self.catalogue.quality(item) - tired)
    }

    /// The chance that a user clicks an item on a day on which the category it is shown for was
    /// already shown to the user so many times.
    pub fn item_probability(&self, user: User, item: Item, day: u32, shown: u32) -> f64 {
        let categories = self.catalogue.categories(item.0);
        let liking = categories.iter().map(|c| self.liking(user.0, usize::from(*c), day)).sum::<f64>();
        self.chance(liking / categories.len() as f64, item.0, shown)
    }

    /// Whether that user clicks that item at a time of the world, as in the log; a time before the world
    /// counts as its first day.
    pub fn would_click_item(&self, user: User, item: Item, timestamp: i64, shown: u32) -> bool {
        let day = self.day(timestamp).unwrap_or(0);
        self.clicks(user.0, item.0, timestamp, self.item_probability(user, item, day, shown))
    }

    /// The common random number of user, item and second decides.
    pub(super) fn clicks(&self, user: u32, item: u32, timestamp: i64, chance: f64) -> bool {
        let second = (timestamp - self.parameters.start) as u64;
        self.item_clicks.unit(u64::from(user), second << 32 | u64::from(item)) < chance
    }

    /// The chance that a user clicks a category on a day.
    pub fn probability(&self, user: User, category: Category, day: u32) -> f64 {
        sigmoid(self.parameters.base + self.liking(user.0, category.index(), day))
    }

    /// Whether that user clicks that category on that day.
    pub fn would_click(&self, user: User, category: Category, day: u32) -> bool {
        let number =
            self.category_clicks.unit(u64::from(user.0), u64::from(day) << 32 | u64::from(category.0));
        number < self.probability(user, category, day)
    }

    /// The chance that the logging policy shows a category to a user on a slate.
    pub fn propensity(&self, user: User, category: Category) -> f64 {
        self.policy.inclusion(self.population.segment(user.0))[category.index()]
    }
}

/// The block of a category on a day.
pub(super) fn asked(category: Category, day: u32) -> u64 {
    u64::from(day) << 32 | u64::from(category.0)
}

fn sigmoid(logit: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-logit))
}
