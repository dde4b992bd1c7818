//! A server that speaks the protocol and misbehaves by a schedule.
//!
//! Its model is a hash, so what it should have answered is known without it. What it answered whole
//! is counted by the request's bytes: that is what a provider would bill.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value as Json, json};

/// What a request is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    TooMany,
    TooManyFor(&'static str),
    Broken,
    Hang,
    CutJson,
    CutBody,
    Closed,
}

/// Of twenty faults, one hangs: it costs the test a whole timeout.
const FAULTS: [Fault; 20] = [
    Fault::TooMany,
    Fault::TooManyFor("0"),
    Fault::TooManyFor("3600"),
    Fault::TooManyFor("Sun, 06 Nov 1994 08:49:37 GMT"),
    Fault::Broken,
    Fault::CutJson,
    Fault::CutBody,
    Fault::Closed,
    Fault::Hang,
    Fault::TooMany,
    Fault::Broken,
    Fault::CutJson,
    Fault::CutBody,
    Fault::Closed,
    Fault::TooMany,
    Fault::Broken,
    Fault::CutJson,
    Fault::CutBody,
    Fault::Closed,
    Fault::Broken,
];

/// How the server behaves from now on, and what it saw.
#[derive(Default)]
pub struct Server {
    pub state: Mutex<State>,
}

#[derive(Default)]
pub struct State {
    /// Of a hundred requests, so many meet a fault.
    pub faults: u64,
    /// Every request is refused so.
    pub refuse: Option<(u16, String)>,
    /// Connections are closed at once.
    pub down: bool,
    /// After so many whole answers it goes down.
    pub down_after: Option<usize>,
    /// How long an answer takes.
    pub pace: Duration,
    /// What draws answer, by hash; of them, those that prompts with this in them get instead.
    pub labels: Vec<String>,
    pub nonsense_on: Option<String>,
    /// Requests, and how many of each fault there were.
    pub requests: u64,
    pub met: BTreeMap<String, u64>,
    /// Whole answers by path and body.
    pub answered: BTreeMap<(String, String), u64>,
    /// When each request came, how many were under way, and the most at once.
    pub times: Vec<Instant>,
    pub under_way: u64,
    pub most: u64,
    /// Authorizations that came.
    pub keys: Vec<String>,
    /// Bodies in the order of their coming.
    pub bodies: Vec<Json>,
    ids: BTreeMap<String, u32>,
    texts: Vec<String>,
}

impl Server {
    /// Starts one; gives its base.
    pub fn start() -> (Arc<Self>, String) {
        let server = Arc::new(Server::default());
        server.state.lock().unwrap().id("<|im_end|>");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}/v1", listener.local_addr().unwrap());
        let accepting = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (server, stream) = (accepting.clone(), stream.unwrap());
                std::thread::spawn(move || server.talk(stream));
            }
        });
        (server, base)
    }

    /// Whole answers to questions, which are what is paid for.
    pub fn paid(&self) -> BTreeMap<String, u64> {
        let state = self.state.lock().unwrap();
        let questions = state.answered.iter().filter(|((path, _), _)| path != "/tokenize");
        questions.map(|((path, body), n)| (format!("{path} {body}"), *n)).collect()
    }

    pub fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    fn talk(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut stream = stream;
        while let Some((path, key, body)) = request(&mut reader) {
            let (fault, pace) = self.note(key, &body);
            std::thread::sleep(pace);
            let whole = self.answer(&mut stream, fault, &path, &body);
            let mut state = self.state.lock().unwrap();
            state.under_way -= 1;
            if !whole {
                return;
            }
        }
    }

    /// Books a request and says how it fares.
    fn note(&self, key: Option<String>, body: &str) -> (Option<Fault>, Duration) {
        let mut state = self.state.lock().unwrap();
        state.requests += 1;
        state.times.push(Instant::now());
        state.under_way += 1;
        state.most = state.most.max(state.under_way);
        state.keys.extend(key);
        state.bodies.push(serde_json::from_str(body).unwrap());
        if state.down {
            return (Some(Fault::Closed), Duration::ZERO);
        }
        let draw = hash(&[&format!("schedule {}", state.requests)]);
        let fault = (draw % 100 < state.faults).then(|| FAULTS[(draw / 100) as usize % FAULTS.len()]);
        if let Some(fault) = fault {
            *state.met.entry(format!("{fault:?}")).or_default() += 1;
        }
        (fault, state.pace)
    }

    /// Answers, well or not; says whether the connection goes on.
    fn answer(&self, stream: &mut TcpStream, fault: Option<Fault>, path: &str, body: &str) -> bool {
        let answer = self.state.lock().unwrap().model(path, &serde_json::from_str(body).unwrap());
        let text = answer.to_string();
        let refused = self.state.lock().unwrap().refuse.clone();
        if let Some((status, words)) = refused {
            return send(stream, status, "", &json!({ "error": { "message": words } }).to_string());
        }
        match fault {
            None => {
                let mut state = self.state.lock().unwrap();
                *state.answered.entry((path.to_string(), body.to_string())).or_default() += 1;
                if state.down_after.is_some_and(|most| state.answered.len() >= most) {
                    state.down = true;
                }
                drop(state);
                send(stream, 200, "", &text)
            }
            Some(Fault::TooMany) => send(stream, 429, "", "{\"error\":\"slow down\"}"),
            Some(Fault::TooManyFor(wait)) => send(stream, 429, &format!("Retry-After: {wait}\r\n"), "{}"),
            Some(Fault::Broken) => send(stream, 500, "", "<html>oops</html>"),
            Some(Fault::Hang) => {
                std::thread::sleep(HANG);
                false
            }
            Some(Fault::CutJson) => send(stream, 200, "", &text[..text.len() * 2 / 3]),
            Some(Fault::CutBody) => {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", text.len());
                let _ = stream.write_all(&[head.as_bytes(), &text.as_bytes()[..text.len() / 2]].concat());
                false
            }
            Some(Fault::Closed) => false,
        }
    }
}

