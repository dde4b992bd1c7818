//! A planted world: users, items and a log of what was shown and clicked, whose truth is known.
//!
//! Real logs cannot show that a recommendation loop works, because nobody knows what would have been
//! clicked had something else been shown. Here it is known: a click is drawn with
//!
//! ```text
//! P(click | u, i, d, n) = σ(b + mean of θ(u, c, d) over the categories c of item i + q(i) − φ·ln(1 + n))
//! ```
//!
//! where θ is what user u likes on day d (`preferences.rs`: the planted group's taste, the user's own
//! deviation, a slow drift, bursts), q the item's quality, and n how often the category was shown to
//! the user that day before: what is new that day has its full charm. What is shown is drawn by a
//! logging policy whose propensities are exact (`policy.rs`); who is active when, and what features
//! hint at the group, says `population.rs`.
//!
//! The decision behind all of it: every quantity is a closed form in seed and address (a user, a
//! category, a day), and no state is carried from one event to the next but within a user's day. So
//! [`Truth`] needs no file, a log of any length needs constant memory, a day is a file that can be
//! made by itself, and the bytes depend on the parameters alone. The price: interests do not change by
//! what is clicked, and an evening's fatigue is forgotten in the morning.

mod catalogue;
mod check;
mod draws;
mod events;
mod judge;
mod names;
mod parameters;
mod policy;
mod population;
mod preferences;
#[cfg(test)]
mod tests;
mod truth;
mod writer;

use std::{
    fmt::Display,
    io,
    path::{Path, PathBuf},
};

pub use check::Misfit;
pub use events::{Exposure, Today};
pub use judge::{Answer, Judgement, SERVED_AT};
pub use parameters::{Parameters, Shape};
pub use population::Profile;
pub use truth::{Category, Item, Truth, User};
pub use writer::{Written, generate};

/// Why a world could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// Parameters that describe none.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\nerror: "))]
    Misfits(Vec<Misfit>),
    /// There is something where it should be written.
    #[error("{} is not empty, and a world overwrites nothing; remove it, or name another folder", .0.display())]
    Occupied(PathBuf),
    /// A file that describes no world.
    #[error("{} describes no world: {message}", .path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A table that could not be written.
    #[error("{}: {message}", .path.display())]
    Encoding {
        /// The file.
        path: PathBuf,
        /// What was said.
        message: String,
    },
    /// A file or folder.
    #[error("{}: {source}", .path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl WorldError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| WorldError::Io { path: path.to_path_buf(), source }
    }

    fn encoding(path: &Path, message: impl Display) -> Self {
        WorldError::Encoding { path: path.to_path_buf(), message: message.to_string() }
    }
}
