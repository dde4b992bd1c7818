//! Asking a model for the best labels only, where a label set is too large to score whole.
//!
//! What makes a label good (draw, temperature, number wanted) decides which labels are looked at, so
//! unlike a whole distribution the answer holds for these alone, and they are part of the request.

use crate::{
    align::scored,
    chat::spoken,
    choosing::{Best, Choosing, Question},
    label_policy::LabelPrior,
    language_model::Answered,
    row::{Row, Value},
    served::Served,
    shape::{CallError, Cost, InferKernel, Loaded, present},
};

/// Answers a request with a list of labels and their scores `s = ℓ − ℓ₀`, best first; the first
/// artifact is the label prior.
pub(crate) struct ChooseLabels<Q> {
    pub(crate) model: Served,
    /// What beside the request decides the answer, for the memo key.
    pub(crate) name: String,
    pub(crate) temperature: f64,
    /// Labels wanted.
    pub(crate) count: usize,
    /// The question of a request.
    pub(crate) question: Q,
}

/// What a label is called and how it scores.
pub(crate) fn cells(prior: &LabelPrior, best: Best) -> Value {
    let cell = |(label, logprob): (usize, f32)| {
        scored(Value::text(&prior.labels[label]), f64::from(logprob - prior.prior[label]))
    };
    Value::list(best.into_iter().map(cell))
}

impl<Q: Fn(&LabelPrior, &Row) -> Question + Send + Sync> InferKernel for ChooseLabels<Q> {
    fn logic(&self) -> String {
        let Self { model, name, temperature, count, .. } = self;
        format!("choose_labels/1 {} {name} {temperature} {count}", model.base().digest())
    }

    fn cheap(&self) -> bool {
        false
    }

    fn run(
        &self,
        artifacts: &[Loaded],
        requests: &[Row],
        answered: &mut Answered<'_, Row>,
    ) -> Result<Cost, CallError> {
        let prior = present::<LabelPrior>(artifacts.first())?;
        let questions: Vec<Question> = requests.iter().map(|row| (self.question)(prior, row)).collect();
        let how = Choosing { prior: prior.prior.clone(), temperature: self.temperature, count: self.count };
        self.model.model(artifacts)?.choose(&spoken(&prior.labels), &how, &questions, &mut |at, best| {
            answered(at, best.map(|best| Row::from([cells(prior, best)])))
        })
    }

    fn price(&self, requests: &[Row]) -> Result<Cost, CallError> {
        let prompts: Vec<String> =
            requests.iter().map(|row| row[0].as_text().unwrap_or_default().to_string()).collect();
        self.model.base().price(&prompts)
    }
}
