//! What holds for any model, on small networks with random weights.
//!
//! Decision: random networks write what no trained one would, half characters and brackets that
//! never close, so they are the harder test; the real model is in `fixtures_tests.rs`.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::automaton::State;
use super::schema::Schema;
use super::*;
use crate::language_model::gather;
use crate::lm::testing::{network_of, small_network, tokens};

/// Greedy, without stops or schema.
pub(crate) fn greedy(max_tokens: usize) -> Writing {
    Writing { max_tokens, ..Writing::default() }
}

fn drawn(max_tokens: usize) -> Writing {
    Writing { temperature: 1.0, ..greedy(max_tokens) }
}

/// Tokens of one letter each; 2 ends a text, 3 is a marker.
pub(crate) fn letters(count: usize) -> Vocabulary {
    let letter = |id: usize| vec![b'a' + (id % 26) as u8].into_boxed_slice();
    let control = (0..count).map(|id| id == 2 || id == 3).collect();
    Vocabulary::new((0..count).map(letter).collect(), control, BTreeSet::from([2]))
}

/// Every byte, the end token, and some tokens that JSON is written in.
fn bytes_and_more() -> Vocabulary {
    let mut all: Vec<Box<[u8]>> = (0..=255u8).map(|byte| vec![byte].into_boxed_slice()).collect();
    all.push(b"<end>".as_slice().into());
    let more =
        ["\": \"", "\", \"", "[]", "{\"", "\"]", "\"}", "}}", "true", " 1", "é", "e\"", "tags", "null"];
    all.extend(more.iter().map(|text| text.as_bytes().into()));
    let control = (0..all.len()).map(|id| id == 256).collect();
    Vocabulary::new(all, control, BTreeSet::from([256]))
}

fn write(network: &Llama, vocabulary: &Vocabulary, how: &Writing, prompts: &[Vec<u32>]) -> Vec<Written> {
    let ask = |answered: &mut Answered<'_, Written>| {
        Ok(write_tokens(network, &Cache::new(network.sizes(), 0), vocabulary, how, prompts, answered)
            .unwrap())
    };
    let (answers, cost) = gather(prompts.len(), ask).unwrap();
    let answers: Vec<Written> = answers.into_iter().collect::<Result<_, _>>().unwrap();
    assert!(cost.completion_tokens <= answers.iter().map(|a| a.tokens).sum());
    answers
}

/// Two profiles, many tails, one prompt twice, more prompts than are written at a time.
fn prompts() -> Vec<Vec<u32>> {
    let prompt = |i: u64| [tokens(1, 20), tokens(2 + i % 2, 15), tokens(10 + i, 1 + i as usize % 7)].concat();
    let mut prompts: Vec<Vec<u32>> = (0..30).map(prompt).collect();
    prompts.push(prompts[4].clone());
    prompts
}

#[test]
fn greedy_texts_are_those_of_one_pass_per_token() {
    let (network, vocabulary) = (small_network(5), letters(101));
    for prompt in &prompts()[..3] {
        let mut row = prompt.clone();
        let mut expected = String::new();
        for _ in 0..40 {
            let hidden = network.hidden(&[Sequence::new(None, &row, &[])]);
            let logits = network.head().logits(&hidden[hidden.len() - 36..]);
            let allowed = (0..101).filter(|token| *token != 3);
            let best = allowed.max_by(|a, b| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a))).unwrap();
            if best == 2 {
                break;
            }
            expected.push((b'a' + (best % 26) as u8) as char);
            row.push(best as u32);
        }
        let found = write(&network, &vocabulary, &greedy(40), std::slice::from_ref(prompt));
        assert_eq!(found[0].text, expected);
    }
}

