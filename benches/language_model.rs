//! How fast the embedded model is: prompts read, labels scored, texts written, and in what memory.
//!
//! Run with `cargo bench --bench language_model [-- KEYS]`; needs the default model's file (see the
//! resolver). `-- --write-job FILE` writes the same job for `benches/peers/llama_cpp.py`. Every rate
//! stands beside that of the bare `gemm` crate on the same shapes, one product per thread as here:
//! it is the ceiling that can be measured anywhere.

mod common;

use std::{error::Error, ops::ControlFlow, time::Instant};

use coea_operators::{
    language_model::Writing,
    lm::{LabelTrie, LocalModel, score_labels, write_texts},
    shape::Cost,
};

/// Output and input sizes of the products of one layer, and of the output weights.
const LAYER: [(usize, usize); 4] = [(960, 576), (576, 576), (3072, 576), (576, 1536)];
const HEAD: (usize, usize) = (49152, 576);
const LAYERS: usize = 30;

const PROFILES: usize = 50;
/// Distinct candidates that a key wants.
const CANDIDATES: usize = 5;
/// Keys of a stream of small changes, asked one at a time, and the profiles they are of.
const STREAM: usize = 30;
const STREAM_PROFILES: usize = 10;
/// Texts that are written side by side, and tokens of each.
const TEXTS: usize = 8;
const TOKENS: usize = 96;

const GENRES: [&str; 18] = [
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
];

/// The genres, and their pairs up to 70 labels, as `set` categories of MovieLens are written.
fn combinations() -> Vec<String> {
    let singles = GENRES.iter().map(ToString::to_string);
    let pairs = (0..GENRES.len()).flat_map(|a| (a + 1..GENRES.len()).map(move |b| (a, b)));
    let pairs =
        pairs.filter(|(a, b)| (a * 7 + b * 3) % 3 == 0).map(|(a, b)| format!("{} {}", GENRES[a], GENRES[b]));
    singles.chain(pairs).take(70).collect()
}

/// Keys: profiles of groups, each with several pairs of recent genres.
fn prompts(count: usize) -> Vec<String> {
    let prompt = |i: usize| {
        let (group, pair) = (i % PROFILES, i / PROFILES + i);
        let pick = |n: usize| GENRES[n % GENRES.len()];
        format!(
            "<|im_start|>system\nYou help a cinema find genres that a group of viewers has not explored yet but is \
             likely to enjoy. The genres are: {}. Answer with exactly one genre.<|im_end|>\n<|im_start|>user\nGroup \
             profile: mostly people aged {}-{}; long-term favourites {} 41%, {} 22%, {} 18%. Recently watched: {}, \
             {}. Which new genre should we suggest next?<|im_end|>\n<|im_start|>assistant\n",
            GENRES.join(", "),
            15 + group,
            25 + group,
            pick(group),
            pick(group * 5 + 3),
            pick(group * 7 + 8),
            pick(pair),
            pick(pair / 18 + pair + 1),
        )
    };
    (0..count).map(prompt).collect()
}

/// Texts of about `size` tokens that share nothing worth keeping.
fn texts(size: usize) -> Vec<String> {
    let words = |text: usize| {
        let word = move |n: usize| GENRES[(text * 31 + n * (text + 5) + n / 7) % GENRES.len()];
        (0..size * 5 / 8).map(word).collect::<Vec<_>>().join(" ")
    };
    (0..2048 / size).map(words).collect()
}

/// The same job for another program.
fn job(keys: usize) -> serde_json::Value {
    serde_json::json!({
        "labels": GENRES,
        "candidates": CANDIDATES,
        "prompts": prompts(keys),
        "prefill": { "128": texts(128), "512": texts(512) },
    })
}

/// Work of a pass: tokens forwarded, and rows whose logits are made.
fn gigaflops(tokens: usize, logits: usize) -> f64 {
    let layer: usize = LAYER.iter().map(|(n, k)| n * k).sum();
    2e-9 * (LAYERS * layer * tokens + HEAD.0 * HEAD.1 * logits) as f64
}

fn prefill(model: &LocalModel, size: usize) -> Result<(), Box<dyn Error>> {
    let trie = LabelTrie::new(model.tokenizer(), &["Drama".to_string()])?;
    let start = Instant::now();
    let cost = score_labels(model, &trie, &texts(size), &mut |_, _| ControlFlow::Continue(()));
    let rate = cost.prompt_tokens as f64 / start.elapsed().as_secs_f64();
    println!("read, texts of about {size} tokens: {rate:.0} tokens/s, {:.0} GFLOP/s", rate * gigaflops(1, 0));
    Ok(())
}

fn score(model: &LocalModel, labels: &[String], prompts: &[String]) -> Result<(), Box<dyn Error>> {
    let trie = LabelTrie::new(model.tokenizer(), labels)?;
    let start = Instant::now();
    let Cost { prompt_tokens, reused_prompt_tokens, .. } =
        score_labels(model, &trie, prompts, &mut |_, _| ControlFlow::Continue(()));
    let (seconds, n) = (start.elapsed().as_secs_f64(), prompts.len());
    let work = gigaflops(prompt_tokens as usize + n * trie.nodes(), n * (trie.nodes() + 1));
    // One sequence per label: the whole prompt and the label each time.
    let whole = (prompt_tokens + reused_prompt_tokens) as usize * labels.len();
    let lengths: usize =
        labels.iter().map(|l| model.tokenizer().encode(l, false).map_or(0, |ids| ids.len())).sum();
    let naive = gigaflops(whole + n * lengths, n * (lengths + labels.len()));
    println!(
        "scored, {} labels, {} nodes: {:.2} keys/s, {:.0} GFLOP/s; {:.1} GFLOP a key, {:.0} by one sequence per \
         label; {:.0}% of prompt tokens reused",
        labels.len(),
        trie.nodes(),
        n as f64 / seconds,
        work / seconds,
        work / n as f64,
        naive / n as f64,
        100.0 * reused_prompt_tokens as f64 / (prompt_tokens + reused_prompt_tokens) as f64,
    );
    Ok(())
}

