//! A fitted codebook: the quantiser, the names of its groups, and what tells how it does.

use serde::{Deserialize, Serialize};

use crate::{
    nn::RqVae,
    ordered::encode_row,
    regroup::Shared,
    row::{Row, Value},
    shape::{Artifact, Figures, KernelError, Snapshot},
};

/// A group's name; the first thousand sort as numbers do.
pub fn group_name(group: u32) -> String {
    format!("g{group:03}")
}

/// The number in a group's name.
fn group_number(name: &str) -> Option<u32> {
    name.strip_prefix('g')?.parse().ok()
}

/// A quantiser in use.
#[derive(Clone, Debug)]
pub(super) struct Codebook {
    quantiser: RqVae,
    about: About,
}

/// What stands beside the quantiser.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct About {
    /// The name of each of its groups.
    names: Vec<u32>,
    /// The first number that was never a name.
    next: u32,
    figures: Figures,
    /// The error at the fit.
    error: f64,
    /// Sorted prints of the users it was fitted on.
    users: Vec<u32>,
}

/// Four bytes of a hash: of a million users unknown to a codebook of a million, 233 pass for known.
fn print(user: &Row) -> u32 {
    let hash = blake3::hash(&encode_row(user));
    u32::from_le_bytes([hash.as_bytes()[0], hash.as_bytes()[1], hash.as_bytes()[2], hash.as_bytes()[3]])
}