/// Longer than the timeout of the tests' models.
pub const HANG: Duration = Duration::from_millis(2500);

fn send(stream: &mut TcpStream, status: u16, headers: &str, body: &str) -> bool {
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).is_ok()
}

/// Path, authorization and body of the next request; nothing at the connection's end.
fn request(reader: &mut BufReader<TcpStream>) -> Option<(String, Option<String>, String)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let path = line.split(' ').nth(1)?.to_string();
    let (mut length, mut key) = (0, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok().filter(|n| *n > 0)?;
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        match name.to_lowercase().as_str() {
            "content-length" => length = value.parse().ok()?,
            "authorization" => key = Some(value.to_string()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path, key, String::from_utf8(body).ok()?))
}

/// A number from texts.
pub fn hash(parts: &[&str]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    parts.iter().for_each(|part| {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    });
    u64::from_le_bytes(hasher.finalize().as_bytes()[..8].try_into().unwrap())
}

/// The log-probability of a token after a text, from -4 to -12.
pub fn logprob(model: &str, text: &str, token: &str) -> f64 {
    -4.0 - 8.0 * (hash(&[model, text, token]) % 10_000) as f64 / 10_000.0
}

/// Tokens are words with the space before them.
pub fn words(text: &str) -> Vec<String> {
    if text == "<|im_end|>" {
        return vec![text.to_string()];
    }
    let mut words: Vec<String> = Vec::new();
    for c in text.chars() {
        match words.last_mut() {
            Some(word) if c != ' ' => word.push(c),
            _ => words.push(c.to_string()),
        }
    }
    words
}

impl State {
    fn id(&mut self, text: &str) -> u32 {
        let next = self.ids.len() as u32;
        let id = *self.ids.entry(text.to_string()).or_insert(next);
        if id == next {
            self.texts.push(text.to_string());
        }
        id
    }

    /// What the model answers.
    fn model(&mut self, path: &str, body: &Json) -> Json {
        let model = body["model"].as_str().unwrap().to_string();
        if path == "/tokenize" {
            let words = words(body["content"].as_str().unwrap());
            return json!({ "tokens": words.iter().map(|word| self.id(word)).collect::<Vec<_>>() });
        }
        let usage = json!({ "prompt_tokens": 10, "completion_tokens": 2 });
        let choice = match (&body["prompt"], body["logprobs"].as_u64()) {
            (Json::Array(ids), Some(_)) => {
                let text: String =
                    ids.iter().map(|id| self.texts[id.as_u64().unwrap() as usize].as_str()).collect();
                let bias = body["logit_bias"].as_object().unwrap();
                let id: usize = bias.keys().next().unwrap().parse().unwrap();
                json!({ "logprobs": { "content": [self.entry(&model, &text, id)] }, "finish_reason": "length" })
            }
            (Json::String(text), Some(top)) => self.top(&model, text, top as usize),
            _ => self.text(&model, body),
        };
        json!({ "choices": [choice], "usage": usage })
    }

    fn entry(&self, model: &str, text: &str, id: usize) -> Json {
        let token = &self.texts[id];
        let shown = if id == 0 { "" } else { token };
        json!({ "id": id, "token": shown, "bytes": shown.as_bytes(), "logprob": logprob(model, text, token),
            "top_logprobs": [] })
    }

    /// The words that labels go on with after a prompt, most probable first.
    fn top(&mut self, model: &str, text: &str, top: usize) -> Json {
        let known: Vec<String> = self.ids.keys().cloned().collect();
        let ids: Vec<usize> = known.iter().map(|word| self.id(word) as usize).collect();
        let mut entries: Vec<Json> = ids.into_iter().map(|id| self.entry(model, text, id)).collect();
        entries.sort_by(|a, b| b["logprob"].as_f64().unwrap().total_cmp(&a["logprob"].as_f64().unwrap()));
        entries.truncate(top);
        let mut first = entries[0].clone();
        first["top_logprobs"] = json!(entries);
        json!({ "logprobs": { "content": [first] }, "finish_reason": "length" })
    }

    /// A draw of a label, or nonsense.
    fn text(&self, model: &str, body: &Json) -> Json {
        let asked = format!("{}{}", body["prompt"], body["messages"]);
        let nonsense = self.nonsense_on.as_ref().is_some_and(|marker| asked.contains(marker));
        let draw = hash(&[model, &asked, &body["seed"].to_string()]) as usize;
        let text = match (nonsense, self.labels.is_empty()) {
            (false, false) => self.labels[draw % self.labels.len()].clone(),
            _ => "I would rather not say".to_string(),
        };
        let text = format!(" {}\n", text.to_uppercase());
        json!({ "text": text, "message": { "role": "assistant", "content": text }, "finish_reason": "stop" })
    }
}
