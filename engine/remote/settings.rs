//! The parameters of a model on a server, as a pipeline writes them.
//!
//! Two kinds of them, and the difference matters: what decides an answer (server, name, interface,
//! way of scoring) is part of the model's digest and so of every memo key; how fast and how far a
//! run may go (limits, waits, budget, key) is not, so that tuning it keeps what was paid for.

use std::{collections::BTreeMap, time::Duration};

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value as Json;

pub use super::wait::Wait;
use crate::{price::Price, spec::Secret};

/// A language model on a server that speaks the OpenAI protocol; `base` is its URL. Only for a
/// `base` that is a URL: an embedded model takes no parameters.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The model's name on the server.
    pub model: String,
    /// The interface that is used.
    #[serde(default)]
    pub api: Api,
    /// How labels are scored: `forced` with `completions` and `draws` with `chat`, if absent.
    pub scoring: Option<Scoring>,
    /// Most probable tokens asked for at each position, at most what the server gives; 20 if absent.
    /// With `forced` it only saves requests, with `steps` it bounds what can be told apart.
    pub top: Option<u32>,
    /// The token that ends an answer, for `forced` and `steps`: `<|im_end|>` if absent.
    pub end: Option<String>,
    /// With `draws`, answers drawn for each prompt; 16 if absent.
    pub draws: Option<u32>,
    /// With `draws`, what is added to the count of every label; 0.5 if absent.
    pub smoothing: Option<f64>,
    /// With `draws`, whether the server is to allow nothing but labels. That changes the
    /// distribution; false if absent.
    pub constrain: Option<bool>,
    /// Names the weights behind `model` where the server's name does not, so that an exchange of
    /// them makes answers out of date.
    pub revision: Option<String>,
    /// Further parameters of every request for text, such as `{ top_k: 0 }`.
    #[serde(default)]
    pub extra: BTreeMap<String, Json>,
    /// The key that the server wants, `{ secret: NAME }`.
    pub key: Option<Secret>,
    /// Requests under way at once.
    #[serde(default = "concurrency")]
    pub concurrency: u32,
    /// Requests begun within a minute, at most.
    pub requests_per_minute: Option<f64>,
    /// Tokens asked for within a minute, at most.
    pub tokens_per_minute: Option<f64>,
    /// How long a request may take in all, such as 500ms, 60s or 2m.
    #[serde(default = "timeout")]
    pub timeout: Wait,
    /// How long a connection may take to come about.
    #[serde(default = "connect")]
    pub connect: Wait,
    /// How often a request is repeated that failed for a reason that may pass.
    #[serde(default = "retries")]
    pub retries: u32,
    /// The first wait before a repetition, at most; it doubles from one to the next.
    #[serde(default = "backoff")]
    pub backoff: Wait,
    /// The longest wait before a repetition, also where the server asks for more.
    #[serde(default = "max_wait")]
    pub max_wait: Wait,
    /// When a server counts as out of order.
    #[serde(default)]
    pub breaker: Breaking,
    /// What one process may spend on this model.
    #[serde(default)]
    pub budget: Budget,
}

/// An interface of the protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// `/chat/completions`: the prompt's turns as messages.
    Chat,
    /// `/completions`: the prompt as it is.
    #[default]
    Completions,
}

/// A way of scoring labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scoring {
    /// Every token of every label is forced by a bias, and its log-probability read. Exact; needs
    /// token ids, `/tokenize`, and log-probabilities from before the bias: llama.cpp, vLLM.
    Forced,
    /// The labels' texts are walked by the most probable tokens, over all ways to tokenise them. A
    /// label outside of `top` gets a bound.
    Steps,
    /// Answers are drawn and counted.
    Draws,
}

/// When a server counts as out of order.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Breaking {
    /// Failures in a row after which nothing is sent but a probe.
    pub after: u32,
    /// The time between two probes.
    pub pause: Wait,
    /// How long a run waits for the server before it ends.
    pub patience: Wait,
}

impl Default for Breaking {
    fn default() -> Self {
        Breaking { after: 12, pause: Wait::seconds(5), patience: Wait::seconds(120) }
    }
}

/// What one process may spend on a model.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// Prompts.
    pub calls: Option<u64>,
    /// Tokens, read and written.
    pub tokens: Option<u64>,
    /// Money, in the currency of the model's price.
    pub money: Option<f64>,
}

fn concurrency() -> u32 {
    4
}

fn timeout() -> Wait {
    Wait::seconds(60)
}

fn connect() -> Wait {
    Wait::seconds(10)
}

fn retries() -> u32 {
    8
}

fn backoff() -> Wait {
    Wait(Duration::from_millis(500))
}

fn max_wait() -> Wait {
    Wait::seconds(60)
}

/// Parameters of a request that are the engine's own.
const OWN: [&str; 16] = [
    "json_schema",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "messages",
    "model",
    "n",
    "prompt",
    "repeat_penalty",
    "repetition_penalty",
    "response_format",
    "seed",
    "stop",
    "stream",
    "temperature",
    "top_p",
];

