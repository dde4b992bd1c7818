//! The reference vectors of another implementation, met with the real model.
//!
//! Decision: one model is loaded for all tests of this file, since loading costs more than running
//! them; each test names the largest deviation it found when it fails.

use std::sync::{Arc, LazyLock};

use serde_json::Value;

use super::batch::Sequence;
use super::closed_set::{price, score_labels};
use super::generate::satisfies;
use super::generate::tests::schemas;
use super::generate::write_texts;
use super::model::LocalModel;
use super::testing::model_path;
use super::tokenizer::LmTokenizer;
use super::trie::LabelTrie;
use crate::language_model::{Answered, Writing, Written, gather};
use crate::shape::Cost;

static MODEL: LazyLock<LocalModel> = LazyLock::new(|| LocalModel::open(&model_path()).unwrap());

fn fixture(name: &str) -> Value {
    let path = format!("{}/../tests/fixtures/lm/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

#[test]
fn token_ids_are_those_of_the_reference() {
    let tokenizer = LmTokenizer::open(&model_path()).unwrap();
    let fixture = fixture("tokens_dev.json");
    assert_eq!(u64::from(tokenizer.end_token()), fixture["end_token"].as_u64().unwrap());
    assert_eq!(list(&fixture["cases"]).len(), 30);
    for case in list(&fixture["cases"]) {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&case["ids"]), "{text:?}");
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&case["ids_no_special"]), "{text:?}");
        assert_eq!(tokenizer.decode(&ids(&case["ids"])).unwrap(), text);
    }
}

#[test]
fn label_log_probabilities_are_those_of_the_reference() {
    let fixture = fixture("prompts_dev.json");
    let labels: Vec<String> =
        list(&fixture["label_order"]).iter().map(|l| l.as_str().unwrap().to_owned()).collect();
    let trie = LabelTrie::new(MODEL.tokenizer(), &labels).unwrap();
    assert_eq!((trie.labels(), trie.nodes()), (18, 40));
    let text = |prompt: &Value| prompt["text"].as_str().unwrap().to_owned();
    let prompts: Vec<String> = list(&fixture["prompts"]).iter().map(text).collect();
    let fresh = MODEL.with_cache(0);
    let (scores, cost) = score(&fresh, &trie, &prompts);
    assert_eq!(cost, price(MODEL.tokenizer(), &prompts));
    let mut worst = 0f64;
    for (prompt, found) in list(&fixture["prompts"]).iter().zip(&scores) {
        for (label, found) in list(&prompt["labels"]).iter().zip(found) {
            worst = worst.max((label["logprob_f64"].as_f64().unwrap() - *found as f64).abs());
        }
    }
    println!("largest deviation of a label log-probability: {worst:.1e}");
    assert!(worst < 2e-4, "largest deviation {worst}");

    // One at a time and twice, with little or all known from before: the same bits, at another price.
    let mut known = Vec::new();
    for bytes in [5 << 20, LocalModel::CACHE_BYTES] {
        let model = MODEL.with_cache(bytes);
        let mut cost = Cost::default();
        for at in (0..4).chain(0..4) {
            let (found, one) = score(&model, &trie, &prompts[at..=at]);
            assert_eq!(found[0], scores[at]);
            cost += one;
        }
        known.push((cost.prompt_tokens, cost.reused_prompt_tokens));
    }
    println!("tokens computed and reused, with little and with much memory: {known:?}");
    let first = price(MODEL.tokenizer(), &prompts[..4]).prompt_tokens;
    assert!(known[1].0 < first + 4 * 12 && known[1].1 > known[1].0, "{known:?}");
    assert!(known[0].0 > known[1].0 && known[0].1 > 0, "{known:?}");
}

