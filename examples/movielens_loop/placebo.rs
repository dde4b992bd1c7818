//! Placebos: what a list is worth that was made for others.
//!
//! If users click what others are served as often as what they are served themselves, then what makes keys
//! differ is worth nothing, however good the lists are.

use std::collections::{BTreeMap, BTreeSet};

use coea_operators::tuning::placebo::Swapped;

/// Labels and scores by key (`group:hash`), best first.
pub type Lists = BTreeMap<String, Vec<(String, f64)>>;

/// Whether a key is another one in this respect alone.
fn differs(swapped: Swapped, key: &str, other: &str) -> bool {
    let Some((own, other)) = key.rsplit_once(':').zip(other.rsplit_once(':')) else { return false };
    match swapped {
        Swapped::Groups => own.0 != other.0 && own.1 == other.1,
        Swapped::Recents => own.0 == other.0 && own.1 != other.1,
    }
}

/// A user who clicks something new.
pub struct Clicker<'a> {
    /// The key that answers.
    pub key: &'a str,
    /// The labels known before.
    pub met: BTreeSet<&'a str>,
    /// The new ones.
    pub new: &'a BTreeSet<String>,
}

impl Clicker<'_> {
    /// The share of others whose list, cut to so many labels that are new, holds one of those that are clicked;
    /// the own list where there are no others.
    pub fn hit(&self, lists: &Lists, serve: usize, swapped: Swapped) -> f64 {
        let others = lists.iter().filter(|(other, _)| differs(swapped, self.key, other));
        let hits: Vec<bool> = others.map(|(_, list)| self.hits(list, serve)).collect();
        if hits.is_empty() {
            return f64::from(lists.get(self.key).is_some_and(|list| self.hits(list, serve)));
        }
        hits.iter().filter(|hit| **hit).count() as f64 / hits.len() as f64
    }

    fn hits(&self, list: &[(String, f64)], serve: usize) -> bool {
        let open = list.iter().filter(|(label, _)| !self.met.contains(label.as_str()));
        open.take(serve).any(|(label, _)| self.new.contains(label))
    }
}
