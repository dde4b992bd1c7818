//! Log-probabilities of labels by drawing answers and counting them.
//!
//! All that a chat server offers without log-probabilities. A draw that is no label is not bent into
//! one: it counts for nothing, and a prompt none of whose draws is a label has no answer. Counts are
//! smoothed additively, so a label that was never drawn stays possible.

use coea_operators::shape::Cost;
use serde_json::{Map, Value as Json, json};

use super::{
    Asking,
    failure::Failure,
    protocol::{Completion, constrain, guess, request},
    seed,
    settings::{Api, Settings},
};

/// Characters of a wrong answer that are shown.
const SHOWN: usize = 60;

/// Tokens a draw may have: enough for the longest label. A token of ASCII has two characters or
/// more but in the worst of texts; of other scripts it may be a single byte.
fn room(labels: &[String]) -> u64 {
    let need = |label: &String| if label.is_ascii() { label.len() / 2 + 6 } else { label.len() + 6 };
    labels.iter().map(need).max().unwrap_or(6) as u64
}

/// What one draw costs at most.
fn one(labels: &[String], prompt: &str) -> Cost {
    Cost { prompt_tokens: guess(prompt), completion_tokens: room(labels), ..Cost::default() }
}

/// What scoring a prompt costs at most.
pub(super) fn expected(settings: &Settings, labels: &[String], prompt: &str) -> Cost {
    let (draws, one) = (u64::from(settings.draws()), one(labels, prompt));
    Cost {
        prompt_tokens: draws * one.prompt_tokens,
        completion_tokens: draws * one.completion_tokens,
        ..Cost::default()
    }
}

/// The log-probability of every label, of the draws' counts.
pub(super) fn score(asking: &mut Asking<'_>, labels: &[String], prompt: &str) -> Result<Vec<f32>, Failure> {
    let settings = asking.settings;
    let (mut counts, mut drawn, mut wrong) = (vec![0u32; labels.len()], 0u32, String::new());
    for draw in 0..settings.draws() {
        let (path, mut body) = request(settings, prompt);
        parameters(settings, labels, &mut body);
        body.insert("seed".into(), json!(seed(u64::from(draw), prompt)));
        let answer: Completion = asking.post(path, &Json::Object(body), one(labels, prompt))?;
        let text = answer.choices.first().and_then(|choice| choice.text()).unwrap_or_default();
        match label(labels, text, settings.constrain()) {
            Some(at) => {
                counts[at] += 1;
                drawn += 1;
            }
            None => wrong = text.chars().take(SHOWN).collect(),
        }
    }
    if drawn == 0 {
        let draws = settings.draws();
        return Err(Failure::Question(format!("none of {draws} draws is a label; the last is {wrong:?}")));
    }
    let whole = f64::from(drawn) + settings.smoothing() * labels.len() as f64;
    let logprob = |count: &u32| ((f64::from(*count) + settings.smoothing()) / whole).ln() as f32;
    Ok(counts.iter().map(logprob).collect())
}

fn parameters(settings: &Settings, labels: &[String], body: &mut Map<String, Json>) {
    body.insert("max_tokens".into(), json!(room(labels)));
    body.insert("temperature".into(), json!(1));
    body.insert("top_p".into(), json!(1));
    if settings.api == Api::Completions {
        body.insert("stop".into(), json!([settings.end()]));
    }
    if settings.constrain() {
        constrain(settings, &json!({ "type": "string", "enum": labels }), body);
    }
}

/// The label that an answer is: but for space around it and the case of its letters, and nothing
/// else. An answer under a schema is a JSON string.
fn label(labels: &[String], answer: &str, json: bool) -> Option<usize> {
    let text = match json {
        true => serde_json::from_str(answer).ok()?,
        false => answer.to_string(),
    };
    let text = text.trim();
    labels.iter().position(|label| label == text).or_else(|| {
        let mut alike =
            (0..labels.len()).filter(|at| labels[*at].trim().to_lowercase() == text.to_lowercase());
        let first = alike.next();
        first.filter(|_| alike.next().is_none())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_label_or_nothing() {
        let labels = ["Film-Noir", "War", "war", "Ähnlich"].map(str::to_string);
        for (answer, at) in [
            (" film-noir\n", Some(0)),
            ("War", Some(1)),
            ("war", Some(2)),
            ("WAR", None),
            ("ÄHNLICH", Some(3)),
            ("Film-Noir.", None),
            ("The answer is War", None),
            ("", None),
        ] {
            assert_eq!(label(&labels, answer, false), at, "{answer:?}");
        }
        assert_eq!(label(&labels, " \"War\"", true), Some(1));
        assert_eq!(label(&labels, "War", true), None);
    }
}