#[test]
fn a_text_is_the_same_in_any_company_and_order() {
    let (network, vocabulary, prompts) = (small_network(6), letters(101), prompts());
    let how = Writing { top_p: 0.95, repetition_penalty: 1.1, stop: vec!["qx".into()], ..drawn(60) };
    let all = write(&network, &vocabulary, &how, &prompts);
    assert!(all.iter().any(|text| text.finished) && all.iter().any(|text| text.tokens > 40));
    assert_eq!(all[4], all[30]);
    for (prompt, expected) in prompts.iter().zip(&all) {
        assert_eq!(write(&network, &vocabulary, &how, std::slice::from_ref(prompt))[0], *expected);
    }
    for shift in [1, 7, 19] {
        let (mut shuffled, mut expected) = (prompts.clone(), all.clone());
        shuffled.rotate_left(shift);
        expected.rotate_left(shift);
        assert_eq!(write(&network, &vocabulary, &how, &shuffled), expected);
        assert_eq!(write(&network, &vocabulary, &how, &shuffled[..9]), expected[..9]);
    }
    let other = Writing { seed: 1, ..how };
    assert_ne!(write(&network, &vocabulary, &other, &prompts), all);
}

#[test]
fn threads_change_nothing() {
    let (network, vocabulary, mut prompts) = (small_network(7), letters(101), prompts());
    // Long ones that share nothing are read in several passes, by several threads.
    prompts.extend((0..12).map(|i| tokens(100 + i, 80)));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| write(&network, &vocabulary, &drawn(50), &prompts))
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(5));
}

#[test]
fn who_hears_enough_is_told_no_more() {
    let (network, vocabulary, prompts) = (small_network(8), letters(101), prompts());
    for enough in [1, 3] {
        let mut heard = 0;
        let mut hear = |_, _| {
            heard += 1;
            if heard < enough {
                std::ops::ControlFlow::Continue(())
            } else {
                std::ops::ControlFlow::Break(())
            }
        };
        write_tokens(&network, &Cache::new(network.sizes(), 0), &vocabulary, &drawn(30), &prompts, &mut hear)
            .unwrap();
        assert_eq!(heard, enough);
    }
}

#[test]
fn markers_are_never_written_and_stops_end_a_text() {
    let (network, prompts) = (small_network(9), prompts());
    let mut vocabulary = letters(101);
    let texts = write(&network, &vocabulary, &drawn(200), &prompts);
    let count: u64 = texts.iter().map(|text| text.tokens).sum();
    assert!(count > 1000 && texts.iter().all(|text| text.text.len() as u64 == text.tokens));
    // What would be drawn is known to contain this letter; as a marker its token is not.
    let bytes = |id: usize| if id == 3 { b"#" } else { b"." };
    let all = (0..101).map(|id| bytes(id).as_slice().into()).collect();
    vocabulary = Vocabulary::new(all, (0..101).map(|id| id == 3).collect(), BTreeSet::from([2]));
    assert!(write(&network, &vocabulary, &drawn(200), &prompts).iter().all(|text| !text.text.contains('#')));
    let all = (0..101).map(|id| bytes(id).as_slice().into()).collect();
    vocabulary = Vocabulary::new(all, vec![false; 101], BTreeSet::from([2]));
    let texts = write(&network, &vocabulary, &drawn(200), &prompts);
    assert!(texts.iter().any(|text| text.text.contains('#')));
    let how = Writing { stop: vec!["#".into()], ..drawn(200) };
    for (stopped, text) in write(&network, &vocabulary, &how, &prompts).iter().zip(&texts) {
        assert_eq!(Some(stopped.text.as_str()), text.text.split('#').next());
        assert!(stopped.finished || !text.text.contains('#'));
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let cases = [
        (Writing { max_tokens: 0, ..greedy(1) }, "max_tokens: must be at least 1"),
        (Writing { temperature: -1.0, ..greedy(1) }, "temperature: "),
        (Writing { temperature: f64::NAN, ..greedy(1) }, "temperature: "),
        (Writing { top_p: 0.0, ..greedy(1) }, "top_p: "),
        (Writing { repetition_penalty: 0.0, ..greedy(1) }, "repetition_penalty: "),
        (Writing { stop: vec![String::new()], ..greedy(1) }, "stop: "),
        (Writing { stop: vec!["x".into()], schema: Some(Arc::new(json!({}))), ..greedy(1) }, "stop: "),
        (Writing { schema: Some(Arc::new(json!({"type": "wood"}))), ..greedy(1) }, "schema"),
    ];
    for (how, expected) in cases {
        let error = check_writing(&how).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    assert!(check_writing(&drawn(5)).is_ok());
}

pub(crate) fn schemas() -> Vec<Value> {
    vec![
        json!({"type": "array", "items": {"type": "string", "maxLength": 16}, "minItems": 1, "maxItems": 5}),
        json!({"type": "object", "required": ["tags", "kind"], "properties": {
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}},
            "kind": {"enum": ["static", "short", "short term", "\"quoted\""]},
            "age": {"type": "integer"}, "note": {"type": "string"}, "tagged": {"type": "boolean"}}}),
        json!({"type": "array", "items": {"type": "array", "items": {"type": "number"}, "maxItems": 2}}),
        json!({"type": "object", "properties": {"a": {"type": "null"}, "ab": {"type": "string", "maxLength": 0},
            "b": {"type": "object", "properties": {}}}, "required": ["b"]}),
        json!({"type": "integer"}),
        json!({"type": "number"}),
        json!({"type": "string"}),
        json!({"type": "boolean"}),
        json!({"type": "array", "items": {"type": "null"}, "maxItems": 0}),
    ]
}

