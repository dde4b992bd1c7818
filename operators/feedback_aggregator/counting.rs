//! Exposures by the interests a user had just before, counted.
//!
//! Exposures come in order of user and time, so one walk is enough, and all that it keeps of a user is
//! how many clicks lie behind. Interests are asked of the serving fold once per click, not per exposure.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    replay::{Events, Replayed, histories, table},
    row::{Row, Value},
    shape::{Artifact, FoldKernel, KernelError, Snapshot},
};

/// How often something was shown, and clicked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tally {
    pub(super) exposures: u64,
    pub(super) clicks: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: Tally) {
        self.exposures += other.exposures;
        self.clicks += other.clicks;
    }

    pub(super) fn rate(self) -> f64 {
        self.clicks as f64 / self.exposures.max(1) as f64
    }
}

/// Whose interests, and which, something was shown after; everybody's if there is no group.
pub(super) type After = (Option<String>, Vec<String>);

/// Tallies by what was before, and candidate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Feedback(pub(super) BTreeMap<(After, String), Tally>);

impl Artifact for Feedback {
    fn to_bytes(&self) -> Vec<u8> {
        postcard::to_allocvec(self).unwrap_or_default()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, KernelError> {
        postcard::from_bytes(bytes).map_err(|e| format!("feedback: {e}"))
    }
}

/// Places of columns: of item and click in an exposure, of the categories in recent interests.
#[derive(Clone, Copy)]
pub(super) struct Places {
    pub(super) item: usize,
    pub(super) clicked: usize,
    pub(super) recent: usize,
    /// Of the group in users' groups, where counts are apart by group.
    pub(super) group: Option<usize>,
}

/// What exposures are counted with.
pub(super) struct Counting {
    pub(super) at: Places,
    pub(super) recents: Arc<dyn FoldKernel>,
    /// The place in a click of what recent interests look up.
    pub(super) dim: Option<usize>,
}

impl Counting {
    /// Counts, given the exposures, the labels by item, the clicks, users' groups if counts are apart by
    /// group, and what recent interests look up.
    pub(super) fn count(&self, inputs: &[&dyn Snapshot]) -> Feedback {
        let labels = table(inputs[1]);
        let clicks = histories(inputs[2]);
        let groups = self.at.group.map(|place| (table(inputs[3]), place));
        let dims = inputs.get(3 + usize::from(groups.is_some())).map(|dim| table(*dim));
        let recents = Replayed { kernel: &self.recents, dim: dims.as_ref().zip(self.dim) };
        let mut feedback = Feedback::default();
        let mut user = Then::default();
        inputs[0].for_each(&mut |key, event, count| {
            let Value::Bool(clicked) = event[self.at.clicked] else { return };
            if user.key.as_ref() != Some(key) {
                user = Then { key: Some(key.clone()), ..Then::default() };
            }
            let interests = user.interests(clicks.get(key), event, &recents, self.at.recent);
            let group = match &groups {
                None => None,
                Some((groups, place)) => match groups.get(key).and_then(|row| row[*place].as_text()) {
                    Some(group) => Some(group.to_string()),
                    // A user of no group speaks for none.
                    None => return,
                },
            };
            let row = labels.get(&Row::from([event[self.at.item].clone()]));
            let exposures = u64::try_from(count).unwrap_or(0);
            let tally = Tally { exposures, clicks: if clicked { exposures } else { 0 } };
            for label in row.and_then(|row| row[0].as_list()).unwrap_or_default() {
                if let (false, Some(label)) = (interests.is_empty(), label.as_text()) {
                    let after = (group.clone(), interests.to_vec());
                    feedback.0.entry((after, label.to_string())).or_default().add(tally);
                }
            }
        });
        feedback
    }
}

/// A user at the time of an exposure; times only grow.
#[derive(Default)]
struct Then {
    key: Option<Row>,
    /// Clicks before it.
    clicks: usize,
    /// The interests after so many clicks.
    interests: Option<(usize, Vec<String>)>,
}

impl Then {
    /// The user's interests just before an event; none before the first click.
    fn interests(
        &mut self,
        clicks: Option<&Events>,
        event: &Row,
        recents: &Replayed<'_>,
        place: usize,
    ) -> &[String] {
        let (Some(user), Some(clicks)) = (&self.key, clicks) else { return &[] };
        let later = clicks[self.clicks..].iter().take_while(|(click, _)| click[0] < event[0]);
        self.clicks += later.count();
        let known = self.interests.take().filter(|(after, _)| *after == self.clicks);
        let (_, interests) = self.interests.insert(known.unwrap_or_else(|| {
            let rows = recents.rows(user, &clicks[..self.clicks]);
            let names = rows.first().and_then(|row| row[place].as_list()).unwrap_or_default();
            (self.clicks, names.iter().filter_map(|name| Some(name.as_text()?.to_string())).collect())
        }));
        interests
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::{Counts, Event, Walk};
    use crate::testing::Rows;

    /// The categories of the newest click.
    struct Newest;

    impl FoldKernel for Newest {
        fn emit(&self, _: &Row, walk: &mut Walk<'_>, _: &Counts, out: &mut Vec<Row>) {
            walk(&mut |event: &Event<'_>| {
                out.push(event.dim.cloned().unwrap_or_else(Row::empty));
                false
            });
        }
    }

