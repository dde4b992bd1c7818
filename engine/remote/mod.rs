//! Language models on servers that speak the OpenAI protocol.
//!
//! A question is one prompt and may take many requests; each thread works on one question at a time,
//! so what a kill can lose is the questions under way and no more. Answers reach the caller in the
//! order in which they are complete, and are kept from there on.

mod breaker;
mod client;
mod draws;
mod failure;
mod forced;
mod limits;
mod protocol;
mod retry;
pub mod settings;
mod steps;
mod wait;
mod write;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
};

use coea_operators::{
    language_model::{Answered, LanguageModel, Writing, Written},
    shape::{CallError, Cost},
};
use serde_json::Value as Json;

use self::{
    client::{Answer, Client, Path},
    failure::Failure,
    forced::Paths,
    limits::Ticket,
    settings::{Scoring, Settings},
};
use crate::price::Price;
pub use client::server;

/// A model on a server.
pub struct Remote {
    settings: Settings,
    identity: String,
    client: Client,
    /// What is known of the label sets that were asked about.
    paths: Mutex<BTreeMap<Vec<String>, Arc<Paths>>>,
    end: Mutex<Option<Arc<steps::End>>>,
}

/// A question under way.
struct Asking<'a> {
    settings: &'a Settings,
    client: &'a Client,
    ticket: Ticket<'a>,
    cost: Cost,
}

impl Asking<'_> {
    /// The answer to one request.
    fn post<T: Answer>(&mut self, path: Path, body: &Json, expected: Cost) -> Result<T, Failure> {
        let (answer, cost) = self.client.post(path, body, expected, &mut self.ticket)?;
        self.cost += cost;
        Ok(answer)
    }
}

/// A number that names a draw for a prompt; within what every server takes for a seed.
fn seed(draw: u64, prompt: &str) -> u32 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&draw.to_le_bytes());
    hasher.update(prompt.as_bytes());
    let bytes = hasher.finalize();
    u32::from_le_bytes([bytes.as_bytes()[0], bytes.as_bytes()[1], bytes.as_bytes()[2], bytes.as_bytes()[3]])
        >> 1
}

impl Remote {
    /// The model of a server; nothing is sent yet.
    ///
    /// # Errors
    /// If `base` is not the URL of a server.
    pub fn new(base: &str, settings: Settings, price: Option<Price>) -> Result<Self, String> {
        let base = server(base)?;
        Ok(Remote {
            identity: blake3::hash(settings.identity(&base).as_bytes()).to_hex().to_string(),
            client: Client::new(&base, &settings, price),
            settings,
            paths: Mutex::default(),
            end: Mutex::default(),
        })
    }

    fn asking<'a>(&'a self, ticket: Ticket<'a>) -> Asking<'a> {
        Asking { settings: &self.settings, client: &self.client, ticket, cost: Cost::default() }
    }

    /// The labels' tokens, asked for once.
    fn paths(&self, labels: &[String]) -> Result<(Arc<Paths>, Cost), Failure> {
        let mut known = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(paths) = known.get(labels) {
            return Ok((paths.clone(), Cost::default()));
        }
        let mut asking = self.asking(self.client.meter.aside());
        let paths = Arc::new(Paths::new(&mut asking, labels)?);
        known.insert(labels.to_vec(), paths.clone());
        Ok((paths, asking.cost))
    }

    /// The token that ends an answer, asked for once.
    fn end(&self) -> Result<(Arc<steps::End>, Cost), Failure> {
        let mut known = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(end) = &*known {
            return Ok((end.clone(), Cost::default()));
        }
        let mut asking = self.asking(self.client.meter.aside());
        let end = Arc::new(steps::End::new(&mut asking)?);
        *known = Some(end.clone());
        Ok((end, asking.cost))
    }

