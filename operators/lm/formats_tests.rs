//! Every architecture and format, on small models that the tests write themselves.
//!
//! Decision: one random network is saved in every form and must give the same answers from each: the
//! same bits where the weights have the same bits, close to it where they were quantised.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use serde_json::json;

use super::closed_set::score_labels;
use super::model::LocalModel;
use super::testing::noise;
use super::tokenizer::LmTokenizer;
use super::trie::LabelTrie;
use crate::language_model::gather;

const HIDDEN: usize = 256;
const LAYERS: usize = 2;
const HEADS: (usize, usize, usize) = (4, 2, 64);

/// Names and shapes of the tensors, as a folder has them.
fn shapes(vocab: usize, qwen: bool) -> Vec<(String, Vec<usize>)> {
    let (q, kv) = (HEADS.0 * HEADS.2, HEADS.1 * HEADS.2);
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let mut add =
            |name: &str, shape: &[usize]| all.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        for (name, rows) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
            add(&format!("self_attn.{name}.weight"), &[rows, HIDDEN]);
            if qwen {
                add(&format!("self_attn.{name}.bias"), &[rows]);
            }
        }
        add("self_attn.o_proj.weight", &[HIDDEN, q]);
        add("mlp.gate_proj.weight", &[HIDDEN * 2, HIDDEN]);
        add("mlp.up_proj.weight", &[HIDDEN * 2, HIDDEN]);
        add("mlp.down_proj.weight", &[HIDDEN, HIDDEN * 2]);
        add("input_layernorm.weight", &[HIDDEN]);
        add("post_attention_layernorm.weight", &[HIDDEN]);
    }
    all
}

type Weights = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn weights(vocab: usize, qwen: bool) -> Weights {
    let made = |(at, (name, shape)): (usize, (String, Vec<usize>))| {
        let scale = 2.0 / (shape[shape.len() - 1] as f32).sqrt();
        let offset = if name.contains("norm") { 1.0 } else { 0.0 };
        let values = noise(1000 + at as u64, shape.iter().product());
        // What f16 and bf16 hold exactly, so that files of these types have the very same weights.
        let values = values.iter().map(|x| ((x * scale + offset) * 1024.0).round() / 1024.0).collect();
        (name, (shape, values))
    };
    shapes(vocab, qwen).into_iter().enumerate().map(made).collect()
}

/// The vocabulary: all bytes in their alphabet, two merges, control tokens.
fn spelled(ends: &[&str]) -> Vec<String> {
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 256u32..;
    let mut tokens: Vec<String> = (0..256u32)
        .map(|b| if printable(b) { b } else { others.next().unwrap() })
        .map(|code| char::from_u32(code).unwrap().to_string())
        .collect();
    tokens.extend(["Ġa", "Dr"].map(str::to_owned));
    tokens.extend(ends.iter().map(|t| (*t).to_owned()));
    tokens
}

const CHATML: [&str; 2] = ["<|im_start|>", "<|im_end|>"];
const LLAMA3: [&str; 4] = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"];

