//! Who is kept out of training, and what for.
//!
//! Decision: by name and seed alone, whoever else there is, so that a user who is kept out once is kept
//! out in every cycle. Who chooses among what training has reached does not judge it as well.

use super::training::Training;
use crate::{nn::random::Stream, ordered::encode_row, row::Row, shape::CallError};

/// A share of users, or of whatever else has a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct HeldOut {
    share: f64,
    seed: u64,
    choosing: bool,
}

/// What is trained on, what judges, and what chooses.
pub(crate) type Parts<T> = [T; 3];

/// Whether somebody chooses and somebody judges, where training wants the best of what it reached.
///
/// # Errors
/// If one of them is nobody.
pub(crate) fn somebody_judges<T>(
    training: &Training,
    parts: &Parts<T>,
    nobody: impl Fn(&T) -> bool,
) -> Result<(), CallError> {
    if training.choose_every.is_some() && parts[1..].iter().any(nobody) {
        let why =
            "of those kept out nobody is left to choose by, or to judge; a larger `held_out` gives some";
        return Err(CallError::Nothing(why.to_string()));
    }
    Ok(())
}

impl HeldOut {
    /// A share, half of which chooses if the training wants that.
    pub(crate) fn new(share: f64, training: &Training) -> Self {
        Self { share, seed: training.seed, choosing: training.choose_every.is_some() }
    }

    /// Nobody.
    pub(crate) fn nobody() -> Self {
        Self { share: 0.0, seed: 0, choosing: false }
    }

    /// The share.
    pub(crate) fn share(self) -> f64 {
        self.share
    }

    /// The place of a key among the [`Parts`]; `what` names the kind of key.
    pub(crate) fn part(self, what: &str, key: &Row) -> usize {
        let name = blake3::hash(&encode_row(key)).to_hex();
        let draw = Stream::new(self.seed, &format!("held out {what}{name}"), &[]).unit_f64();
        match draw {
            draw if draw >= self.share => 0,
            draw if self.choosing && draw < self.share / 2.0 => 2,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Value;

    fn parts(held_out: HeldOut) -> [Vec<u64>; 3] {
        let mut parts = [const { Vec::new() }; 3];
        (0..2000).for_each(|user| parts[held_out.part("", &Row::from([Value::U64(user)]))].push(user));
        parts
    }

    #[test]
    fn who_is_kept_out_follows_from_name_and_seed() {
        let of = |seed| Training { seed, ..Training::default() };
        let [train, judge, choose] = parts(HeldOut::new(0.3, &of(1)));
        assert!((500..700).contains(&judge.len()) && choose.is_empty(), "{}", judge.len());
        assert_eq!(train.len() + judge.len(), 2000);
        assert_ne!(parts(HeldOut::new(0.3, &of(2)))[1], judge);
        assert_eq!(parts(HeldOut::nobody())[0].len(), 2000);
    }

    #[test]
    fn half_of_who_is_kept_out_chooses_and_the_others_judge() {
        let all = parts(HeldOut::new(0.3, &Training::default()));
        let choosing = Training { choose_every: Some(5), ..Training::default() };
        let [train, judge, choose] = parts(HeldOut::new(0.3, &choosing));
        assert_eq!(train, all[0]);
        assert!(judge.len() > 230 && choose.len() > 230, "{} {}", judge.len(), choose.len());
        let mut both = [judge, choose].concat();
        both.sort_unstable();
        assert_eq!(both, all[1]);
    }
}