/// A mean under way.
#[derive(Clone, Copy, Default)]
struct Mean {
    sum: f64,
    count: u64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    /// Nothing if there was nothing.
    fn value(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// How a quantiser does on some vectors. Errors are mean squared errors in units of the mean variance at
/// the fit.
struct Survey {
    all: Mean,
    /// Of users that an earlier fit knew, and of others.
    known: Mean,
    new: Mean,
    /// Uses of each code, by level.
    uses: Vec<Vec<u64>>,
}

impl Survey {
    fn new(quantiser: &RqVae) -> Self {
        let config = quantiser.config();
        let uses = vec![vec![0; config.codebook]; config.levels];
        Survey { all: Mean::default(), known: Mean::default(), new: Mean::default(), uses }
    }

    /// Takes in a user's vector; gives the number of its group.
    fn take(&mut self, quantiser: &RqVae, known: bool, vector: &[f32]) -> Result<u32, KernelError> {
        let codes = quantiser.quantise(vector).map_err(|e| e.to_string())?;
        let error = quantiser.error(vector, &codes);
        self.all.add(error);
        if known {
            self.known.add(error)
        } else {
            self.new.add(error)
        }
        self.uses.iter_mut().zip(&codes.csid).for_each(|(uses, code)| uses[usize::from(*code)] += 1);
        quantiser.group(&codes.csid).map_err(|e| e.to_string())
    }

    /// Of each level e^entropy of its codes, which is how many are in use if all are used alike; and how
    /// many are not used at all.
    fn figures(&self) -> Figures {
        let mut figures: Figures = Vec::new();
        let mut add = |name: String, value: Option<f64>| figures.extend(value.map(|value| (name, value)));
        add("error".to_string(), self.all.value());
        add("error_known".to_string(), self.known.value());
        add("error_new".to_string(), self.new.value());
        for (level, uses) in (1..).zip(&self.uses) {
            add(format!("perplexity_{level}"), Some(perplexity(uses)));
        }
        let dead = self.uses.iter().flatten().filter(|uses| **uses == 0).count();
        add("dead_codes".to_string(), Some(dead as f64));
        figures
    }
}

fn perplexity(uses: &[u64]) -> f64 {
    let all = uses.iter().sum::<u64>().max(1) as f64;
    let shares = uses.iter().filter(|uses| **uses > 0).map(|uses| *uses as f64 / all);
    shares.map(|share| -share * share.ln()).sum::<f64>().exp()
}

impl Codebook {
    /// A quantiser fitted to vectors by user. Its groups take the names of those that users have in
    /// `before`, rows of `[csid, group]`, where there is a codebook before it.
    pub(super) fn new(
        quantiser: RqVae,
        vectors: &[(Row, Vec<f32>)],
        before: Option<(&dyn Snapshot, &Codebook)>,
    ) -> Result<Self, KernelError> {
        let mut survey = Survey::new(&quantiser);
        let mut old: std::collections::BTreeMap<Row, u32> = Default::default();
        if let Some((rows, _)) = before {
            rows.for_each(&mut |user, row, _| {
                old.extend(row[1].as_text().and_then(group_number).map(|group| (user.clone(), group)));
            });
        }
        let mut shared = Shared::default();
        for (user, vector) in vectors {
            let known = before.is_none_or(|(_, codebook)| codebook.knows(user));
            let group = survey.take(&quantiser, known, vector)?;
            if let Some(old) = old.get(user) {
                shared.add(*old, group);
            }
        }
        let count = quantiser.n_groups();
        let names = shared.names(count, before.map_or(0, |(_, codebook)| codebook.about.next));
        let next = names.iter().map(|name| name + 1).chain(before.map(|(_, b)| b.about.next)).max();
        let mut figures = survey.figures();
        figures.push(("groups".to_string(), count as f64));
        if before.is_some() {
            figures.push(("moved".to_string(), shared.moved(&names)));
            figures.push(("rand_index".to_string(), shared.rand_index()));
        }
        let mut users: Vec<u32> = vectors.iter().map(|(user, _)| print(user)).collect();
        users.sort_unstable();
        users.dedup();
        // The same again is as it was, whatever it says of itself.
        if let Some((_, used)) = before.filter(|(_, used)| {
            (&used.about.names, &used.about.users) == (&names, &users)
                && used.quantiser.to_bytes() == quantiser.to_bytes()
        }) {
            return Ok(used.clone());
        }
        let error = survey.all.value().unwrap_or_default();
        Ok(Codebook {
            quantiser,
            about: About { names, next: next.unwrap_or_default(), figures, error, users },
        })
    }

    /// Whether a user was fitted on.
    fn knows(&self, user: &Row) -> bool {
        self.about.users.binary_search(&print(user)).is_ok()
    }

    /// The row of a vector: its tuple and the name of its group.
    pub(super) fn row(&self, vector: &[f32]) -> Result<Row, KernelError> {
        let codes = self.quantiser.quantise(vector).map_err(|e| e.to_string())?;
        let group = self.quantiser.group(&codes.csid).map_err(|e| e.to_string())?;
        let name = self.about.names.get(group as usize).ok_or("a group has no name")?;
        let csid = Value::list(codes.csid.iter().map(|code| Value::U64(u64::from(*code))));
        Ok(Row::from([csid, Value::text(group_name(*name))]))
    }

    /// How much more is lost of the vectors as they are now than of those at the fit, as a share; and what
    /// else tells how the codebook does on them.
    pub(super) fn drift(&self, vectors: &[(Row, Vec<f32>)]) -> Result<Figures, KernelError> {
        let mut survey = Survey::new(&self.quantiser);
        for (user, vector) in vectors {
            survey.take(&self.quantiser, self.knows(user), vector)?;
        }
        let now = survey.all.value().unwrap_or_default();
        let more = if self.about.error > 0.0 { now / self.about.error - 1.0 } else { now };
        let mut figures = vec![("error_grown".to_string(), more)];
        figures.extend(survey.figures());
        Ok(figures)
    }
}

impl Artifact for Codebook {
    fn to_bytes(&self) -> Vec<u8> {
        postcard::to_allocvec(&(self.quantiser.to_bytes(), &self.about)).unwrap_or_default()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, KernelError> {
        let (quantiser, about): (Vec<u8>, About) =
            postcard::from_bytes(bytes).map_err(|e| format!("codebook: {e}"))?;
        Ok(Codebook { quantiser: RqVae::from_bytes(&quantiser).map_err(|e| e.to_string())?, about })
    }

    fn figures(&self) -> Figures {
        self.about.figures.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        nn::{RqConfig, random::Stream},
        testing::Rows,
    };

    /// Users about some centres, two numbers each.
    fn users(centres: &[(u64, f32)], each: u64) -> Vec<(Row, Vec<f32>)> {
        let mut stream = Stream::new(5, "users", &[]);
        let mut about = |centre: f32| centre + (stream.unit_f64() as f32 - 0.5) * 0.2;
        let of = |(first, centre): &(u64, f32)| -> Vec<(Row, Vec<f32>)> {
            let user = |n| (Row::from([Value::U64(first + n)]), vec![about(*centre), about(-centre)]);
            (0..each).map(user).collect()
        };
        centres.iter().map(of).collect::<Vec<_>>().concat()
    }

    fn fitted(vectors: &[(Row, Vec<f32>)], groups: usize, before: Option<(&Rows, &Codebook)>) -> Codebook {
        let config = RqConfig {
            levels: 2,
            codebook: 4,
            latent: 2,
            hidden: 8,
            epochs: 60,
            groups,
            ..RqConfig::default()
        };
        let data: Vec<Vec<f32>> = vectors.iter().map(|(_, vector)| vector.clone()).collect();
        let (quantiser, _) = RqVae::fit(&data, &config, &mut |_| ()).unwrap();
        let before = before.map(|(rows, codebook)| (rows as &dyn Snapshot, codebook));
        Codebook::new(quantiser, vectors, before).unwrap()
    }

    fn put_out(codebook: &Codebook, vectors: &[(Row, Vec<f32>)]) -> Rows {
        Rows(vectors.iter().map(|(user, vector)| (user.clone(), codebook.row(vector).unwrap(), 1)).collect())
    }

    fn figure(figures: &Figures, name: &str) -> f64 {
        figures.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("no {name}")).1
    }

    #[test]
    fn users_keep_the_names_of_their_groups_when_all_turns_over() {
        // Ever more users of the group that was the smallest, so that numbers by size would change.
        let first = [users(&[(0, 1.0)], 40), users(&[(100, -1.0)], 30), users(&[(200, 4.0)], 20)].concat();
        let one = fitted(&first, 3, None);
        let rows = put_out(&one, &first);
        let later = [first.clone(), users(&[(300, 4.0)], 60), users(&[(400, -6.0)], 50)].concat();
        let two = fitted(&later, 4, Some((&rows, &one)));
        let after = put_out(&two, &first);
        assert_eq!(
            rows.0.iter().map(|r| &r.1[1]).collect::<Vec<_>>(),
            after.0.iter().map(|r| &r.1[1]).collect::<Vec<_>>()
        );
        let new = put_out(&two, &users(&[(400, -6.0)], 50));
        assert!(new.0.iter().all(|(_, row, _)| row[1] == Value::text("g003")), "a fourth name, never used");
        let figures = two.figures();
        assert!(figure(&figures, "moved").abs() < 1e-12);
        assert!((figure(&figures, "rand_index") - 1.0).abs() < 1e-12);
        assert!((figure(&figures, "groups") - 4.0).abs() < 1e-12);
        assert!(figure(&figures, "perplexity_1") > 1.5);
        assert!(!one.figures().iter().any(|(name, _)| name == "moved"), "the first one moves nobody");
        let again = Codebook::from_bytes(&two.to_bytes()).unwrap();
        assert_eq!(again.to_bytes(), two.to_bytes());
    }

    #[test]
    fn drift_is_what_is_lost_of_users_that_came_later() {
        let first = users(&[(0, 1.0), (100, -1.0)], 40);
        let one = fitted(&first, 2, None);
        let still = one.drift(&first).unwrap();
        assert!(still[0].1.abs() < 1e-9 && still[0].0 == "error_grown", "{still:?}");
        let later = [first, users(&[(300, 7.0)], 30)].concat();
        let drift = one.drift(&later).unwrap();
        assert!(drift[0].1 > 1.0, "{drift:?}");
        assert!(figure(&drift, "error_new") > 3.0 * figure(&drift, "error_known"), "{drift:?}");
        let two = fitted(&later, 3, Some((&put_out(&one, &later), &one)));
        assert!(figure(&two.figures(), "error") < figure(&drift, "error"), "a refit helps");
    }
}
