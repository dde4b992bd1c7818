//! Placebos: what a tuned model says where it is told of others.
//!
//! Decision: a model that judges as well when told of another group, or of other recent interests, has
//! learnt nothing from them, whatever its figures. So each example that was kept out is judged once more by
//! what the model says after others that differ from it in this one respect. They were asked already, so a
//! placebo costs no call, and with several others for each it leaves little to the luck of a shuffle.

use std::collections::BTreeMap;

use super::baselines::Click;

/// In what respect others differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// The same group, with other recent interests.
    Recents,
    /// Another group, with the same recent interests.
    Groups,
}

impl Swapped {
    /// All, with the names of their figures.
    pub const ALL: [(Swapped, &'static str); 2] =
        [(Swapped::Recents, "other_recents"), (Swapped::Groups, "other_groups")];
}

/// Others of an example, at most.
const OTHERS: usize = 8;

/// Of each example the places of some others; its own where there is none.
pub fn others(examples: &[Click<'_>], swapped: Swapped) -> Vec<Vec<usize>> {
    let mut alike: BTreeMap<(&str, &[String]), Vec<usize>> = BTreeMap::new();
    for (at, Click { group, recent, .. }) in examples.iter().enumerate() {
        let shared: (&str, &[String]) = match swapped {
            Swapped::Recents => (group, &[]),
            Swapped::Groups => ("", recent),
        };
        alike.entry(shared).or_default().push(at);
    }
    let mut others = vec![Vec::new(); examples.len()];
    for alike in alike.values() {
        for (place, at) in alike.iter().enumerate() {
            let after = (1..alike.len().min(OTHERS + 1)).map(|step| alike[(place + step) % alike.len()]);
            others[*at] = after.collect();
            if others[*at].is_empty() {
                others[*at].push(*at);
            }
        }
    }
    others
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_differ_in_one_respect() {
        let recents: Vec<Vec<String>> = ["War", "Drama", "Noir"].map(|name| vec![name.to_string()]).to_vec();
        let pairs = [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("c", 1)];
        let click = |(group, at): &(&'static str, usize)| Click {
            group,
            recent: &recents[*at],
            allowed: &[],
            clicked: &[],
        };
        let contexts: Vec<Click<'_>> = pairs.iter().map(click).collect();
        assert_eq!(
            others(&contexts, Swapped::Recents),
            [vec![1, 2], vec![2, 0], vec![0, 1], vec![3], vec![4]]
        );
        assert_eq!(others(&contexts, Swapped::Groups), [vec![3], vec![4], vec![2], vec![0], vec![1]]);
        let many: Vec<Click<'_>> = (0..30).map(|_| contexts[0].clone()).collect();
        assert!(others(&many, Swapped::Groups).iter().all(|others| others.len() == OTHERS));
        assert!(others(&[], Swapped::Groups).is_empty());
    }
}