#[test]
fn finished_texts_satisfy_their_schema() {
    let vocabulary = bytes_and_more();
    let mut finished = 0;
    for (i, schema) in schemas().into_iter().enumerate() {
        let network = network_of(20 + i as u64, vocabulary.len());
        for max_tokens in [1, 7, 40, 150] {
            let how = Writing { schema: Some(Arc::new(schema.clone())), ..drawn(max_tokens) };
            for text in write(&network, &vocabulary, &how, &prompts()) {
                assert!(text.tokens <= max_tokens as u64);
                if !text.finished {
                    assert!(max_tokens < 40, "there was room for {schema}: {text:?}");
                    continue;
                }
                finished += 1;
                let value: Value =
                    serde_json::from_str(&text.text).unwrap_or_else(|e| panic!("{e}: {text:?}"));
                assert!(satisfies(&value, &schema), "{schema}: {}", text.text);
            }
        }
    }
    assert!(finished > 500, "{finished}");
}

#[test]
fn a_mask_is_what_token_by_token_would_be_allowed() {
    let vocabulary = bytes_and_more();
    for schema in schemas() {
        let constraint = Constraint::new(&schema, &vocabulary).unwrap();
        let mut state = constraint.start();
        for step in 0..60usize {
            let mask = constraint.mask(&state);
            let after: Vec<(u32, State)> = (0..vocabulary.len() as u32)
                .filter(|token| *token != 256)
                .filter_map(|token| Some((token, constraint.after(&state, token)?)))
                .collect();
            let allowed: Vec<u32> = after.iter().map(|(token, _)| *token).collect();
            let masked = (0..vocabulary.len() as u32).filter(|token| *token != 256);
            assert_eq!(masked.filter(|t| mask.allows(*t as usize)).collect::<Vec<_>>(), allowed, "{state:?}");
            assert_eq!(mask.allows(256), state.complete());
            let Some((_, next)) = after.into_iter().nth(step * 7 % allowed.len().max(1)) else { break };
            state = next;
        }
    }
}

proptest! {
    /// Any bytes that the automaton takes are on the way to a document that satisfies the schema.
    #[test]
    fn whatever_is_taken_can_be_finished(which in 0usize..9, choices in prop::collection::vec(any::<u8>(), 0..80)) {
        let schema = schemas()[which].clone();
        let read = Schema::read(&schema).unwrap();
        let mut state = State::start(&read);
        let mut text = Vec::new();
        for choice in choices {
            let taken: Vec<(u8, State)> = (0..=255u8)
                .filter_map(|byte| {
                    let mut next = state.clone();
                    next.push(&read, byte).then_some((byte, next))
                })
                .collect();
            if taken.is_empty() {
                break;
            }
            let (byte, next) = taken[choice as usize % taken.len()].clone();
            text.push(byte);
            state = next;
        }
        text.extend(state.rest(&read));
        let value: Value = serde_json::from_slice(&text).unwrap();
        prop_assert!(satisfies(&value, &schema), "{} {:?}", schema, String::from_utf8_lossy(&text));
    }
}
