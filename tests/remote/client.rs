//! One model on a server, without a pipeline: what goes over the wire, and how fast.

use std::{ops::ControlFlow, time::Duration};

use coea_engine::remote::{Remote, settings::Settings};
use coea_operators::{
    language_model::{LanguageModel, Writing, gather},
    shape::CallError,
};

use super::server::{Server, logprob, words};

fn settings(yaml: &str) -> Settings {
    serde_json::from_str(yaml).unwrap()
}

fn texts(of: &[&str]) -> Vec<String> {
    of.iter().map(ToString::to_string).collect()
}

fn score(
    model: &Remote,
    labels: &[&str],
    prompts: &[String],
) -> Result<Vec<Result<Vec<f32>, String>>, CallError> {
    gather(prompts.len(), |answered| model.score(&texts(labels), prompts, answered)).map(|(scores, _)| scores)
}

/// What the server's model says of a label.
fn expected(prompt: &str, label: &str) -> f32 {
    let mut text = prompt.to_string();
    let mut sum = 0.0;
    for word in words(label).iter().map(String::as_str).chain(["<|im_end|>"]) {
        sum += logprob("m", &text, word);
        text.push_str(word);
    }
    sum as f32
}

const LABELS: [&str; 5] = ["War", "War and peace", "War and love", "Peace", "Über uns"];

#[test]
fn forcing_and_stepping_give_the_log_probability_of_every_label() {
    let (server, base) = Server::start();
    let prompts = texts(&["one two", "three"]);
    for with in [
        r#"{"model":"m","scoring":"forced","timeout":"2s"}"#,
        r#"{"model":"m","scoring":"steps","top":50,"timeout":"2s"}"#,
    ] {
        let model = Remote::new(&base, settings(with), None).unwrap();
        for (scores, prompt) in score(&model, &LABELS, &prompts).unwrap().into_iter().zip(&prompts) {
            for (score, label) in scores.unwrap().into_iter().zip(LABELS) {
                let right = expected(prompt, label);
                assert!((score - right).abs() < 1e-4, "{with} {prompt} {label}: {score} {right}");
            }
        }
    }
    assert!(server.paid().values().all(|n| *n == 1));
}

#[test]
fn a_model_is_what_decides_its_answers() {
    let digest = |base: &str, with: &str| {
        Remote::new(base, settings(&format!("{{\"model\":\"m\"{with}}}")), None).unwrap().digest()
    };
    let base = "http://127.0.0.1:1/v1";
    let plain = digest(base, "");
    assert!(plain.len() == 64 && plain.bytes().all(|byte| byte.is_ascii_hexdigit()), "{plain}");
    assert_eq!(plain, digest("http://127.0.0.1:1/v1/", ""));
    let limits = r#","concurrency":9,"timeout":"3s","connect":"2s","retries":1,"backoff":"1s","max_wait":"9s",
        "requests_per_minute":5,"tokens_per_minute":7,"budget":{"calls":3},"breaker":{"after":2},"top":7"#;
    assert_eq!(plain, digest(base, limits), "limits are no part of it, nor a list that only saves requests");
    let others = [
        r#","revision":"2""#,
        r#","scoring":"steps""#,
        r#","scoring":"steps","top":7"#,
        r#","scoring":"draws""#,
        r#","api":"chat""#,
        r#","api":"chat","draws":3"#,
        r#","api":"chat","constrain":true"#,
        r#","end":"</s>""#,
        r#","extra":{"top_k":0}"#,
    ];
    let mut seen: std::collections::BTreeSet<String> = others.iter().map(|with| digest(base, with)).collect();
    seen.extend([plain, digest("http://127.0.0.1:2/v1", "")]);
    assert_eq!(seen.len(), others.len() + 2);
}

