//! Adapters that `peft` wrote, and what it answers with them (`tests/peers/peft_vectors.py`).
//!
//! Decision: that others read what is written here is tested without them: an adapter that is read
//! and written again must be the file that `peft` itself wrote, tensor by tensor and setting by setting.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::{Value, json};

use super::closed_set::score_labels;
use super::lora::Lora;
use super::model::LocalModel;
use super::trie::LabelTrie;
use crate::language_model::gather;

/// How far a log-probability in f32 may be from one in f64.
const TOLERANCE: f64 = 1e-4;
const ADAPTERS: [&str; 4] = ["all", "biased", "top", "attention"];

#[derive(Deserialize)]
struct Expected {
    model: String,
    /// Of each chat the log-probability of each label.
    labels: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct Chats {
    labels: Vec<String>,
    chats: Vec<Chat>,
}

#[derive(Deserialize)]
struct Chat {
    chatml: String,
}

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("lm/fixtures")
}

fn folder(adapter: &str) -> PathBuf {
    fixtures().join("adapters").join(adapter)
}

fn json_of<T: serde::de::DeserializeOwned>(path: PathBuf) -> T {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn opened(adapter: &str) -> (LocalModel, Lora, Expected) {
    let expected: Expected = json_of(folder(adapter).join("expected.json"));
    let model = LocalModel::open(&fixtures().join(&expected.model)).unwrap();
    let lora = model.read_adapter(&folder(adapter)).unwrap();
    (model, lora, expected)
}

fn scores(model: &LocalModel, chats: &Chats) -> Vec<Vec<f32>> {
    let trie = LabelTrie::new(model.tokenizer(), &chats.labels).unwrap();
    let prompts: Vec<String> = chats.chats.iter().map(|chat| chat.chatml.clone()).collect();
    let (scores, _) =
        gather(prompts.len(), |answered| Ok(score_labels(model, &trie, &prompts, answered))).unwrap();
    scores.into_iter().map(Result::unwrap).collect()
}

#[test]
fn answers_with_adapters_are_those_of_the_other_implementation() {
    for adapter in ADAPTERS {
        let (base, lora, expected) = opened(adapter);
        let chats: Chats = json_of(fixtures().join(&expected.model).join("expected.json"));
        let before = scores(&base, &chats);
        let found = scores(&base.with_adapter(&lora).unwrap(), &chats);
        assert_eq!(found.len(), expected.labels.len());
        for (found, expected) in found.iter().zip(&expected.labels) {
            for (found, expected) in found.iter().zip(expected) {
                assert!((f64::from(*found) - expected).abs() < TOLERANCE, "{adapter}: {found} {expected}");
            }
        }
        // The model below is as it was, though its memory of these prompts is not empty.
        assert_eq!(scores(&base, &chats), before);
        assert_ne!(found, before);
    }
}

fn tensors(folder: &Path) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> =
        file.iter().map(|(name, t)| (name.to_owned(), t.shape().to_vec(), t.data().to_vec())).collect();
    tensors.sort();
    tensors
}

#[test]
fn an_adapter_is_written_as_the_other_implementation_writes_it() {
    for adapter in ["all", "biased", "top"] {
        let (model, lora, expected) = opened(adapter);
        let into = tempfile::tempdir().unwrap();
        model.write_adapter(&lora, &expected.model, into.path()).unwrap();
        assert_eq!(tensors(into.path()), tensors(&folder(adapter)), "{adapter}");
        let ours: Value = json_of(into.path().join("adapter_config.json"));
        let theirs: Value = json_of(folder(adapter).join("adapter_config.json"));
        for (key, value) in ours.as_object().unwrap() {
            assert_eq!(number(value), number(&theirs[key]), "{adapter}: {key}");
        }
        assert_eq!(model.read_adapter(into.path()).unwrap(), lora);
    }
}

/// A number as a float, so that 5 is 5.0.
fn number(value: &Value) -> Value {
    value.as_f64().map_or_else(|| value.clone(), |number| json!(number))
}

/// A copy of an adapter's folder with another setting.
fn with_setting(key: &str, value: Value) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(folder("all").join(file), copy.path().join(file)).unwrap();
    }
    let mut config: Value = json_of(copy.path().join("adapter_config.json"));
    config[key] = value;
    std::fs::write(copy.path().join("adapter_config.json"), config.to_string()).unwrap();
    copy
}

#[test]
fn what_would_change_the_answer_is_refused() {
    let (model, _, _) = opened("all");
    for (key, value) in [
        ("use_dora", json!(true)),
        ("bias", json!("all")),
        ("rank_pattern", json!({ "q_proj": 2 })),
        ("modules_to_save", json!(["lm_head"])),
        ("init_lora_weights", json!("pissa")),
        ("peft_type", json!("IA3")),
    ] {
        let error = model.read_adapter(with_setting(key, value).path()).unwrap_err().to_string();
        assert!(error.contains(key), "{key}: {error}");
    }
    let error = model.read_adapter(with_setting("r", json!(4)).path()).unwrap_err().to_string();
    assert!(error.contains("expected [4, 24]"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = model.read_adapter(empty.path()).unwrap_err().to_string();
    assert!(error.contains("adapter_config.json"), "{error}");
    // An adapter of another model, and one with a tensor that has no place here.
    let (other, lora, _) = opened("biased");
    assert!(model.with_adapter(&lora).is_err());
    assert!(other.read_adapter(&folder("all")).is_err());
}