/// Keys that come one at a time, as from a stream of small changes: to a model that keeps no beginnings
/// of prompts, and to one that keeps them from call to call.
fn stream(model: &LocalModel, labels: &[String]) -> Result<(), Box<dyn Error>> {
    let trie = LabelTrie::new(model.tokenizer(), labels)?;
    // In an order in which a profile comes back after all the others.
    let all = prompts(STREAM / STREAM_PROFILES * PROFILES);
    let keys = (0..STREAM).map(|i| &all[i % STREAM_PROFILES + i / STREAM_PROFILES * PROFILES]);
    let keys: Vec<&[String]> = keys.map(std::slice::from_ref).collect();
    let warm = model.with_cache(LocalModel::CACHE_BYTES);
    for (how, model) in [("none", &model.with_cache(0)), ("those of the stream", &warm), ("all", &warm)] {
        let (start, mut cost) = (Instant::now(), Cost::default());
        for key in &keys {
            cost += score_labels(model, &trie, key, &mut |_, _| ControlFlow::Continue(()));
        }
        println!(
            "scored one at a time, {STREAM} keys of {STREAM_PROFILES} profiles, beginnings known: {how}: {} tokens \
             computed, {} reused, {:.2} keys/s",
            cost.prompt_tokens,
            cost.reused_prompt_tokens,
            STREAM as f64 / start.elapsed().as_secs_f64(),
        );
    }
    Ok(())
}

fn write(model: &LocalModel, texts: usize) -> Result<(), Box<dyn Error>> {
    let how = Writing {
        max_tokens: TOKENS,
        temperature: 1.0,
        top_p: 1.0,
        repetition_penalty: 1.0,
        stop: vec![],
        seed: 3,
        schema: None,
    };
    let prompts: Vec<String> =
        (0..texts).map(|n| format!("Once upon a time in the {} of", GENRES[n])).collect();
    let (start, mut tokens) = (Instant::now(), 0);
    write_texts(model, &how, &prompts, &mut |_, written| {
        tokens += written.map_or(0, |written| written.tokens);
        ControlFlow::Continue(())
    })?;
    let rate = tokens as f64 / start.elapsed().as_secs_f64();
    println!("written, {texts} texts side by side: {rate:.0} tokens/s");
    Ok(())
}

/// The bare crate on the shapes of a pass with this many rows, one product per thread.
fn bare_gemm(rows: usize) {
    let shapes: Vec<(usize, usize)> = LAYER.iter().copied().chain([HEAD]).collect();
    let widest = shapes.iter().map(|(n, k)| n.max(k) * rows).max().unwrap_or(0);
    let weights = vec![0.5f32; HEAD.0 * HEAD.1];
    let x = vec![0.25f32; widest];
    let start = Instant::now();
    rayon::broadcast(|_| {
        let mut y = vec![0f32; widest];
        for (i, (n, k)) in shapes.iter().copied().enumerate() {
            for _ in 0..if i < LAYER.len() { LAYERS } else { 1 } {
                // SAFETY: y is rows × n, x rows × k and the weights n × k, all within their buffers.
                unsafe {
                    gemm::gemm(
                        rows,
                        n,
                        k,
                        y.as_mut_ptr(),
                        1,
                        n as isize,
                        false,
                        x.as_ptr(),
                        1,
                        k as isize,
                        weights.as_ptr(),
                        1,
                        n as isize,
                        0.0,
                        1.0,
                        false,
                        false,
                        false,
                        gemm::Parallelism::None,
                    );
                }
            }
        }
    });
    let work = gigaflops(rows, rows);
    let threads = rayon::current_num_threads() as f64;
    println!("bare gemm, {rows} rows: {:.0} GFLOP/s", work * threads / start.elapsed().as_secs_f64());
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let keys = args.iter().find_map(|arg| arg.parse().ok()).unwrap_or(2 * PROFILES);
    if let Some(file) = args.iter().position(|arg| arg == "--write-job").and_then(|at| args.get(at + 1)) {
        return Ok(std::fs::write(file, job(keys).to_string())?);
    }
    let start = Instant::now();
    let model = LocalModel::open(&coea_engine::fetch::model("smollm2-135m-instruct")?.path)?;
    println!("loaded in {:.1?}, {} MB", start.elapsed(), model.memory_bytes() / 1_000_000);
    // Each measurement computes all it needs; what calls leave for one another has a line of its own.
    let fresh = model.with_cache(0);
    let genres: Vec<String> = GENRES.iter().map(ToString::to_string).collect();
    for round in 0..2 {
        println!("round {round}, {} threads", rayon::current_num_threads());
        prefill(&fresh, 128)?;
        prefill(&fresh, 512)?;
        score(&fresh, &genres, &prompts(keys))?;
        score(&fresh, &combinations(), &prompts(keys / 3))?;
        stream(&model, &genres)?;
        write(&fresh, 1)?;
        write(&fresh, TEXTS)?;
        bare_gemm(192);
        bare_gemm(TEXTS);
    }
    if let Some(peak) = common::peak() {
        println!("peak memory {peak} MiB");
    }
    Ok(())
}
