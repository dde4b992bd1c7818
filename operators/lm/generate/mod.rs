//! Writing texts: many at a time, one token each per forward pass.
//!
//! Decision: a step is one pass of all texts that are being written, and all threads work on it,
//! because reading the weights is what a step costs, however many texts take part. Texts leave as
//! they end and others take their place. No kernel lets one row see another and the draws of a text
//! are named by its own prompt, so a text is the same in any company, order and number of threads.

mod automaton;
mod constraint;
mod draw;
mod rest;
mod schema;
#[cfg(test)]
pub(crate) mod tests;
mod text;
mod writer;

use std::sync::Arc;

use rayon::prelude::*;

use self::constraint::Constraint;
pub use self::schema::satisfies;
use self::writer::{Pen, Running};
use super::batch::{Prefix, Run, Sequence};
use super::cache::Cache;
use super::error::LmError;
use super::llama::Llama;
use super::model::LocalModel;
use super::prefix::{Plan, Tail};
use super::prompts::Prompts;
use super::spread;
use super::vocabulary::Vocabulary;
use crate::language_model::{Answered, Writing, Written};
use crate::shape::Cost;

/// Texts written at a time, at most: two tiles of the kernel.
const TEXTS: usize = 24;
/// Bytes of keys and values that the texts being written may come to, at most; one text may always.
const MEMORY: usize = 256 << 20;
/// Rows from which a pass over prompts is full.
const FULL: usize = 192;

/// Writes a text after each prompt.
///
/// Prompts are complete chat texts that end with the assistant header; control tokens in them are
/// parsed. A text is a function of its prompt and of `how`, with the same bits whatever others are
/// written with it and on any number of threads. A prompt that is empty, or does not fit the
/// model's context with `max_tokens`, or that its template refuses, is an error of its own.
///
/// # Errors
/// If `how` makes no sense or its schema is not supported.
pub fn write_texts(
    model: &LocalModel,
    how: &Writing,
    prompts: &[String],
    answered: &mut Answered<'_, Written>,
) -> Result<Cost, LmError> {
    check_writing(how)?;
    let Some(Prompts { ids, places }) = Prompts::fitting(model, how.max_tokens, prompts, answered) else {
        return Ok(Cost::default());
    };
    let vocabulary = model.tokenizer().vocabulary();
    let (network, cache) = (model.network(), model.cache());
    spread::team(|| {
        write_tokens(network, cache, vocabulary, how, &ids, &mut |at, answer| answered(places[at], answer))
    })
}

/// That every part of `how` makes sense, its schema included.
///
/// # Errors
/// If one does not.
pub fn check_writing(how: &Writing) -> Result<(), LmError> {
    let wrong = |parameter: &str, reason: &str| {
        Err(LmError::Writing { parameter: parameter.to_owned(), reason: reason.to_owned() })
    };
    if how.max_tokens == 0 {
        return wrong("max_tokens", "must be at least 1");
    }
    if !(how.temperature >= 0.0 && how.temperature.is_finite()) {
        return wrong("temperature", "must be a finite number from 0");
    }
    if !(how.top_p > 0.0 && how.top_p <= 1.0) {
        return wrong("top_p", "must be above 0 and at most 1");
    }
    if !(how.repetition_penalty > 0.0 && how.repetition_penalty.is_finite()) {
        return wrong("repetition_penalty", "must be a finite number above 0");
    }
    if how.stop.iter().any(String::is_empty) {
        return wrong("stop", "must not hold an empty text");
    }
    if how.schema.is_some() && !how.stop.is_empty() {
        return wrong("stop", "would cut a JSON document short; a text with a schema ends by itself");
    }
    how.schema.as_ref().map_or(Ok(()), |schema| schema::Schema::read(schema).map(|_| ()))
}

/// [`write_texts`] on token ids.
pub(super) fn write_tokens(
    network: &Llama,
    cache: &Cache,
    vocabulary: &Vocabulary,
    how: &Writing,
    prompts: &[Vec<u32>],
    answered: &mut Answered<'_, Written>,
) -> Result<Cost, LmError> {
    let constraint = how.schema.as_ref().map(|schema| Constraint::new(schema, vocabulary)).transpose()?;
    let pen = Pen { how, vocabulary, constraint: constraint.as_ref() };
    let plan = Plan::new(prompts, cache);
    let mut cost = plan.cost();
    let mut waiting = &plan.tails[..];
    let mut running: Vec<Running> = Vec::new();
    while !(waiting.is_empty() && running.is_empty()) {
        let room = room(network, how, &plan, waiting, &running);
        let (next, rest) = waiting.split_at(room);
        waiting = rest;
        running.extend(read(network, &pen, &plan, next));
        // The tokens that were just drawn may have ended a text.
        for text in running.extract_if(.., |text| text.over.is_some()) {
            cost.completion_tokens += text.written();
            let told =
                |prompt: &usize| text.over.iter().all(|over| answered(*prompt, over.clone()).is_continue());
            if !text.tail.prompts.iter().all(told) {
                return Ok(cost);
            }
        }
        step(network, &pen, &mut running);
    }
    Ok(cost)
}

