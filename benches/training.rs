//! How long one step of tuning takes: low-rank adapters on the embedded model, forward, backward, AdamW.
//!
//! Run with `cargo bench --bench training`; needs the default model's file (see the resolver).
//! `-- --write-job FILE` writes the same prompts for `benches/peers/pytorch_lora.py`.

mod common;

use std::{error::Error, time::Instant};

use coea_operators::{
    lm::{LabelTrie, LocalModel, LoraSettings, Tuner},
    nn::adamw::AdamW,
};

/// Prompts of a batch, and tokens of each.
const PROMPTS: usize = 4;
const TOKENS: usize = 120;
const LABEL: &str = "Documentary";
const STEPS: usize = 5;

/// Prompts of so many tokens that share no beginning.
fn prompts(model: &LocalModel) -> Result<Vec<String>, Box<dyn Error>> {
    let words = ["Drama", " War", " Comedy", " Crime", " Western", " Horror", " Musical", " Romance"];
    let prompt = |n: usize| {
        let text: String =
            (0..TOKENS).map(|at| words[(n * 3 + at * (n + 2) + at / 5) % words.len()]).collect();
        let ids = model.tokenizer().encode(&text, false)?;
        Ok(model.tokenizer().decode(&ids[..TOKENS])?)
    };
    (0..PROMPTS).map(prompt).collect()
}

fn steps(model: &LocalModel, prompts: &[String], top: Option<usize>) -> Result<(), Box<dyn Error>> {
    let tuner = Tuner::new(model, LoraSettings { rank: 8, alpha: 16.0, dropout: 0.0, top })?;
    let trie = LabelTrie::new(model.tokenizer(), &[LABEL.to_string()])?;
    let asked: Vec<(&str, &LabelTrie)> = prompts.iter().map(|prompt| (prompt.as_str(), &trie)).collect();
    let start = Instant::now();
    let batch = tuner.batch(&asked)?;
    let below = start.elapsed().as_secs_f64();
    let (mut values, mut state) = (tuner.layout().initial(1), AdamW::new(tuner.layout()));
    let mut seconds = Vec::new();
    for _ in 0..STEPS {
        let start = Instant::now();
        // The mean of −log p(label): every label's slope is the same.
        let mean = |scores: &[Vec<f64>]| vec![vec![-1.0 / PROMPTS as f64]; scores.len()];
        let gradient = tuner.gradient(&values, &tuner.batch(&asked)?, None, mean);
        state.step(tuner.layout(), &mut values, &gradient, 1e-4, 0.01);
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let layers = top.map_or("all layers".to_string(), |top| format!("top {top} layers"));
    let score = tuner.scores(&values, &batch).iter().map(|scores| scores[0]).sum::<f64>() / PROMPTS as f64;
    println!(
        "{layers}: {:.2} s a step over {} rows (median of {STEPS}), {below:.2} s below once; mean log p {score:.3}",
        seconds[STEPS / 2],
        batch.rows(),
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let model = LocalModel::open(&coea_engine::fetch::model("smollm2-135m-instruct")?.path)?;
    let prompts = prompts(&model)?;
    if let Some(file) = args.iter().position(|arg| arg == "--write-job").and_then(|at| args.get(at + 1)) {
        let job = serde_json::json!({ "prompts": prompts, "label": LABEL, "steps": STEPS });
        return Ok(std::fs::write(file, job.to_string())?);
    }
    println!("{} threads", rayon::current_num_threads());
    steps(&model, &prompts, None)?;
    steps(&model, &prompts, Some(5))?;
    if let Some(peak) = common::peak() {
        println!("peak memory {peak} MiB");
    }
    Ok(())
}
