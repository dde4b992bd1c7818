//! What unit tests of operators share.

use proptest::prelude::*;

use crate::{
    language_model::{Answered, LanguageModel, Writing, Written},
    row::{Row, Value},
    shape::{CallError, Cost, Counts, Event, FoldKernel, Snapshot},
    tuning::trainer::{Objective, Told},
};

/// A language model that writes the prompt itself, each in one token, and ends only the first.
pub(crate) struct Echo;

impl LanguageModel for Echo {
    fn digest(&self) -> String {
        "echo".to_string()
    }

    fn score(&self, _: &[String], _: &[String], _: &mut Answered<'_, Vec<f32>>) -> Result<Cost, CallError> {
        Err("an echo scores nothing".into())
    }

    fn write(
        &self,
        _: &Writing,
        prompts: &[String],
        answered: &mut Answered<'_, Written>,
    ) -> Result<Cost, CallError> {
        for (at, prompt) in prompts.iter().enumerate() {
            let text = Written { text: prompt.clone(), tokens: 1, finished: at == 0 };
            if answered(at, Ok(text)).is_break() {
                break;
            }
        }
        Ok(Cost::default())
    }

    fn price(&self, prompts: &[String]) -> Result<Cost, CallError> {
        Ok(Cost { prompt_tokens: prompts.len() as u64, ..Cost::default() })
    }
}

/// A relation at rest: key, row and count, in order.
pub struct Rows(pub Vec<(Row, Row, i64)>);

impl Snapshot for Rows {
    fn for_each(&self, visit: &mut dyn FnMut(&Row, &Row, i64)) {
        self.0.iter().for_each(|(key, row, count)| visit(key, row, *count));
    }
}

/// Folds a history of (time, item, count), oldest first; item n has its decimal digits as categories.
pub fn fold(kernel: &dyn FoldKernel, history: &[(i64, u64, u64)]) -> Vec<Row> {
    let rows: Vec<(Row, Row, u64)> = history
        .iter()
        .map(|(time, item, count)| {
            let digits = item.to_string();
            let dim = Row::from([Value::list(digits.chars().map(|c| Value::text(c.to_string())))]);
            (Row::from([Value::I64(*time), Value::U64(*item)]), dim, *count)
        })
        .collect();
    let event = |(row, dim, count): &(Row, Row, u64), visit: &mut dyn FnMut(&Event<'_>) -> bool| {
        visit(&Event { row, count: *count, dim: Some(dim) })
    };
    let mut counts = Counts::new();
    for row in &rows {
        event(row, &mut |e| {
            let mut values = Vec::new();
            kernel.counted(e, &mut values);
            values.into_iter().for_each(|v| *counts.entry(v).or_default() += e.count as i64);
            true
        });
    }
    let mut out = Vec::new();
    let mut walk = |visit: &mut dyn FnMut(&Event<'_>) -> bool| {
        let _ = rows.iter().rev().all(|row| event(row, visit));
    };
    kernel.emit(&Row::from([Value::U64(1)]), &mut walk, &counts, &mut out);
    out
}

/// Any value, lists in lists included.
pub fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::I64),
        any::<u64>().prop_map(Value::U64),
        any::<f64>().prop_map(Value::float),
        "[\\x00-\\x02a-c\\u{e9}]{0,5}".prop_map(Value::text),
        prop::collection::vec(0u8..3, 0..5).prop_map(|b| Value::Bytes(b.into())),
    ];
    leaf.prop_recursive(2, 12, 4, |inner| prop::collection::vec(inner, 0..4).prop_map(Value::list))
}

/// Any row.
pub fn row() -> impl Strategy<Value = Row> {
    prop::collection::vec(value(), 0..4).prop_map(Row::new)
}

/// Holds the gradient of an objective against differences of its value.
pub(crate) fn slopes_are_those_of_differences(objective: &dyn Objective, example: usize, scores: &[f64]) {
    const STEP: f64 = 1e-6;
    let value = |scores: &[f64]| objective.loss(example, scores, &mut Told::default()).value;
    let gradient = objective.loss(example, scores, &mut Told::default()).gradient;
    for (at, slope) in gradient.iter().enumerate() {
        let moved = |by: f64| {
            let mut scores = scores.to_vec();
            scores[at] += by;
            value(&scores)
        };
        let difference = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
        assert!((slope - difference).abs() < 1e-7, "label {at}: {slope} against {difference}");
    }
}
