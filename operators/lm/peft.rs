//! Adapters in the layout of PEFT: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Decision: what this engine does not compute is refused by its name, and every tensor of a file
//! must find its place: an adapter of which a part was passed over still answers, only not as trained.
//! Modules and layers that a file leaves out add nothing.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Map, Value, json};

use super::adapters::{Adapters, LoraSettings};
use super::error::LmError;
use super::folder::{numbers, read_json, their_name};
use super::lora::Lora;
use super::model::LocalModel;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// What stands before a module's name.
const PREFIX: &str = "base_model.model.";

/// Settings that must say nothing, or this: they would change what is computed.
const PLAIN: [(&str, &str); 8] = [
    ("peft_type", "LORA"),
    ("bias", "none"),
    ("use_dora", "false"),
    ("lora_bias", "false"),
    ("fan_in_fan_out", "false"),
    ("use_qalora", "false"),
    ("use_bdlora", "null"),
    ("layer_replication", "null"),
];
/// Settings that must be empty.
const EMPTY: [&str; 5] =
    ["rank_pattern", "alpha_pattern", "modules_to_save", "trainable_token_indices", "target_parameters"];

impl LocalModel {
    /// Reads the adapter in a folder.
    ///
    /// # Errors
    /// If a file cannot be read, needs what this engine does not compute, or is of another model.
    pub fn read_adapter(&self, folder: &Path) -> Result<Lora, LmError> {
        let config = read_json(&folder.join(CONFIG))?;
        let config = config.ok_or_else(|| LmError::File {
            path: folder.join(CONFIG),
            reason: "it is not there; a folder of PEFT is wanted".to_owned(),
        })?;
        let path = folder.join(WEIGHTS);
        let fail = |reason: String| LmError::File { path: path.clone(), reason };
        let bytes = std::fs::read(&path).map_err(|error| fail(error.to_string()))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| fail(error.to_string()))?;
        let mut tensors: BTreeMap<String, TensorView> = file.tensors().into_iter().collect();
        let sizes = self.network().sizes();
        let first = tensors.keys().filter_map(|name| layer(name)).min().unwrap_or_default();
        let settings = LoraSettings { top: sizes.layers.checked_sub(first), ..settings(&config)? };
        let adapters = Adapters::new(sizes, settings)?;
        let mut values = vec![0.0; adapters.layout().len()];
        for entry in adapters.layout().entries() {
            let name = name(&entry.name).unwrap_or_default();
            let Some(tensor) = tensors.remove(&name) else { continue };
            let shape = [entry.slot.rows, entry.slot.cols];
            if tensor.shape() != shape {
                let found = tensor.shape();
                return Err(LmError::Malformed(format!("tensor {name:?} is {found:?}, expected {shape:?}")));
            }
            values[entry.slot.range()].copy_from_slice(&floats(&name, &tensor)?);
        }
        match tensors.keys().next() {
            Some(name) => Err(LmError::Malformed(format!("tensor {name:?} of the adapter has no place"))),
            None => Lora::new(sizes, settings, &values, json!({ "from": "peft" })),
        }
    }

    /// Writes an adapter into a folder; `base` is what its model is called.
    ///
    /// # Errors
    /// If it is of another model, or cannot be written.
    pub fn write_adapter(&self, lora: &Lora, base: &str, folder: &Path) -> Result<(), LmError> {
        let sizes = self.network().sizes();
        let adapters = Adapters::new(sizes, lora.settings())?;
        let values = lora.values(sizes)?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let entries = adapters.layout().entries().iter();
        let tensors = entries.map(|entry| {
            let range = entry.slot.range();
            let shape = vec![entry.slot.rows, entry.slot.cols];
            let view = TensorView::new(Dtype::F32, shape, &bytes[4 * range.start..4 * range.end]);
            let malformed = |error: safetensors::SafeTensorError| LmError::Malformed(error.to_string());
            Ok((name(&entry.name).unwrap_or_default(), view.map_err(malformed)?))
        });
        let tensors = tensors.collect::<Result<Vec<_>, LmError>>()?;
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let weights = safetensors::serialize(tensors, Some(metadata))
            .map_err(|error| LmError::Malformed(error.to_string()))?;
        let config =
            serde_json::to_string_pretty(&config(lora.settings(), sizes.layers, base)).unwrap_or_default();
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.join(name);
            std::fs::write(&path, bytes).map_err(|error| LmError::File { path, reason: error.to_string() })
        };
        write(WEIGHTS, &weights)?;
        write(CONFIG, format!("{config}\n").as_bytes())
    }
}