/// JSON without a choice of how to write it: `serde_json` may keep the order of insertion.
fn canonical(value: &Json) -> String {
    match value {
        Json::Object(map) => {
            let sorted: BTreeMap<&String, String> = map.iter().map(|(k, v)| (k, canonical(v))).collect();
            format!("{sorted:?}")
        }
        Json::Array(items) => format!("{:?}", items.iter().map(canonical).collect::<Vec<_>>()),
        other => other.to_string(),
    }
}

/// A field that cannot be so, and why.
pub type Wrong = (&'static [&'static str], String);

impl Settings {
    /// How labels are scored.
    pub fn scoring(&self) -> Scoring {
        self.scoring.unwrap_or(match self.api {
            Api::Chat => Scoring::Draws,
            Api::Completions => Scoring::Forced,
        })
    }

    /// Most probable tokens asked for at each position.
    pub fn top(&self) -> u32 {
        self.top.unwrap_or(20)
    }

    /// The token that ends an answer.
    pub fn end(&self) -> &str {
        self.end.as_deref().unwrap_or("<|im_end|>")
    }

    /// Everything that no type can say.
    pub fn check(&self, price: Option<&Price>) -> Vec<Wrong> {
        let mut wrong: Vec<Wrong> = Vec::new();
        let mut need = |holds: bool, at: &'static [&'static str], why: &str| {
            if !holds {
                wrong.push((at, why.to_string()));
            }
        };
        need(!self.model.trim().is_empty(), &["model"], "the server's name of the model belongs here");
        need((1..=256).contains(&self.concurrency), &["concurrency"], "wants a number from 1 to 256");
        need(self.retries <= 100, &["retries"], "wants a number up to 100");
        need(self.breaker.after > 0, &["breaker", "after"], "wants 1 or more");
        let rate = |rate: Option<f64>| rate.is_none_or(|rate| rate.is_finite() && rate > 0.0);
        need(rate(self.requests_per_minute), &["requests_per_minute"], "wants a number above 0");
        need(rate(self.tokens_per_minute), &["tokens_per_minute"], "wants a number above 0");
        need(rate(self.budget.money), &["budget", "money"], "wants a number above 0");
        let priced = self.budget.money.is_none() || price.is_some();
        need(priced, &["budget", "money"], "needs a `price` of the model");
        let own = OWN.iter().find(|own| self.extra.contains_key(**own));
        need(
            own.is_none(),
            &["extra"],
            &format!("cannot hold `{}`, which the engine sets", own.unwrap_or(&"")),
        );
        self.check_scoring(&mut need);
        wrong
    }

    fn check_scoring(&self, need: &mut dyn FnMut(bool, &'static [&'static str], &str)) {
        let (scoring, chat) = (self.scoring(), self.api == Api::Chat);
        need(
            scoring == Scoring::Draws || !chat,
            &["scoring"],
            "needs `api: completions`; with chat there is `draws`",
        );
        let drawn = scoring == Scoring::Draws;
        need(drawn || self.draws.is_none(), &["draws"], "goes with `scoring: draws` only");
        need(drawn || self.smoothing.is_none(), &["smoothing"], "goes with `scoring: draws` only");
        need(drawn || self.constrain.is_none(), &["constrain"], "goes with `scoring: draws` only");
        need(!drawn || self.top.is_none(), &["top"], "goes with `scoring: forced` or `steps` only");
        need(!chat || self.end.is_none(), &["end"], "goes with `api: completions` only");
        need(
            self.draws.is_none_or(|n| (1..=10_000).contains(&n)),
            &["draws"],
            "wants a number from 1 to 10000",
        );
        need(self.top.is_none_or(|n| n > 0), &["top"], "wants 1 or more");
        need(self.end.as_deref() != Some(""), &["end"], "wants the text of a token");
        let positive = |x: f64| x.is_finite() && x > 0.0;
        need(self.smoothing.is_none_or(positive), &["smoothing"], "wants a number above 0");
    }

    /// What decides an answer, in one line.
    pub fn identity(&self, url: &str) -> String {
        let scoring = match self.scoring() {
            Scoring::Forced => format!("forced {:?}", self.end()),
            Scoring::Steps => format!("steps {} {:?}", self.top(), self.end()),
            Scoring::Draws => format!("draws {} {} {}", self.draws(), self.smoothing(), self.constrain()),
        };
        let extra: Vec<String> =
            self.extra.iter().map(|(name, value)| format!("{name}={}", canonical(value))).collect();
        let revision = self.revision.as_deref().unwrap_or_default();
        let parts = (url, &self.model, format!("{:?}", self.api), scoring, revision, extra);
        format!("remote/1 {parts:?}")
    }

    /// Answers drawn for each prompt.
    pub fn draws(&self) -> u32 {
        self.draws.unwrap_or(16)
    }

    /// What is added to the count of every label.
    pub fn smoothing(&self) -> f64 {
        self.smoothing.unwrap_or(0.5)
    }

    /// Whether the server is to allow nothing but labels.
    pub fn constrain(&self) -> bool {
        self.constrain.unwrap_or(false)
    }
}
