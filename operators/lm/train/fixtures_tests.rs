//! The gradients of another implementation, met with the real model.
//!
//! Decision: the vectors are those computed in double precision, so what is asked is how far this is
//! from the truth and not from somebody else's rounding.

use serde_json::Value;

use super::batch::Batch;
use super::network::Tuned;
use crate::lm::adapters::{Adapters, LoraSettings};
use crate::lm::llama::Llama;
use crate::lm::model::LocalModel;
use crate::lm::testing::model_path;
use crate::lm::trie::LabelTrie;
use crate::tuning::loss::{Pair, Smoothing, divergence, dpo, log_softmax};

const SETTINGS: LoraSettings = LoraSettings { rank: 8, alpha: 16.0, dropout: 0.0, top: None };
const MODULES: [&str; 7] = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];

fn fixture(name: &str) -> Value {
    let path = format!("{}/../tests/fixtures/lm/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn float(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().unwrap().clone()
}

/// The row of ours that is row `row` of the file: query and key rows of the file pair neighbours.
fn row_of(network: &Llama, name: &str, row: usize) -> usize {
    let size = network.sizes().heads.size;
    match name.contains("attn_q.B") || name.contains("attn_k.B") {
        true => row / size * size + row % 2 * (size / 2) + row % size / 2,
        false => row,
    }
}

/// The adapters' numbers by the formula of the vectors.
fn values(network: &Llama, adapters: &Adapters) -> Vec<f32> {
    let mut values = vec![0.0; adapters.layout().len()];
    for entry in adapters.layout().entries() {
        let parts: Vec<&str> = entry.name.split('.').collect();
        let layer: f64 = parts[1].parse().unwrap();
        let module = MODULES.iter().position(|module| *module == parts[2]).unwrap() as f64;
        for i in 0..entry.slot.rows {
            let row = entry.slot.row(row_of(network, &entry.name, i));
            for (j, value) in values[row].iter_mut().enumerate() {
                let product = ((i + 1) * (j + 1)) as f64;
                let shift = layer + 0.5 * module;
                *value = match parts[3] {
                    "A" => 0.04 * (0.37 * product + shift).sin(),
                    _ => 0.04 * (0.29 * product + shift).cos(),
                } as f32;
            }
        }
    }
    values
}

fn length(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

/// Compares a gradient with its vectors; the largest deviations of norms and entries.
fn compare(network: &Llama, adapters: &Adapters, gradient: &[f32], expected: &Value) {
    let (mut norms, mut entries) = (0f64, 0f64);
    let relative = |found: f64, expected: &Value| (found / float(expected) - 1.0).abs();
    norms = norms.max(relative(length(gradient), &expected["global_norm"]));
    let matrices = expected["matrices"].as_object().unwrap();
    assert_eq!(matrices.len(), 14);
    for (name, matrix) in matrices {
        let entry = adapters.layout().entries().iter().find(|entry| entry.name == *name).unwrap();
        norms = norms.max(relative(length(&gradient[entry.slot.range()]), &matrix["norm"]));
        for at in list(&matrix["entries"]) {
            let (row, column) = (at["at"][0].as_u64().unwrap(), at["at"][1].as_u64().unwrap());
            let found = gradient[entry.slot.row(row_of(network, name, row as usize))][column as usize];
            entries = entries.max((f64::from(found) - float(&at["value"])).abs() / float(&matrix["norm"]));
        }
    }
    println!("largest deviations: {norms:.1e} of a norm, {entries:.1e} of an entry");
    assert!(norms < 5e-4 && entries < 5e-5, "{norms} {entries}");
}

#[test]
fn values_and_gradients_are_those_of_the_reference() {
    let model = LocalModel::open(&model_path()).unwrap();
    let network = model.network();
    let adapters = Adapters::new(network.sizes(), SETTINGS).unwrap();
    let values = values(network, &adapters);
    let loaded = adapters.load(&values);
    let tuned = Tuned { network, adapters: &adapters, loaded: &loaded };
    let (prompts, vectors) = (fixture("prompts_dev.json"), &fixture("grads_dev.json")["f64"]);
    let labels: Vec<String> =
        list(&prompts["label_order"]).iter().map(|label| label.as_str().unwrap().to_owned()).collect();
    let label = |name: &Value| labels.iter().position(|label| name == label).unwrap();
    let trie = LabelTrie::new(model.tokenizer(), &labels).unwrap();
    let tokens = |id: &Value| -> Vec<u32> {
        let prompt = list(&prompts["prompts"]).into_iter().find(|prompt| prompt["id"] == *id).unwrap();
        list(&prompt["ids"]).iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };

    let sft = &vectors["sft"];
    let examples = list(&sft["examples"]);
    let asked: Vec<_> = examples.iter().map(|example| (tokens(&example["prompt"]), &trie)).collect();
    let asked: Vec<_> = asked.iter().map(|(ids, trie)| (&ids[..], *trie)).collect();
    let count = float(&sft["tokens"]);
    let batch = Batch::new(network, model.frozen(), &adapters, &asked);
    let gradient = batch.gradient(&tuned, None, |scores| {
        let right: Vec<usize> = examples.iter().map(|example| label(&example["label"])).collect();
        let value = -scores.iter().zip(&right).map(|(scores, right)| scores[*right]).sum::<f64>() / count;
        assert!((value - float(&sft["loss_token_mean"])).abs() < 1e-4, "{value}");
        let slopes = |right| (0..labels.len()).map(|c| if c == right { -1.0 / count } else { 0.0 }).collect();
        right.into_iter().map(slopes).collect()
    });
    compare(network, &adapters, &gradient, &sft["gradient"]);

    let preference = &vectors["dpo"];
    let prompt = tokens(&preference["prompt"]);
    let batch = Batch::new(network, model.frozen(), &adapters, &[(&prompt, &trie)]);
    let reference: Vec<f64> = list(&preference["ref_closed_logprobs"]).iter().map(float).collect();
    let gradient = batch.gradient(&tuned, None, |scores| {
        for (found, expected) in scores[0].iter().zip(list(&preference["theta_seq_logprobs"])) {
            assert!((found - float(&expected)).abs() < 1e-3, "{found} {expected}");
        }
        let closed = log_softmax(&scores[0], &vec![true; labels.len()]);
        let (chosen, rejected) = (label(&preference["c_pos"]), label(&preference["c_neg"]));
        let pair = Pair {
            chosen: closed[chosen],
            rejected: closed[rejected],
            chosen_reference: reference[chosen],
            rejected_reference: reference[rejected],
            lengths: (1.0, 1.0),
        };
        let loss = dpo(&pair, float(&preference["beta"]), Smoothing::Conservative(0.0));
        assert!((loss.value - float(&preference["loss"])).abs() < 1e-4, "{loss:?}");
        // The normaliser of the closed set cancels.
        let mut slopes = vec![0.0; labels.len()];
        (slopes[chosen], slopes[rejected]) = (loss.chosen, loss.rejected);
        vec![slopes]
    });
    compare(network, &adapters, &gradient, &preference["gradient"]);

    let kl = &vectors["kl"];
    assert_eq!(kl["prompt"], preference["prompt"]);
    let gradient = batch.gradient(&tuned, None, |scores| {
        let loss = divergence(&log_softmax(&scores[0], &vec![true; labels.len()]), &reference);
        assert!((loss.value - float(&kl["kl_theta_ref"])).abs() < 1e-4, "{loss:?}");
        vec![loss.gradient]
    });
    compare(network, &adapters, &gradient, &kl["gradient"]);
}