fn score(model: &LocalModel, trie: &LabelTrie, prompts: &[String]) -> (Vec<Vec<f32>>, Cost) {
    let ask = |answered: &mut Answered<'_, _>| Ok(score_labels(model, trie, prompts, answered));
    let (answers, cost) = gather(prompts.len(), ask).unwrap();
    (answers.into_iter().collect::<Result<_, _>>().unwrap(), cost)
}

#[test]
fn logits_are_those_of_the_reference() {
    for prompt in list(&fixture("prompts_dev.json")["prompts"]).iter().take(3) {
        let tokens = MODEL.tokenizer().encode(prompt["text"].as_str().unwrap(), true).unwrap();
        assert_eq!(tokens, ids(&prompt["ids"]));
        let logits = last_logits(Sequence::new(None, &tokens, &[]));
        for top in list(&prompt["top10"]) {
            let found = logits[top["id"].as_u64().unwrap() as usize] as f64;
            assert!((found - top["logit"].as_f64().unwrap()).abs() < 5e-4, "{found} {top}");
        }
        let total = logits.iter().map(|l| (*l as f64).exp()).sum::<f64>().ln();
        assert!((total - prompt["logsumexp"].as_f64().unwrap()).abs() < 5e-4);
    }
}

#[test]
fn greedy_continuations_are_those_of_the_reference() {
    let fixture = fixture("greedy.json");
    let text = |case: &Value, key: &str| case[key].as_str().unwrap().to_owned();
    let cases = list(&fixture["cases"]);
    let prompts: Vec<String> = cases.iter().map(|case| text(case, "prompt")).collect();
    let (texts, cost) = write(&Writing { max_tokens: 40, ..Writing::default() }, &prompts);
    assert_eq!(cost.completion_tokens, texts.iter().map(|text| text.tokens).sum::<u64>());
    for ((case, prompt), found) in cases.iter().zip(&prompts).zip(&texts) {
        assert_eq!(MODEL.tokenizer().encode(prompt, true).unwrap(), ids(&case["prompt_ids"]));
        let ended = case["stopped_at_end_token"].as_bool().unwrap();
        assert_eq!(found.text, text(case, "text").trim_end_matches("<|im_end|>"));
        assert_eq!(
            (found.tokens, found.finished),
            (ids(&case["ids"]).len() as u64 - u64::from(ended), ended)
        );
    }
    assert_eq!(write(&Writing { max_tokens: 40, ..Writing::default() }, &prompts[2..3]).0[0], texts[2]);
}

#[test]
fn documents_of_the_model_satisfy_their_schema() {
    let prompt = |film: &str| {
        format!(
            "<|im_start|>user\nDescribe the film {film} by tags as JSON.<|im_end|>\n<|im_start|>assistant\n"
        )
    };
    let prompts = ["Alien", "Fargo", "Psycho"].map(prompt);
    for schema in &schemas()[..3] {
        for temperature in [0.0, 1.0] {
            let schema = Some(Arc::new(schema.clone()));
            let how = Writing { max_tokens: 60, temperature, schema: schema.clone(), ..Writing::default() };
            for text in write(&how, &prompts).0 {
                println!("{}", text.text);
                assert!(text.finished && text.tokens <= 60);
                assert!(satisfies(&serde_json::from_str(&text.text).unwrap(), schema.as_ref().unwrap()));
            }
        }
    }
}

fn write(how: &Writing, prompts: &[String]) -> (Vec<Written>, Cost) {
    let ask = |answered: &mut Answered<'_, _>| Ok(write_texts(&MODEL, how, prompts, answered).unwrap());
    let (answers, cost) = gather(prompts.len(), ask).unwrap();
    (answers.into_iter().collect::<Result<_, _>>().unwrap(), cost)
}

/// Logits after the last token of a sequence.
fn last_logits(sequence: Sequence) -> Vec<f32> {
    let hidden = MODEL.network().hidden(&[sequence]);
    let width = MODEL.network().sizes().hidden;
    MODEL.network().head().logits(&hidden[hidden.len() - width..])
}
