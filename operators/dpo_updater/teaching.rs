//! A cycle's candidate: from pairs and the version in use to a version with its figures.

use super::{
    DpoUpdater,
    objective::{Judged, Preferred},
};
use crate::{
    chat::spoken,
    lm::{LabelTrie, LmError, LocalModel, Tuner},
    preference_pairs::{Pairs, Preference},
    served::ModelVersion,
    shape::{CallError, Loaded, Watch, present},
    tuning::{
        held_out::{HeldOut, Parts, somebody_judges},
        trainer::{Trainer, scores},
        version::Making,
    },
};

impl DpoUpdater {
    /// The pairs.
    pub(super) fn parted<'a>(&self, pairs: &'a Pairs) -> Parts<Vec<&'a Preference>> {
        let held_out = HeldOut::new(self.held_out, &self.training);
        let mut parts = [const { Vec::new() }; 3];
        pairs.pairs.iter().for_each(|pair| parts[held_out.part("", &pair.key)].push(pair));
        parts
    }

    pub(super) fn train(
        &self,
        making: &Making<'_>,
        read: &[Loaded],
        watch: &mut dyn Watch,
    ) -> Result<ModelVersion, CallError> {
        let failed = |error: LmError| CallError::Failed(error.to_string());
        let pairs = present::<Pairs>(read.first())?;
        let used = present::<ModelVersion>(read.get(1))?;
        let anchor = read.get(2).map(|anchor| present::<ModelVersion>(Some(anchor))).transpose()?;
        let parts = self.parted(pairs);
        somebody_judges(&self.training, &parts, Vec::is_empty)?;
        let [train, held, choose] = parts;
        if train.is_empty() {
            let help = "a smaller `min_margin`, or more keys, give some";
            return Err(CallError::Nothing(format!("no key has a pair to learn from; {help}")));
        }
        let trie = LabelTrie::new(making.network.tokenizer(), &spoken(&pairs.labels)).map_err(failed)?;
        let anchored = Anchored::new(self, making.network, anchor).map_err(failed)?;
        let taught_by = |of: &[&Preference]| {
            let near = match self.anchor_kl > 0.0 {
                true => anchored.scores(of, &trie).map_err(failed)?,
                false => Vec::new(),
            };
            Ok::<_, CallError>(Preferred::new(self, &trie, pairs, of, near))
        };
        let (objective, choose) = (taught_by(&train)?, taught_by(&choose)?);
        // Of a handful of pairs none may be kept out; then those that were trained on judge.
        let judges = if held.is_empty() { &train } else { &held };
        let judged =
            Preferred::new(self, &trie, pairs, judges, anchored.scores(judges, &trie).map_err(failed)?);
        let judge = |trainer: &Trainer<'_>, before: &[f32], after: &[f32]| {
            let prompts: Vec<&str> = judges.iter().map(|pair| pair.prompt.as_str()).collect();
            let [before, after] = trainer.scores([before, after], &prompts)?;
            let mut figures = Judged { by: &judged, before: &before, after: &after }.figures();
            figures.extend(pairs.met.map(|met| ("clicks_met".to_string(), met)));
            figures.insert("judged_by_trained".to_string(), f64::from(u8::from(held.is_empty())));
            Ok(figures)
        };
        let start = making.start(used)?;
        making.version([&objective, &choose], start, (&judge, &self.gate), watch)
    }
}

/// The version that cycles began with.
struct Anchored {
    tuner: Tuner,
    values: Vec<f32>,
    together: usize,
}

impl Anchored {
    fn new(of: &DpoUpdater, network: &LocalModel, anchor: Option<&ModelVersion>) -> Result<Self, LmError> {
        let adapter = anchor.and_then(ModelVersion::adapter);
        let settings = adapter.map_or_else(|| of.training.lora(), |adapter| adapter.settings());
        let tuner = Tuner::new(network, settings)?;
        let values = match adapter {
            Some(adapter) => network.adapter_values(adapter)?,
            None => tuner.layout().initial(of.training.seed),
        };
        Ok(Self { tuner, values, together: of.training.batch })
    }

    fn scores(&self, pairs: &[&Preference], trie: &LabelTrie) -> Result<Vec<Vec<f64>>, LmError> {
        let prompts: Vec<&str> = pairs.iter().map(|pair| pair.prompt.as_str()).collect();
        Ok(scores(&self.tuner, [&self.values], trie, &prompts, self.together)?.concat())
    }
}
