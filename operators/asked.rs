//! Examples for training, whatever they are made of: prompts, and what was answered.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    label_policy::LabelPrior,
    language_model::LanguageModel,
    row::Row,
    shape::{CallError, FitCost, KernelError, Loaded, Snapshot, present},
    tuning::{
        baselines::Click,
        held_out::{Parts, somebody_judges},
        training::Training,
    },
};

/// Examples by prompt.
pub(crate) type Prompted = BTreeMap<String, Asked>;

/// What a prompt says, the labels it may be answered with, and how often each was the answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) group: String,
    pub(crate) recent: Vec<String>,
    pub(crate) allowed: Vec<bool>,
    pub(crate) clicked: Vec<f64>,
    /// How often each label was shown and not clicked; empty where nobody knows.
    pub(crate) passed_over: Vec<f64>,
    /// Whose clicks they are, one by one.
    pub(crate) by: Vec<By>,
}

/// A click of a user.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct By {
    pub(crate) user: Row,
    pub(crate) label: usize,
    /// How often.
    pub(crate) count: f64,
    /// Whether the user had not met the label before.
    pub(crate) novel: bool,
}

impl Asked {
    /// As what counting sees of it.
    pub(crate) fn click(&self) -> Click<'_> {
        Click { group: &self.group, recent: &self.recent, allowed: &self.allowed, clicked: &self.clicked }
    }
}

/// How examples are made of relations.
pub(crate) trait Examples: Send + Sync {
    /// The examples by prompt.
    fn examples(&self, inputs: &[&dyn Snapshot], prior: &LabelPrior) -> Result<Parts<Prompted>, KernelError>;

    /// What is said where there is none to train on.
    fn nothing(&self) -> &'static str;

    /// What training on the examples will take.
    fn cost(
        &self,
        inputs: &[&dyn Snapshot],
        read: &[Loaded],
        training: &Training,
        model: &Arc<dyn LanguageModel>,
    ) -> Result<FitCost, CallError> {
        let examples = self.examples(inputs, present::<LabelPrior>(read.first())?)?;
        let tokens = |of: &Prompted| -> Result<Vec<u64>, CallError> {
            of.keys().map(|prompt| Ok(model.price(std::slice::from_ref(prompt))?.prompt_tokens)).collect()
        };
        match somebody_judges(training, &examples, Prompted::is_empty) {
            Ok(()) => Ok(training.cost(&tokens(&examples[0])?, &tokens(&examples[2])?)),
            Err(_) => Ok(FitCost::default()),
        }
    }
}
