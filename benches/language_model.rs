//! How fast the embedded model scores closed label sets, against the bare `gemm` crate.
//!
//! Run with `cargo bench --bench language_model [-- PROMPTS]`; needs the default model's file (see
//! the resolver). The rate of a whole pass (attention, norms, softmax and all) is given in
//! GFLOP/s of its weight products alone, so that it can be held against that of `gemm` on the same
//! shapes, one product per thread as here.

use std::{ops::ControlFlow, time::Instant};

use coea_operators::{
    lm::{LabelTrie, LocalModel, score_labels},
    shape::Cost,
};

/// Output and input sizes of the products of one layer, and of the output weights.
const LAYER: [(usize, usize); 4] = [(960, 576), (576, 576), (3072, 576), (576, 1536)];
const HEAD: (usize, usize) = (49152, 576);
const LAYERS: usize = 30;

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

/// The 18 genres and 52 combinations, as `set` categories of MovieLens are written.
fn combinations() -> Vec<String> {
    let mut labels: Vec<String> = GENRES.iter().map(|g| g.to_string()).collect();
    for pair in
        ["0 1", "0 4", "0 5", "0 7", "0 10", "0 13", "0 14", "0 15", "0 16", "0 17", "1 3", "1 7", "1 14"]
    {
        labels.push(join(pair));
    }
    for pair in
        ["2 3", "3 4", "3 7", "3 8", "4 5", "4 7", "4 10", "4 11", "4 12", "4 13", "4 14", "4 15", "4 17"]
    {
        labels.push(join(pair));
    }
    for more in [
        "5 7", "5 15", "7 9", "7 11", "7 12", "7 13", "7 14", "7 15", "7 16", "9 12", "10 14", "10 15",
        "12 15",
    ] {
        labels.push(join(more));
    }
    for more in
        ["0 1 14", "0 1 13", "0 5 7", "0 7 16", "0 14 15", "2 3 11", "3 4 8", "4 7 13", "5 7 15", "7 13 16"]
    {
        labels.push(join(more));
    }
    for more in ["0 1 13 14 16", "0 7 13 15", "10 14 15"] {
        labels.push(join(more));
    }
    labels
}

fn join(indexes: &str) -> String {
    let words: Vec<&str> = indexes.split(' ').map(|i| GENRES[i.parse::<usize>().unwrap_or(0)]).collect();
    words.join(" ")
}

/// Twelve group profiles, each with many recent pairs.
fn prompts(count: usize) -> Vec<String> {
    let prompt = |i: usize| {
        let (group, pair) = (i * 12 / count, i % count.div_ceil(12));
        let pick = |n: usize| GENRES[n % GENRES.len()];
        format!(
            "<|im_start|>system\nYou help a cinema find genres that a group of viewers has not explored yet but is \
             likely to enjoy. The genres are: {}. Answer with exactly one genre.<|im_end|>\n<|im_start|>user\nGroup \
             profile: mostly people aged {}-{}; long-term favourites {} 41%, {} 22%, {} 18%. Recently watched: {}, \
             {}. Which new genre should we suggest next?<|im_end|>\n<|im_start|>assistant\n",
            GENRES.join(", "),
            15 + group * 4,
            25 + group * 4,
            pick(group),
            pick(group * 5 + 3),
            pick(group * 7 + 8),
            pick(pair),
            pick(pair / 18 + pair + 1),
        )
    };
    (0..count).map(prompt).collect()
}

fn gigaflops(cost: Cost, prompts: usize, nodes: usize) -> f64 {
    let layer: usize = LAYER.iter().map(|(n, k)| n * k).sum();
    let rows = cost.prompt_tokens as usize + prompts * nodes;
    2e-9 * (LAYERS * layer * rows + HEAD.0 * HEAD.1 * prompts * (nodes + 1)) as f64
}

fn score(model: &LocalModel, labels: &[String], prompts: &[String]) {
    let trie = match LabelTrie::new(model.tokenizer(), labels) {
        Ok(trie) => trie,
        Err(error) => return println!("{error}"),
    };
    let start = Instant::now();
    match score_labels(model, &trie, prompts, &mut |_, _| ControlFlow::Continue(())) {
        Ok(cost) => {
            let (seconds, n) = (start.elapsed().as_secs_f64(), prompts.len());
            println!(
                "{:3} labels, {:3} nodes: {n} prompts in {seconds:.1} s, {:.2} keys/s, {:.0} GFLOP/s; {} prompt \
                 tokens computed, {} reused",
                labels.len(),
                trie.nodes(),
                n as f64 / seconds,
                gigaflops(cost, n, trie.nodes()) / seconds,
                cost.prompt_tokens,
                cost.reused_prompt_tokens,
            );
        }
        Err(error) => println!("{error}"),
    }
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
    let cost = Cost::default();
    // As many rows, all of them with logits.
    let work = gigaflops(cost, 1, rows) - 2e-9 * (HEAD.0 * HEAD.1) as f64;
    let threads = rayon::current_num_threads() as f64;
    println!("bare gemm, {rows} rows: {:.0} GFLOP/s", work * threads / start.elapsed().as_secs_f64());
}

fn main() {
    let count = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(36);
    let start = Instant::now();
    let path = match coea_engine::fetch::model("smollm2-135m-instruct") {
        Ok(model) => model.path,
        Err(error) => {
            eprintln!("{error}");
            return;
        }
    };
    let model = match LocalModel::open(&path) {
        Ok(model) => model,
        Err(error) => return println!("{error}"),
    };
    println!("loaded in {:.1?}, {} MB", start.elapsed(), model.memory_bytes() / 1_000_000);
    let prompts = prompts(count);
    let genres: Vec<String> = GENRES.iter().map(|g| g.to_string()).collect();
    for round in 0..2 {
        println!("round {round}, {} threads", rayon::current_num_threads());
        score(&model, &genres, &prompts);
        score(&model, &combinations(), &prompts);
        bare_gemm(192);
        bare_gemm(24);
    }
}