/// Writes a folder; `split` in two files with an index.
fn write_folder(dir: &Path, qwen: bool, all: &Weights, more: serde_json::Value, split: bool) {
    let controls: &[&str] = if qwen { &CHATML } else { &LLAMA3 };
    let tokens = spelled(controls);
    let end = tokens.len() - 1;
    let mut config = json!({
        "model_type": if qwen { "qwen2" } else { "llama" }, "hidden_size": HIDDEN,
        "intermediate_size": HIDDEN * 2, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS.0,
        "num_key_value_heads": HEADS.1, "vocab_size": all["model.embed_tokens.weight"].0[0],
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "hidden_act": "silu", "eos_token_id": end,
    });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let write =
        |name: &str, value: &serde_json::Value| std::fs::write(dir.join(name), value.to_string()).unwrap();
    write("config.json", &config);
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let words = super::pretokenize::words(if qwen { r"\p{N}" } else { r"\p{N}{1,3}" });
    let cut = json!({"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": false});
    let vocab: serde_json::Map<String, serde_json::Value> =
        tokens[..258].iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let added = |(i, content): (usize, &&str)| {
        json!({"id": 258 + i, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let normalizer = if qwen { json!({"type": "NFC"}) } else { serde_json::Value::Null };
    write(
        "tokenizer.json",
        &json!({
            "version": "1.0", "added_tokens": controls.iter().enumerate().map(added).collect::<Vec<_>>(),
            "normalizer": normalizer, "post_processor": null, "decoder": bytes, "truncation": null, "padding": null,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, bytes]},
            "model": {"type": "BPE", "vocab": vocab, "merges": [["Ġ", "a"], ["D", "r"]], "dropout": null, "unk_token": null,
                      "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
                      "byte_fallback": false, "ignore_merges": !qwen},
        }),
    );
    write(
        "tokenizer_config.json",
        &json!({"eos_token": tokens[end], "bos_token": {"content": controls[0]},
        "chat_template": TEMPLATE}),
    );
    let (left, right): (Vec<_>, Vec<_>) =
        all.iter().partition(|(name, _)| split && name.contains("layers.1"));
    let mut map = serde_json::Map::new();
    for (file, part) in [("model-00001.safetensors", right), ("model-00002.safetensors", left)] {
        map.extend(part.iter().map(|(name, _)| ((*name).clone(), file.into())));
        let tensors = part.into_iter().map(|(name, (shape, values))| {
            let tensor = Tensor::from_slice(values, shape.as_slice(), &Device::Cpu).unwrap();
            (name.clone(), tensor)
        });
        let tensors: std::collections::HashMap<String, Tensor> = tensors.collect();
        if !tensors.is_empty() {
            candle_core::safetensors::save(&tensors, dir.join(file)).unwrap();
        }
    }
    write("model.safetensors.index.json", &json!({"weight_map": map}));
}

/// The form of Llama 3, with what its template does to the first turn.
const TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n\
    {{ message['content'] | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}";

fn gguf_name(name: &str) -> String {
    let names = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.layers.", "blk."),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("post_attention_layernorm", "ffn_norm"),
        ("input_layernorm", "attn_norm"),
    ];
    names.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// The row order of query and key weights in llama files.
fn permute(values: &[f32], inputs: usize) -> Vec<f32> {
    let size = HEADS.2;
    let row = |r: usize| {
        let (head, within) = (r / size, r % size);
        head * size + within % 2 * (size / 2) + within / 2
    };
    (0..values.len() / inputs).flat_map(|r| values[row(r) * inputs..][..inputs].to_vec()).collect()
}

fn write_gguf(path: &Path, qwen: bool, all: &Weights, dtype: GgmlDType) {
    let controls: &[&str] = if qwen { &CHATML } else { &LLAMA3 };
    let tokens = spelled(controls);
    let text = |text: &str| Value::String(text.to_owned());
    let arch = if qwen { "qwen2" } else { "llama" };
    let kinds = (0..tokens.len()).map(|id| Value::I32(if id < 258 { 1 } else { 3 }));
    let mut metadata: Vec<(String, Value)> = vec![
        ("general.architecture".into(), text(arch)),
        ("tokenizer.ggml.model".into(), text("gpt2")),
        ("tokenizer.ggml.pre".into(), text(if qwen { "qwen2" } else { "llama-bpe" })),
        ("tokenizer.ggml.tokens".into(), Value::Array(tokens.iter().map(|t| text(t)).collect())),
        ("tokenizer.ggml.token_type".into(), Value::Array(kinds.collect())),
        ("tokenizer.ggml.merges".into(), Value::Array(vec![text("Ġ a"), text("D r")])),
        ("tokenizer.ggml.eos_token_id".into(), Value::U32(tokens.len() as u32 - 1)),
        ("tokenizer.ggml.bos_token_id".into(), Value::U32(258)),
        ("tokenizer.chat_template".into(), text(TEMPLATE)),
    ];
    for (key, value) in [
        ("embedding_length", HIDDEN),
        ("feed_forward_length", HIDDEN * 2),
        ("block_count", LAYERS),
        ("attention.head_count", HEADS.0),
        ("attention.head_count_kv", HEADS.1),
        ("context_length", 512),
    ] {
        metadata.push((format!("{arch}.{key}"), Value::U32(value as u32)));
    }
    metadata.push((format!("{arch}.rope.freq_base"), Value::F32(10_000.0)));
    metadata.push((format!("{arch}.attention.layer_norm_rms_epsilon"), Value::F32(1e-5)));
    let quantise = |(name, (shape, values)): (&String, &(Vec<usize>, Vec<f32>))| {
        let turned = !qwen && (name.contains("q_proj") || name.contains("k_proj"));
        let values = if turned { permute(values, HIDDEN) } else { values.clone() };
        let tensor = Tensor::from_vec(values, shape.as_slice(), &Device::Cpu).unwrap();
        let dtype = if shape.len() == 1 { GgmlDType::F32 } else { dtype };
        (gguf_name(name), QTensor::quantize(&tensor, dtype).unwrap())
    };
    let tensors: Vec<(String, QTensor)> = all.iter().map(quantise).collect();
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
    gguf_file::write(&mut std::fs::File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

const PROMPT: &str = "<|im_start|>user\nWhich films, 1984?\nDrama a?<|im_end|>\n<|im_start|>assistant\n";

fn scores(path: &Path) -> Vec<f32> {
    let model = LocalModel::open(path).unwrap();
    let labels = ["Drama", "War", "Sci-Fi", "a b"].map(str::to_owned);
    let trie = LabelTrie::new(model.tokenizer(), &labels).unwrap();
    let prompts = [PROMPT.to_owned()];
    let (mut answers, _) = gather(1, |answered| Ok(score_labels(&model, &trie, &prompts, answered))).unwrap();
    answers.remove(0).unwrap()
}

fn far(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn one_network_gives_the_same_answers_from_every_format() {
    for qwen in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let vocab = if qwen { 260 } else { 262 };
        let all = weights(vocab, qwen);
        let folder = dir.path().join("folder");
        std::fs::create_dir(&folder).unwrap();
        write_folder(&folder, qwen, &all, json!({}), true);
        let expected = scores(&folder);
        assert!(expected.iter().all(|score| *score < -5.0 && score.is_finite()));
        let file = dir.path().join("model.gguf");
        // How far quantised weights may lead: the coarser, the farther.
        let cases = [
            (GgmlDType::F32, 0.0),
            (GgmlDType::F16, 0.0),
            (GgmlDType::BF16, 0.0),
            (GgmlDType::Q8_0, 0.3),
            (GgmlDType::Q6K, 2.0),
            (GgmlDType::Q5K, 4.0),
            (GgmlDType::Q5_1, 4.0),
            (GgmlDType::Q5_0, 4.0),
            (GgmlDType::Q4K, 8.0),
            (GgmlDType::Q4_1, 8.0),
            (GgmlDType::Q4_0, 8.0),
            (GgmlDType::Q3K, 16.0),
            (GgmlDType::Q2K, 24.0),
        ];
        for (dtype, bound) in cases {
            write_gguf(&file, qwen, &all, dtype);
            let found = far(&scores(&file), &expected);
            println!("qwen {qwen} {dtype:?}: {found}");
            assert!(found <= bound && (found > 0.0) == (bound > 0.0), "{qwen} {dtype:?}: {found}");
        }
    }
}

#[test]
fn prompts_take_the_form_of_their_model() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    write_gguf(&file, true, &weights(260, true), GgmlDType::Q8_0);
    let tokenizer = LmTokenizer::open(&file).unwrap();
    assert_eq!(tokenizer.decode(&tokenizer.prompt(PROMPT).unwrap()).unwrap(), PROMPT);
    write_gguf(&file, false, &weights(262, false), GgmlDType::Q8_0);
    write_folder(dir.path(), false, &weights(262, false), json!({}), false);
    for path in [&file, dir.path()] {
        let tokenizer = LmTokenizer::open(path).unwrap();
        let ids = tokenizer.prompt(PROMPT).unwrap();
        assert_eq!((ids[0], ids.iter().filter(|id| **id == 261).count()), (258, 1));
        let expected = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhich films, 1984?\nDrama a?\
                        <|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
        assert_eq!(tokenizer.decode(&ids).unwrap(), expected);
        assert_eq!(tokenizer.end_token(), 261);
    }
}

#[test]
fn a_prompt_that_the_template_refuses_costs_the_others_nothing() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(dir.path(), false, &weights(262, false), json!({}), false);
    let picky = "{% if 'no' in messages[0]['content'] %}{{ raise_exception('not this one') }}{% endif %}{{ messages[0]['content'] }}";
    let config = json!({"eos_token": LLAMA3[3], "bos_token": LLAMA3[0], "chat_template": picky});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let model = LocalModel::open(dir.path()).unwrap();
    let trie = LabelTrie::new(model.tokenizer(), &["Drama", "War"].map(str::to_owned)).unwrap();
    let ask = |prompts: &[&str]| {
        let prompts: Vec<String> = prompts.iter().map(ToString::to_string).collect();
        let price = super::price(model.tokenizer(), &prompts);
        let model = model.with_cache(0);
        let asked = gather(prompts.len(), |answered| Ok(score_labels(&model, &trie, &prompts, answered)));
        (asked.unwrap(), price)
    };
    let ((alone, cost), _) = ask(&["yes", "maybe"]);
    let ((answers, same), price) = ask(&["yes", "oh no", "", "maybe"]);
    assert_eq!([answers[0].clone(), answers[3].clone()], [alone[0].clone(), alone[1].clone()]);
    assert!(answers[1].as_ref().unwrap_err().contains("not this one"), "{answers:?}");
    assert!(answers[2].is_err());
    assert_eq!((same, price), (cost, cost));
}

#[test]
fn numbers_are_split_as_the_model_does() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    for qwen in [true, false] {
        write_gguf(&file, qwen, &weights(if qwen { 260 } else { 262 }, qwen), GgmlDType::Q8_0);
        let folder = tempfile::tempdir().unwrap();
        write_folder(folder.path(), qwen, &weights(if qwen { 260 } else { 262 }, qwen), json!({}), false);
        let (a, b) = (LmTokenizer::open(&file).unwrap(), LmTokenizer::open(folder.path()).unwrap());
        for text in ["a Drama a", "it's 12345 — e\u{301}", "\n\n  x <|eot_id|> <|im_end|>", "Ünï\tcode\r\n"]
        {
            for control in [true, false] {
                assert_eq!(a.encode(text, control).unwrap(), b.encode(text, control).unwrap(), "{text:?}");
            }
        }
    }
}

#[test]
fn what_a_folder_asks_that_is_not_computed_is_refused() {
    let all = weights(262, false);
    let cases = [
        (json!({"model_type": "mistral"}), "model type \"mistral\""),
        (json!({"mlp_bias": true}), "mlp_bias"),
        (json!({"rope_scaling": {"type": "yarn"}}), "rotary scaling \"yarn\""),
        (json!({"hidden_act": "gelu"}), "activation \"gelu\""),
        (json!({"attention_bias": true}), "no tensor \"model.layers.0.self_attn.q_proj.bias\""),
        (json!({"num_key_value_heads": 3}), "4 heads, 3 key heads"),
        (json!({"hidden_size": "wide"}), "config.json: invalid type"),
        (json!({"vocab_size": 261}), "tensor \"model.embed_tokens.weight\" is [262, 256]"),
    ];
    for (change, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        write_folder(dir.path(), false, &all, change, false);
        let error = LocalModel::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    write_folder(dir.path(), false, &all, json!({}), true);
    std::fs::remove_file(dir.path().join("model-00002.safetensors")).unwrap();
    let error = LocalModel::open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("is \"model-00002.safetensors\" missing?"), "{error}");
    std::fs::write(dir.path().join("model-00002.safetensors"), b"short").unwrap();
    assert!(LocalModel::open(dir.path()).is_err());
}

#[test]
fn rotary_scaling_of_llama_3_changes_long_waves_only() {
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192});
    let rope = super::sizes::Llama3Rope::read(Some(&scaling)).unwrap().unwrap();
    let factors = rope.factors(500_000.0, 128);
    assert_eq!((factors[0], factors[63]), (1.0, 8.0));
    assert!(factors.is_sorted() && factors.iter().any(|f| *f > 1.01 && *f < 7.99), "{factors:?}");
    let dir = tempfile::tempdir().unwrap();
    let all = weights(262, false);
    write_folder(dir.path(), false, &all, json!({}), false);
    let plain = scores(dir.path());
    write_folder(dir.path(), false, &all, json!({"rope_scaling": scaling}), false);
    assert_ne!(scores(dir.path()), plain);
}