/// What PEFT calls the tensor `blk.0.attn_q.A`.
fn name(ours: &str) -> Option<String> {
    let (module, part) = ours.rsplit_once('.')?;
    let theirs = their_name(&format!("{module}.weight"))?;
    Some(format!("{PREFIX}{}.lora_{part}.weight", theirs.strip_suffix(".weight")?))
}

/// The layer of a tensor by PEFT's name.
fn layer(name: &str) -> Option<usize> {
    name.split_once(".layers.")?.1.split_once('.')?.0.parse().ok()
}

fn settings(config: &Value) -> Result<LoraSettings, LmError> {
    let unsupported = |what: String| LmError::Unsupported { what: format!("an adapter with {what}") };
    let said = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    for (key, plain) in PLAIN {
        if let Some(value) = config.get(key).filter(|value| !value.is_null() && said(value) != plain) {
            return Err(unsupported(format!("`{key}: {value}`")));
        }
    }
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    for key in EMPTY {
        if let Some(value) = config.get(key).filter(|value| !empty(value)) {
            return Err(unsupported(format!("`{key}: {value}`")));
        }
    }
    // Some ways to start change the weights below the adapter.
    if let Some(start) = config.get("init_lora_weights").and_then(Value::as_str)
        && !matches!(start, "gaussian" | "orthogonal")
    {
        return Err(unsupported(format!("`init_lora_weights: {start}`")));
    }
    let number = |key: &str| {
        let number = config.get(key).and_then(Value::as_f64);
        number.ok_or_else(|| LmError::Malformed(format!("{CONFIG} has no number `{key}`")))
    };
    let (rank, alpha) = (number("r")?, number("lora_alpha")?);
    let scaled = config.get("use_rslora").and_then(Value::as_bool).unwrap_or_default();
    // alpha/√rank, as alpha′/rank.
    let alpha = if scaled { alpha * rank.sqrt() } else { alpha };
    let dropout = config.get("lora_dropout").and_then(Value::as_f64).unwrap_or_default();
    Ok(LoraSettings { rank: rank as usize, alpha: alpha as f32, dropout: dropout as f32, top: None })
}

fn floats(name: &str, tensor: &TensorView) -> Result<Vec<f32>, LmError> {
    let bytes = tensor.data();
    Ok(match tensor.dtype() {
        Dtype::F32 => numbers(bytes, f32::from_le_bytes),
        Dtype::F16 => numbers(bytes, |bytes| half::f16::from_le_bytes(bytes).to_f32()),
        Dtype::BF16 => numbers(bytes, |bytes| half::bf16::from_le_bytes(bytes).to_f32()),
        other => return Err(LmError::Unsupported { what: format!("tensor type {other:?} of {name:?}") }),
    })
}

fn config(settings: LoraSettings, layers: usize, base: &str) -> Value {
    let LoraSettings { rank, alpha, dropout, top } = settings;
    let modules = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"];
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
    set("base_model_name_or_path", json!(base));
    set("bias", json!("none"));
    set("fan_in_fan_out", json!(false));
    set("inference_mode", json!(true));
    set("init_lora_weights", json!(true));
    let top = top.filter(|top| *top < layers);
    set("layers_pattern", top.map_or(Value::Null, |_| json!("layers")));
    set(
        "layers_to_transform",
        top.map_or(Value::Null, |top| json!((layers - top..layers).collect::<Vec<_>>())),
    );
    set("lora_alpha", json!(alpha));
    // The nearest number of few digits: 0.1 is not 0.10000000149.
    set("lora_dropout", dropout.to_string().parse::<f64>().map_or(json!(dropout), |short| json!(short)));
    set("peft_type", json!("LORA"));
    set("r", json!(rank));
    set("target_modules", json!(modules));
    set("task_type", json!("CAUSAL_LM"));
    set("use_rslora", json!(false));
    Value::Object(config)
}
