//! Every architecture, in the forms it is published in, against what `transformers` answers.
//!
//! Decision: formats that are compared only with each other may all lack the same bias. So small
//! random models and another implementation's answers to them are checked in
//! (`tests/peers/transformers_vectors.py` writes both). They are small enough to be read by every
//! run, and sharp enough that what a network or a tokenizer leaves out moves every answer.

use std::path::PathBuf;

use serde::Deserialize;

use super::batch::Sequence;
use super::closed_set::score_labels;
use super::generate::write_texts;
use super::model::LocalModel;
use super::trie::LabelTrie;
use crate::language_model::{Writing, gather};

/// How far a log-probability in f32 may be from one in f64.
const TOLERANCE: f64 = 1e-4;

/// What is opened, and the folder whose answers it must give.
const MODELS: [(&str, &str); 8] = [
    ("llama3", "llama3"),
    ("llama", "llama"),
    ("llama-bias", "llama-bias"),
    ("qwen2", "qwen2"),
    ("qwen2-untied", "qwen2-untied"),
    ("llama3.gguf", "llama3"),
    ("llama-bias.gguf", "llama-bias"),
    ("qwen2.gguf", "qwen2"),
];

#[derive(Deserialize)]
struct Expected {
    end: u32,
    ends: Vec<u32>,
    tokens: Vec<Tokens>,
    labels: Vec<String>,
    chats: Vec<Chat>,
}

/// Token ids of a text, its control tokens parsed or not.
#[derive(Deserialize)]
struct Tokens {
    text: String,
    ids: Vec<u32>,
    plain: Vec<u32>,
}

/// A conversation and all answers to it.
#[derive(Deserialize)]
struct Chat {
    chatml: String,
    /// What the model's own template makes of it.
    rendered: String,
    /// What the model is asked.
    asked: String,
    ids: Vec<u32>,
    /// Log-probability of every token that may be next.
    next: Vec<f64>,
    labels: Vec<f64>,
    greedy: Greedy,
}

/// The most probable continuation, and by how much its tokens won at least.
#[derive(Deserialize)]
struct Greedy {
    ids: Vec<u32>,
    finished: bool,
    margin: f64,
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("lm/fixtures").join(name)
}

/// Every model with what is expected of it.
fn models() -> impl Iterator<Item = (&'static str, LocalModel, Expected)> {
    MODELS.into_iter().map(|(name, answers)| {
        let expected = std::fs::read(fixture(answers).join("expected.json")).unwrap();
        (name, LocalModel::open(&fixture(name)).unwrap(), serde_json::from_slice(&expected).unwrap())
    })
}

#[test]
fn token_ids_are_those_of_the_other_implementation() {
    for (name, model, expected) in models() {
        let tokenizer = model.tokenizer();
        assert_eq!(tokenizer.end_token(), expected.end, "{name}");
        assert_eq!(tokenizer.vocabulary().ends().collect::<Vec<_>>(), expected.ends, "{name}");
        assert!(expected.tokens.len() > 10);
        for case in expected.tokens {
            assert_eq!(tokenizer.encode(&case.text, true).unwrap(), case.ids, "{name} {:?}", case.text);
            assert_eq!(tokenizer.encode(&case.text, false).unwrap(), case.plain, "{name} {:?}", case.text);
        }
    }
}

#[test]
fn conversations_take_the_form_of_the_model() {
    for (name, model, expected) in models() {
        let tokenizer = model.tokenizer();
        for chat in expected.chats {
            let ids = tokenizer.prompt(&chat.chatml).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), chat.asked, "{name}");
            assert_eq!(ids, chat.ids, "{name} {:?}", chat.asked);
            // A model that reads ChatML is asked what was written; its template differs only in the
            // system's turn it makes up where there is none.
            let reads_chatml = chat.asked == chat.chatml;
            let system = chat.chatml.starts_with("<|im_start|>system");
            match reads_chatml && !system {
                true => assert!(chat.rendered.ends_with(&chat.asked), "{name} {:?}", chat.rendered),
                false => assert_eq!(chat.rendered, chat.asked, "{name}"),
            }
        }
    }
}

#[test]
fn log_probabilities_are_those_of_the_other_implementation() {
    for (name, model, expected) in models() {
        let trie = LabelTrie::new(model.tokenizer(), &expected.labels).unwrap();
        let prompts: Vec<String> = expected.chats.iter().map(|chat| chat.chatml.clone()).collect();
        let (scores, _) =
            gather(prompts.len(), |answered| Ok(score_labels(&model, &trie, &prompts, answered))).unwrap();
        let mut worst = 0f64;
        for (chat, scores) in expected.chats.iter().zip(scores) {
            for (label, found) in chat.labels.iter().zip(scores.unwrap()) {
                worst = worst.max((label - f64::from(found)).abs());
            }
            for (token, found) in chat.next.iter().zip(next(&model, &chat.ids)) {
                worst = worst.max((token - found).abs());
            }
        }
        println!("{name}: largest deviation of a log-probability {worst:.1e}");
        assert!(worst < TOLERANCE, "{name}: largest deviation {worst}");
    }
}

/// Log-probability of every token after the last of some tokens.
fn next(model: &LocalModel, ids: &[u32]) -> Vec<f64> {
    let hidden = model.network().hidden(&[Sequence::new(None, ids, &[])]);
    let width = model.network().sizes().hidden;
    let logits = model.network().head().logits(&hidden[hidden.len() - width..]);
    let total = logits.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
    logits.iter().map(|logit| f64::from(*logit) - total).collect()
}

#[test]
fn greedy_continuations_are_those_of_the_other_implementation() {
    for (name, model, expected) in models() {
        let how = Writing { max_tokens: 24, ..Writing::default() };
        let prompts: Vec<String> = expected.chats.iter().map(|chat| chat.chatml.clone()).collect();
        let (texts, _) =
            gather(prompts.len(), |answered| Ok(write_texts(&model, &how, &prompts, answered).unwrap()))
                .unwrap();
        for (Greedy { ids, finished, margin }, found) in
            expected.chats.iter().map(|chat| &chat.greedy).zip(texts)
        {
            assert!(*margin > 10.0 * TOLERANCE, "{name}: the other implementation could as well differ");
            let found = found.unwrap();
            // Half a character at the end is left off where a text is written, and marked in the other.
            let text = model.tokenizer().decode(ids).unwrap();
            let whole = |text: &str| text.trim_end_matches(char::REPLACEMENT_CHARACTER).to_owned();
            assert_eq!(whole(&found.text), whole(&text), "{name}");
            assert_eq!((found.tokens, found.finished), (ids.len() as u64, *finished), "{name}");
        }
    }
}