/// How many of the waiting prompts are taken in: as many as there is room for, but few only when
/// nothing else is left to do, so that they fill a pass.
fn room(network: &Llama, how: &Writing, plan: &Plan, waiting: &[Tail], running: &[Running]) -> usize {
    let sizes = network.sizes();
    let position = 2 * size_of::<f32>() * sizes.heads.key_width() * sizes.layers;
    // Room doubles as a text grows, so it may be twice what is used.
    let bytes = |tokens: usize| 2 * (tokens + how.max_tokens).saturating_mul(position);
    let mut used: usize = running.iter().map(|text| bytes(plan.tokens(text.tail).len())).sum();
    let free = TEXTS - running.len();
    if free < TEXTS / 4 && waiting.len() > free {
        return 0;
    }
    let mut room = 0;
    for tail in waiting.iter().take(free) {
        used = used.saturating_add(bytes(plan.tokens(tail).len()));
        if used > MEMORY && !(running.is_empty() && room == 0) {
            break;
        }
        room += 1;
    }
    room
}

/// Reads prompts and draws the first token of each text; threads take passes of several prompts.
fn read<'a>(network: &Llama, pen: &Pen, plan: &'a Plan, tails: &'a [Tail]) -> Vec<Running<'a>> {
    let mut passes: Vec<&[Tail]> = Vec::new();
    let (mut first, mut rows) = (0, 0);
    for (i, tail) in tails.iter().enumerate() {
        rows += plan.tokens(tail).len();
        if rows >= FULL || i + 1 == tails.len() {
            passes.push(&tails[first..=i]);
            (first, rows) = (i + 1, 0);
        }
    }
    let begun: Vec<_> =
        passes.par_iter().flat_map_iter(|tails| read_pass(network, pen, plan, tails)).collect();
    let (mut texts, hidden): (Vec<_>, Vec<_>) = begun.into_iter().unzip();
    draw(network, pen, &mut texts, &hidden.concat());
    texts
}

/// One pass over prompts: the texts to be, and the hidden state after each prompt.
fn read_pass<'a>(
    network: &Llama,
    pen: &Pen,
    plan: &'a Plan,
    tails: &'a [Tail],
) -> Vec<(Running<'a>, Vec<f32>)> {
    let prefixes: Vec<_> = tails.iter().map(|tail| plan.prefix(network, tail)).collect();
    let sequences: Vec<_> = tails
        .iter()
        .zip(&prefixes)
        .map(|(tail, prefix)| Sequence::new(Some(prefix), plan.tokens(tail), &[]))
        .collect();
    let (hidden, seen) = network.read_all(&sequences);
    let (width, mut end) = (network.sizes().hidden, 0);
    let begin = |((tail, mut prefix), run): ((&'a Tail, Prefix), Run)| {
        end += plan.tokens(tail).len();
        Plan::keep(network.sizes().heads, tail, &run);
        prefix.push(Arc::new(run));
        plan.release(tail);
        (Running::new(pen, plan.prompt(tail), tail, prefix), hidden[(end - 1) * width..end * width].to_vec())
    };
    tails.iter().zip(prefixes).zip(seen).map(begin).collect()
}

/// One token more for every text.
fn step(network: &Llama, pen: &Pen, running: &mut [Running]) {
    if running.is_empty() {
        return;
    }
    let last: Vec<[u32; 1]> = running.iter().map(|text| [text.last]).collect();
    let sequences: Vec<_> =
        running.iter().zip(&last).map(|(text, last)| Sequence::new(Some(&text.cache), last, &[])).collect();
    let (hidden, seen) = network.step(&sequences);
    let heads = network.sizes().heads;
    running.par_iter_mut().zip(seen).for_each(|(text, token)| text.cache.grow(heads, &token));
    draw(network, pen, running, &hidden);
}

/// Draws the next token of every text from the hidden state after its last one.
fn draw(network: &Llama, pen: &Pen, texts: &mut [Running], hidden: &[f32]) {
    if texts.is_empty() {
        return;
    }
    let mut logits = network.head().logits(hidden);
    let width = logits.len() / texts.len();
    texts
        .par_iter_mut()
        .zip(logits.par_chunks_exact_mut(width))
        .for_each(|(text, logits)| text.draw(pen, logits));
}