    /// (user, time, item, clicked, count): item n has the categories of its digits. The pairs, in words.
    fn count(shown: &[(u64, i64, u64, Option<bool>, i64)]) -> Vec<(String, u64, u64)> {
        count_by(shown, &[])
    }

    /// The same, apart by the groups of users, if there are some.
    fn count_by(
        shown: &[(u64, i64, u64, Option<bool>, i64)],
        groups: &[(u64, &str)],
    ) -> Vec<(String, u64, u64)> {
        let mut rows: Vec<_> = shown
            .iter()
            .map(|(user, time, item, clicked, count)| {
                let clicked = clicked.map_or(Value::Null, Value::Bool);
                let event = Row::from([Value::I64(*time), Value::U64(*item), clicked]);
                (Row::from([Value::U64(*user)]), event, *count)
            })
            .collect();
        rows.sort();
        let clicks = rows.iter().filter(|(_, event, _)| event[2] == Value::Bool(true)).cloned().collect();
        let categories =
            |item: u64| Value::list(item.to_string().chars().map(|c| Value::text(c.to_string())));
        let items = || {
            let row = |item| (Row::from([Value::U64(item)]), Row::from([categories(item)]), 1);
            Rows([1, 2, 3, 12].map(row).to_vec())
        };
        let counting = Counting {
            at: Places { item: 1, clicked: 2, recent: 0, group: (!groups.is_empty()).then_some(0) },
            recents: Arc::new(Newest),
            dim: Some(1),
        };
        let group = |(user, group): &(u64, &str)| {
            (Row::from([Value::U64(*user)]), Row::from([Value::text(group)]), 1)
        };
        let groups = Rows(groups.iter().map(group).collect());
        let (rows, items, clicks) = (Rows(rows), items(), Rows(clicks));
        let mut inputs: Vec<&dyn Snapshot> = vec![&rows, &items, &clicks];
        inputs.extend((!groups.0.is_empty()).then_some(&groups as &dyn Snapshot));
        inputs.push(&items);
        let feedback = counting.count(&inputs);
        assert_eq!(Feedback::from_bytes(&feedback.to_bytes()).unwrap(), feedback);
        let told = |(((group, recent), candidate), tally): ((After, String), Tally)| {
            let group = group.unwrap_or_default();
            (format!("{group}{}>{candidate}", recent.join("+")), tally.exposures, tally.clicks)
        };
        feedback.0.into_iter().map(told).collect()
    }

    fn pair(pair: &str, exposures: u64, clicks: u64) -> (String, u64, u64) {
        (pair.to_string(), exposures, clicks)
    }

    #[test]
    fn interests_are_those_of_the_clicks_before() {
        let (yes, no) = (Some(true), Some(false));
        // Before the first click there are none; what was not clicked is no history.
        let shown =
            [(1, 1, 3, no, 1), (1, 2, 1, yes, 1), (1, 3, 2, no, 1), (1, 4, 3, yes, 1), (1, 5, 12, no, 2)];
        let found = count(&shown);
        assert_eq!(found, [pair("1>2", 1, 0), pair("1>3", 1, 1), pair("3>1", 2, 0), pair("3>2", 2, 0)]);
        // What comes later changes nothing before.
        assert_eq!(count(&shown[..4]), found[..2]);
    }

    #[test]
    fn a_click_on_a_slate_says_nothing_of_the_rest_of_it() {
        let (yes, no) = (Some(true), Some(false));
        let shown = [(1, 1, 1, yes, 1), (1, 2, 2, yes, 1), (1, 2, 3, no, 1), (1, 3, 3, no, 1)];
        assert_eq!(count(&shown), [pair("1>2", 1, 1), pair("1>3", 1, 0), pair("2>3", 1, 0)]);
    }

    #[test]
    fn groups_are_told_apart_and_who_has_none_counts_for_none() {
        let (yes, no) = (Some(true), Some(false));
        let of = |user| [(user, 1, 1, yes, 1), (user, 2, 2, if user == 2 { yes } else { no }, 1)];
        let shown: Vec<_> = [1, 2, 3, 4].into_iter().flat_map(of).collect();
        let groups = [(1, "a:"), (2, "b:"), (3, "a:")];
        assert_eq!(count_by(&shown, &groups), [pair("a:1>2", 2, 0), pair("b:1>2", 1, 1)]);
    }

    #[test]
    fn users_are_told_apart_and_added_up() {
        let (yes, no) = (Some(true), Some(false));
        let shown = [
            (1, 1, 1, yes, 1),
            (1, 2, 2, no, 1),
            (2, 1, 1, yes, 1),
            (2, 2, 2, yes, 3),
            // The third has not clicked; and nobody knows whether the first clicked this.
            (3, 9, 2, no, 1),
            (1, 3, 2, None, 1),
        ];
        assert_eq!(count(&shown), [pair("1>2", 4, 3)]);
    }
}
