//! How many of each user's newest events a relation has not seen.
//!
//! Decision: told by notes, from the click_filter that leaves them to the short term down to the prompts.
//! Who is taught to predict events from groups and profiles that have seen them is taught to look them
//! up, does well on users kept out, and badly in service; no number betrays it. So it is refused.

use crate::{
    operator::{Inputs, Problem},
    schema::Schema,
};

/// What the note of a source is called.
fn note(events: &str) -> String {
    format!("{PREFIX}{events}")
}

const PREFIX: &str = "held_back.";

impl Schema {
    /// The same schema, of a relation that has not seen so many of each user's newest events of a source.
    pub(crate) fn holding_back(self, events: &str, newest: u64) -> Self {
        self.with_note(&note(events), newest.to_string())
    }

    /// The same schema, of a relation made of inputs: it has seen what any of them has.
    pub(crate) fn made_of(self, inputs: &Inputs<'_>) -> Self {
        let notes = inputs.inputs.iter().flat_map(|input| &input.schema.notes);
        notes.filter(|(name, _)| name.starts_with(PREFIX)).fold(self, |schema, (name, newest)| {
            let least = [Some(newest), schema.notes.get(name)].into_iter().flatten();
            let least = least.filter_map(|newest| newest.parse::<u64>().ok()).min().unwrap_or(0);
            schema.with_note(name, least.to_string())
        })
    }

    /// That the newest `last` events of each user of a source can be predicted from the relation: nothing it
    /// was made of has seen them, as far as it tells.
    pub(crate) fn unseen(&self, name: &str, events: &str, last: u64) -> Result<(), Problem> {
        match self.notes.get(&note(events)).and_then(|newest| newest.parse::<u64>().ok()) {
            Some(newest) if newest < last => {
                let message = format!(
                    "the groups and profiles of `{name}` have seen all but the newest {newest} of each user's events, and {last} are to be predicted from them"
                );
                let help = match newest {
                    0 => format!("write `exclude_last: {last}` in the click_filter"),
                    newest => format!("at most {newest}, or `exclude_last: {last}` in the click_filter"),
                };
                Err(Problem::with("last", message).help(help))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(newest: u64) -> Schema {
        Schema::new([], []).holding_back("clicks", newest)
    }

    #[test]
    fn what_was_seen_cannot_be_predicted() {
        assert!(of(3).unseen("prompt", "clicks", 3).is_ok());
        assert!(of(3).unseen("prompt", "clicks", 4).is_err());
        let help = |newest, last| of(newest).unseen("prompt", "clicks", last).unwrap_err().help.unwrap();
        assert_eq!(help(3, 4), "at most 3, or `exclude_last: 4` in the click_filter");
        assert_eq!(help(0, 1), "write `exclude_last: 1` in the click_filter");
        // Of other events, or without a word, nothing is known.
        assert!(of(3).unseen("prompt", "views", 4).is_ok());
        assert!(Schema::new([], []).unseen("prompt", "clicks", 4).is_ok());
    }
}