#[test]
fn a_label_out_of_the_top_gets_a_bound() {
    let (_server, base) = Server::start();
    let few = r#"{"model":"m","scoring":"steps","top":2,"timeout":"2s"}"#;
    let (few, all) = (settings(few), settings(r#"{"model":"m","scoring":"forced","timeout":"2s"}"#));
    let prompts = texts(&["one two three"]);
    let exact = score(&Remote::new(&base, all, None).unwrap(), &LABELS, &prompts).unwrap();
    let bound = score(&Remote::new(&base, few, None).unwrap(), &LABELS, &prompts).unwrap();
    let (exact, bound) = (exact[0].clone().unwrap(), bound[0].clone().unwrap());
    assert!(exact.iter().zip(&bound).all(|(exact, bound)| bound >= exact), "{exact:?} {bound:?}");
    assert!(exact.iter().zip(&bound).any(|(exact, bound)| *bound > exact + 0.1), "{exact:?} {bound:?}");
}

#[test]
fn draws_are_counted_with_seeds_of_their_own() {
    let (server, base) = Server::start();
    server.set(|state| state.labels = texts(&["War", "Peace"]));
    let with = r#"{"model":"m","api":"chat","draws":40,"smoothing":1.0,"timeout":"2s"}"#;
    let model = Remote::new(&base, settings(with), None).unwrap();
    let prompts = texts(&["<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n"]);
    let price = model.price(&prompts).unwrap();
    assert_eq!((price.requests, price.prompt_tokens), (40, 40 * (prompts[0].len() as u64 / 4 + 1)));
    let first = score(&model, &LABELS, &prompts).unwrap()[0].clone().unwrap();
    assert_eq!(first, score(&model, &LABELS, &prompts).unwrap()[0].clone().unwrap());
    let mass: f32 = first.iter().map(|l| l.exp()).sum();
    assert!((mass - 1.0).abs() < 1e-5);
    // One of forty and five, for a label that never came.
    assert!((first[4] - (1f32 / 45.0).ln()).abs() < 1e-6, "{first:?}");
    assert!(first[0] > first[4] && first[3] > first[4]);
    let state = server.state.lock().unwrap();
    let seeds: std::collections::BTreeSet<String> =
        state.bodies.iter().map(|body| body["seed"].to_string()).collect();
    assert_eq!(seeds.len(), 40);
    assert_eq!(state.bodies[0]["messages"][0]["content"], "Which?");
}

#[test]
fn writing_goes_over_the_wire_as_it_was_asked_for() {
    let (server, base) = Server::start();
    server.set(|state| state.labels = texts(&["\"tag\""]));
    let with = r#"{"model":"m","extra":{"top_k":3},"timeout":"2s"}"#;
    let model = Remote::new(&base, settings(with), None).unwrap();
    let mut how = Writing {
        max_tokens: 9,
        temperature: 0.5,
        top_p: 0.9,
        repetition_penalty: 1.5,
        stop: texts(&["."]),
        seed: 7,
        schema: Some(serde_json::json!({ "type": "string" }).into()),
    };
    let write = |how: &Writing| {
        let prompts = texts(&["Say"]);
        gather(1, |answered| model.write(how, &prompts, answered)).unwrap()
    };
    let (written, cost) = write(&how);
    let written = written[0].clone().unwrap();
    assert_eq!((written.text.as_str(), written.tokens, written.finished), (" \"TAG\"\n", 2, true));
    assert_eq!((cost.prompt_tokens, cost.completion_tokens, cost.requests), (10, 2, 1));
    let body = server.state.lock().unwrap().bodies[0].clone();
    for (name, value) in [
        ("max_tokens", "9"),
        ("temperature", "0.5"),
        ("top_p", "0.9"),
        ("repeat_penalty", "1.5"),
        ("stop", "[\".\"]"),
        ("top_k", "3"),
        ("json_schema", "{\"type\":\"string\"}"),
    ] {
        assert_eq!(body[name].to_string(), value, "{name}");
    }
    assert_eq!(body["response_format"]["type"], "json_schema");
    server.set(|state| state.labels = texts(&["no json"]));
    assert!(write(&how).0[0].clone().unwrap_err().contains("is no JSON"));
    server.set(|state| state.labels = texts(&["[7]"]));
    assert!(write(&how).0[0].clone().unwrap_err().contains("does not satisfy its schema"));
    how.schema = None;
    assert!(write(&how).0[0].is_ok());
}

#[test]
fn limits_are_kept_as_the_server_sees_them() {
    let (server, base) = Server::start();
    server.set(|state| (state.labels, state.pace) = (texts(&["War"]), Duration::from_millis(15)));
    let with =
        r#"{"model":"m","api":"chat","draws":1,"concurrency":3,"requests_per_minute":1200,"timeout":"2s"}"#;
    let model = Remote::new(&base, settings(with), None).unwrap();
    let prompts: Vec<String> = (0..70).map(|n| format!("prompt {n}")).collect();
    assert!(score(&model, &LABELS, &prompts).unwrap().iter().all(Result::is_ok));
    let state = server.state.lock().unwrap();
    assert_eq!(state.most, 3, "requests under way at once");
    for (at, time) in state.times.iter().enumerate() {
        // Twenty a second, and one second's worth at once; the server's clock starts a little late.
        let within = state.times[at..].iter().take_while(|t| **t - *time < Duration::from_secs(1)).count();
        assert!(within <= 42, "{within} requests in a second");
    }
    let took = state.times[69] - state.times[0];
    assert!(took > Duration::from_millis(2300), "50 of 70 waited for their turn: {took:?}");
}

#[test]
fn tokens_are_paced_by_what_the_server_counts() {
    let (server, base) = Server::start();
    server.set(|state| state.labels = texts(&["War"]));
    // Guessed at 30 tokens and more, counted as 12: forty requests in about two seconds.
    let with =
        r#"{"model":"m","api":"chat","draws":1,"concurrency":1,"tokens_per_minute":12000,"timeout":"2s"}"#;
    let model = Remote::new(&base, settings(with), None).unwrap();
    let prompts: Vec<String> = (0..50).map(|n| format!("prompt {n} {}", "word ".repeat(20))).collect();
    assert!(score(&model, &LABELS, &prompts).unwrap().iter().all(Result::is_ok));
    let state = server.state.lock().unwrap();
    let took = (state.times[49] - state.times[0]).as_secs_f64();
    // 600 tokens at 200 a second, 200 of them at once; by the guess it would be eight seconds.
    assert!((1.7..5.0).contains(&took), "{took}");
}

#[test]
fn a_refusal_is_told_and_not_repeated() {
    let (server, base) = Server::start();
    let with = r#"{"model":"m","api":"chat","draws":1,"concurrency":1,"timeout":"2s"}"#;
    for (status, whole) in [(401, true), (403, true), (404, true), (400, false), (422, false)] {
        let model = Remote::new(&base, settings(with), None).unwrap();
        server.set(|state| {
            state.refuse = Some((status, "no such\u{1b}[2J model".to_string()));
            state.requests = 0;
        });
        let answer = score(&model, &LABELS, &texts(&["a", "b"]));
        let (requests, cause) = match (whole, answer) {
            (true, Err(CallError::Unavailable(cause))) => (1, cause),
            (false, Ok(answers)) => (2, answers[0].clone().unwrap_err()),
            (_, other) => panic!("{status}: {other:?}"),
        };
        assert_eq!(server.state.lock().unwrap().requests, requests, "{status}");
        assert_eq!(cause, format!("the server answered {status}: no such [2J model"));
    }
}

#[test]
fn nothing_is_begun_after_a_break_and_what_was_begun_is_heard() {
    let (server, base) = Server::start();
    server.set(|state| (state.labels, state.pace) = (texts(&["War"]), Duration::from_millis(20)));
    let with = r#"{"model":"m","api":"chat","draws":1,"concurrency":2,"timeout":"2s"}"#;
    let model = Remote::new(&base, settings(with), None).unwrap();
    let prompts: Vec<String> = (0..50).map(|n| format!("prompt {n}")).collect();
    let mut heard = 0;
    let ended = model.score(&texts(&LABELS), &prompts, &mut |_, _| {
        heard += 1;
        if heard == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(ended.is_ok());
    assert!((5..10).contains(&heard), "{heard}");
    assert_eq!(server.paid().len(), heard);
}