    /// Asks about every prompt, as many at once as the settings say, and tells answers as they come.
    ///
    /// A failure that concerns all of them ends it: no further question is begun, those under way are
    /// finished and heard.
    fn each<T: Send>(
        &self,
        prompts: &[String],
        answered: &mut Answered<'_, T>,
        expected: impl Fn(&str) -> Cost + Sync,
        ask: impl Fn(&mut Asking<'_>, &str) -> Result<T, Failure> + Sync,
    ) -> Result<Cost, CallError> {
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let ended: Mutex<Option<Failure>> = Mutex::new(None);
        let cost = Mutex::new(Cost::default());
        let work = |out: mpsc::Sender<(usize, Result<T, String>)>| {
            while !stop.load(Ordering::Relaxed) {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(prompt) = prompts.get(at) else { break };
                let answer = self.client.meter.begin(expected(prompt)).and_then(|ticket| {
                    let mut asking = self.asking(ticket);
                    let answer = ask(&mut asking, prompt);
                    *cost.lock().unwrap_or_else(PoisonError::into_inner) += asking.cost;
                    answer
                });
                let answer = match answer {
                    Ok(answer) => Ok(answer),
                    Err(Failure::Question(cause)) => Err(cause),
                    Err(failure) => {
                        stop.store(true, Ordering::Relaxed);
                        ended.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
                        break;
                    }
                };
                // Nobody listens any more only after a panic of the listener.
                let _ = out.send((at, answer));
            }
        };
        std::thread::scope(|scope| {
            let (out, answers) = mpsc::channel();
            for _ in 0..prompts.len().min(self.settings.concurrency as usize) {
                let out = out.clone();
                scope.spawn(|| work(out));
            }
            drop(out);
            for (at, answer) in answers {
                if answered(at, answer).is_break() {
                    stop.store(true, Ordering::Relaxed);
                }
            }
        });
        match ended.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(failure) => Err(failure.into()),
            None => Ok(cost.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

impl LanguageModel for Remote {
    fn digest(&self) -> String {
        self.identity.clone()
    }

    fn score(
        &self,
        labels: &[String],
        prompts: &[String],
        answered: &mut Answered<'_, Vec<f32>>,
    ) -> Result<Cost, CallError> {
        self.client.breaker.good();
        match self.settings.scoring() {
            Scoring::Forced => {
                let (paths, mut cost) = self.paths(labels)?;
                let ask = |asking: &mut Asking<'_>, prompt: &str| paths.score(asking, prompt);
                cost += self.each(prompts, answered, |prompt| paths.expected(prompt), ask)?;
                Ok(cost)
            }
            Scoring::Steps => {
                let (end, mut cost) = self.end()?;
                let ask = |asking: &mut Asking<'_>, prompt: &str| steps::score(asking, &end, labels, prompt);
                cost += self.each(prompts, answered, |prompt| steps::expected(labels, prompt), ask)?;
                Ok(cost)
            }
            Scoring::Draws => self.each(
                prompts,
                answered,
                |prompt| draws::expected(&self.settings, labels, prompt),
                |asking, prompt| draws::score(asking, labels, prompt),
            ),
        }
    }

    fn write(
        &self,
        how: &Writing,
        prompts: &[String],
        answered: &mut Answered<'_, Written>,
    ) -> Result<Cost, CallError> {
        self.client.breaker.good();
        self.each(
            prompts,
            answered,
            |prompt| write::expected(how, prompt),
            |asking, prompt| write::write(asking, how, prompt),
        )
    }

    fn price(&self, prompts: &[String]) -> Result<Cost, CallError> {
        // How many labels there are is not known here. A server that keeps beginnings, as those do
        // that can be forced, computes a prompt once; draws are as many requests as there are draws.
        let times = match self.settings.scoring() {
            Scoring::Draws => u64::from(self.settings.draws()),
            Scoring::Forced | Scoring::Steps => 1,
        };
        let tokens: u64 = prompts.iter().map(|prompt| protocol::guess(prompt)).sum();
        let requests = times * prompts.len() as u64;
        Ok(Cost { prompt_tokens: times * tokens, requests, ..Cost::default() })
    }
}
