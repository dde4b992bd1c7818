//! A Hugging Face folder: `config.json`, safetensors, tokenizer files.
//!
//! Decision: tensors are read one by one by their place in the files, so that loading needs the
//! memory of the network and of one tensor, and they are given under the names that GGUF has for
//! them; the network knows one set of names.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;
use serde_json::Value;

use super::attention::Heads;
use super::error::LmError;
use super::sizes::{Llama3Rope, Sizes};
use super::weights::Rows;

/// Bytes a safetensors header may have at most.
const HEADER: u64 = 100 << 20;

/// What `config.json` says.
#[derive(Deserialize)]
struct Config {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    rope_theta: Option<f32>,
    /// Where newer files keep the rotary constants.
    rope_parameters: Option<Value>,
    rope_scaling: Option<Value>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    hidden_act: Option<String>,
}

/// Where a tensor lies.
struct Place {
    file: PathBuf,
    dtype: Dtype,
    shape: Vec<usize>,
    start: u64,
    bytes: usize,
}

/// An open folder, its tensors still on disk.
pub(crate) struct Folder {
    path: PathBuf,
    tensors: BTreeMap<String, Place>,
}

impl Folder {
    /// Opens a folder and reads the headers of its safetensors files.
    pub(crate) fn open(path: &Path) -> Result<Self, LmError> {
        let fail = |error: std::io::Error| file_error(path, error);
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path).map_err(fail)? {
            let file = entry.map_err(fail)?.path();
            if file.extension().is_some_and(|end| end == "safetensors") {
                files.push(file);
            }
        }
        files.sort();
        let mut tensors = BTreeMap::new();
        for file in files {
            read_header(&file, &mut tensors)?;
        }
        let folder = Self { path: path.to_owned(), tensors };
        // An index names every tensor there should be: a missing file is told as such.
        let index = folder.json("model.safetensors.index.json")?;
        let listed = index.as_ref().and_then(|index| index["weight_map"].as_object());
        match listed.into_iter().flatten().find(|(name, _)| !folder.tensors.contains_key(*name)) {
            Some((name, file)) => Err(LmError::Malformed(format!("no tensor {name:?}: is {file} missing?"))),
            None => Ok(folder),
        }
    }

    /// A JSON file of the folder, if it is there.
    pub(crate) fn json(&self, name: &str) -> Result<Option<Value>, LmError> {
        read_json(&self.path.join(name))
    }

    /// The sizes of its network.
    pub(crate) fn sizes(&self) -> Result<Sizes, LmError> {
        let config = self
            .json("config.json")?
            .ok_or_else(|| file_error(&self.path.join("config.json"), std::io::ErrorKind::NotFound.into()))?;
        let config: Config =
            serde_json::from_value(config).map_err(|e| LmError::Malformed(format!("config.json: {e}")))?;
        let unsupported = |what: String| Err(LmError::Unsupported { what });
        if !matches!(config.model_type.as_str(), "llama" | "qwen2") {
            return unsupported(format!("model type {:?}", config.model_type));
        }
        if config.mlp_bias || config.use_sliding_window {
            return unsupported("mlp_bias or use_sliding_window".to_owned());
        }
        if config.hidden_act.as_deref().is_some_and(|act| act != "silu") {
            return unsupported(format!("activation {:?}", config.hidden_act.unwrap_or_default()));
        }
        let queries = config.num_attention_heads;
        let keys = config.num_key_value_heads.unwrap_or(queries);
        let size = config.head_dim.unwrap_or(config.hidden_size / queries.max(1));
        let rope = config.rope_parameters.as_ref().or(config.rope_scaling.as_ref());
        let nested = config.rope_parameters.as_ref().and_then(|rope| rope["rope_theta"].as_f64());
        let biases = config.attention_bias || config.model_type == "qwen2";
        let sizes = Sizes {
            layers: config.num_hidden_layers,
            hidden: config.hidden_size,
            inner: config.intermediate_size,
            vocab: config.vocab_size,
            context: config.max_position_embeddings,
            heads: Heads { queries, keys, size },
            rope_base: config.rope_theta.or(nested.map(|base| base as f32)).unwrap_or(10_000.0),
            epsilon: config.rms_norm_eps,
            tied: config.tie_word_embeddings || !self.tensors.contains_key("lm_head.weight"),
            biases,
            output_bias: config.attention_bias && config.model_type == "llama",
            scaled: Llama3Rope::read(rope)?.is_some(),
        };
        sizes.checked()
    }

    /// How its rotary frequencies are scaled.
    pub(crate) fn rope(&self) -> Result<Option<Llama3Rope>, LmError> {
        let config = self.json("config.json")?.unwrap_or_default();
        let found = [&config["rope_parameters"], &config["rope_scaling"]];
        Llama3Rope::read(found.into_iter().find(|value| !value.is_null()))
    }

    /// A tensor by its GGUF name, row major, after checking its shape.
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Rows, LmError> {
        let theirs = their_name(name).ok_or_else(|| LmError::Malformed(format!("no tensor {name:?}")))?;
        let place =
            self.tensors.get(&theirs).ok_or_else(|| LmError::Malformed(format!("no tensor {theirs:?}")))?;
        if place.shape != shape {
            let found = &place.shape;
            return Err(LmError::Malformed(format!("tensor {theirs:?} is {found:?}, expected {shape:?}")));
        }
        let fail = |error: std::io::Error| file_error(&place.file, error);
        let mut file = File::open(&place.file).map_err(fail)?;
        file.seek(SeekFrom::Start(place.start)).map_err(fail)?;
        let mut bytes = vec![0; place.bytes];
        file.read_exact(&mut bytes).map_err(fail)?;
        Ok(match place.dtype {
            Dtype::F32 => Rows::F32(numbers(&bytes, f32::from_le_bytes)),
            Dtype::F16 => Rows::F16(numbers(&bytes, half::f16::from_le_bytes)),
            Dtype::BF16 => Rows::Bf16(numbers(&bytes, half::bf16::from_le_bytes)),
            other => {
                return Err(LmError::Unsupported { what: format!("tensor type {other:?} of {theirs:?}") });
            }
        })
    }
}

/// The numbers in some bytes.
pub(super) fn numbers<T, const SIZE: usize>(bytes: &[u8], number: fn([u8; SIZE]) -> T) -> Vec<T> {
    bytes.as_chunks::<SIZE>().0.iter().copied().map(number).collect()
}

fn file_error(path: &Path, error: std::io::Error) -> LmError {
    LmError::File { path: path.to_owned(), reason: error.to_string() }
}

/// A JSON file, if it is there.
pub(crate) fn read_json(path: &Path) -> Result<Option<Value>, LmError> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(file_error(path, error)),
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| LmError::Malformed(format!("{}: {error}", path.display()))),
    }
}

/// Notes where the tensors of a file lie.
fn read_header(path: &Path, into: &mut BTreeMap<String, Place>) -> Result<(), LmError> {
    let fail = |error: std::io::Error| file_error(path, error);
    let mut file = File::open(path).map_err(fail)?;
    let length = file.metadata().map_err(fail)?.len();
    let mut header = vec![0; 8];
    file.read_exact(&mut header).map_err(fail)?;
    let size = u64::from_le_bytes(header[..8].try_into().unwrap_or_default());
    if size > HEADER.min(length.saturating_sub(8)) {
        return Err(LmError::Malformed(format!("{} is no safetensors file", path.display())));
    }
    header.resize(8 + size as usize, 0);
    file.read_exact(&mut header[8..]).map_err(fail)?;
    let malformed = |error: serde_json::Error| LmError::Malformed(format!("{}: {error}", path.display()));
    let metadata: Metadata = serde_json::from_slice(&header[8..]).map_err(malformed)?;
    for (name, info) in metadata.tensors() {
        let (from, to) = info.data_offsets;
        let place = Place {
            file: path.to_owned(),
            dtype: info.dtype,
            shape: info.shape.clone(),
            start: 8 + size + from as u64,
            bytes: to - from,
        };
        if place.start + place.bytes as u64 > length {
            return Err(LmError::Malformed(format!("{} is cut short", path.display())));
        }
        into.insert(name, place);
    }
    Ok(())
}

/// The name a folder has for a tensor.
pub(super) fn their_name(name: &str) -> Option<String> {
    let whole = match name {
        "token_embd.weight" => "model.embed_tokens.weight",
        "output_norm.weight" => "model.norm.weight",
        "output.weight" => "lm_head.weight",
        _ => {
            let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
            let (part, kind) = part.rsplit_once('.')?;
            let part = match part {
                "attn_q" => "self_attn.q_proj",
                "attn_k" => "self_attn.k_proj",
                "attn_v" => "self_attn.v_proj",
                "attn_output" => "self_attn.o_proj",
                "ffn_gate" => "mlp.gate_proj",
                "ffn_up" => "mlp.up_proj",
                "ffn_down" => "mlp.down_proj",
                "attn_norm" => "input_layernorm",
                "ffn_norm" => "post_attention_layernorm",
                _ => return None,
            };
            return Some(format!("model.layers.{layer}.{part}.{kind}"));
        }
    };
    Some(whole.to_owned())
}
