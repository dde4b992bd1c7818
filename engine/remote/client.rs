//! One request and its answer: sent within the limits, repeated while that may help, paid once.
//!
//! The only file that knows the HTTP crate. Blocking calls on plain threads: a few requests under
//! way do not need a runtime, and a thread that waits is easy to reason about. An answer counts when
//! it has come whole and parses; everything short of that may be asked again.

use std::time::Duration;

use coea_operators::shape::Cost;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use ureq::{Agent, http::Uri, typestate::WithBody};

use super::{
    breaker::{Breaker, Pass},
    failure::Failure,
    limits::{Meter, Pace, Ticket, tokens},
    protocol::Usage,
    retry,
    settings::Settings,
};
use crate::{price::Price, spec::Secret};

/// Bytes of an answer that are read at most.
const LIMIT: u64 = 256 << 20;
/// Characters of a server's words that are shown.
const SHOWN: usize = 300;

/// What a server is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// Below the base: `/completions`, `/chat/completions`.
    Api(&'static str),
    /// Beside the API's version: `/tokenize`.
    Root(&'static str),
}

/// A server, and what is known of it.
pub(super) struct Client {
    agent: Agent,
    base: String,
    key: Option<Secret>,
    retries: u32,
    backoff: Duration,
    max_wait: Duration,
    pace: Pace,
    pub breaker: Breaker,
    pub meter: Meter,
}

/// How one attempt ended.
enum Attempt<T> {
    Done(T),
    /// It may help to repeat it.
    Again(String, Option<Duration>),
    Never(Failure),
}

/// An answer that may say what it cost.
pub(super) trait Answer: DeserializeOwned {
    fn usage(&self) -> Option<&Usage>;
}

impl Client {
    /// A client of the server at `base`, which has no slash at its end.
    pub fn new(base: &str, settings: &Settings, price: Option<Price>) -> Self {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_idle_connections_per_host(settings.concurrency as usize)
            .timeout_connect(Some(settings.connect.0))
            .timeout_global(Some(settings.timeout.0));
        if loopback(base) {
            // A proxy of the environment leads away from this machine.
            config = config.proxy(None);
        }
        Client {
            agent: config.build().new_agent(),
            base: base.to_string(),
            key: settings.key.clone(),
            retries: settings.retries,
            backoff: settings.backoff.0,
            max_wait: settings.max_wait.0,
            pace: Pace::new(settings),
            breaker: Breaker::new(&settings.breaker),
            meter: Meter::new(settings.budget.clone(), price),
        }
    }

    /// Asks until there is an answer or no hope of one; what it cost is booked on the ticket.
    pub fn post<T: Answer>(
        &self,
        path: Path,
        body: &Json,
        expected: Cost,
        ticket: &mut Ticket<'_>,
    ) -> Result<(T, Cost), Failure> {
        ticket.check(expected)?;
        let bytes = body.to_string();
        let mut tries = 0;
        loop {
            let pass = self.breaker.admit()?;
            self.pace.wait(tokens(&expected));
            match self.attempt::<T>(path, bytes.as_bytes()) {
                Attempt::Done(answer) => {
                    self.breaker.good();
                    let mut cost = answer.usage().map_or(expected, Usage::cost);
                    cost.requests = 1;
                    self.pace.correct(tokens(&expected), tokens(&cost));
                    ticket.pay(cost);
                    return Ok((answer, cost));
                }
                Attempt::Never(failure) => {
                    self.breaker.good();
                    return Err(failure);
                }
                Attempt::Again(cause, asked) => {
                    self.breaker.bad(pass, &cause);
                    self.pace.correct(tokens(&expected), 0);
                    // A probe is the run's concern, not this question's.
                    tries += u32::from(pass == Pass::Normal);
                    if tries > self.retries {
                        return Err(Failure::Question(format!("{cause} (asked {tries} times)")));
                    }
                    std::thread::sleep(retry::pause(tries.max(1), asked, self.backoff, self.max_wait));
                }
            }
        }
    }

    fn attempt<T: DeserializeOwned>(&self, path: Path, body: &[u8]) -> Attempt<T> {
        let sent = self.request(path).send(body);
        let mut response = match sent {
            Ok(response) => response,
            Err(error @ (ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::Tls(_))) => {
                return Attempt::Never(Failure::Unavailable(self.clean(&error.to_string())));
            }
            Err(error) => return Attempt::Again(self.clean(&error.to_string()), None),
        };
        let status = response.status().as_u16();
        let asked = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
        let asked = asked.and_then(retry::retry_after);
        let bytes = match response.body_mut().with_config().limit(LIMIT).read_to_vec() {
            Ok(bytes) => bytes,
            Err(error) => return Attempt::Again(self.clean(&format!("{status}: {error}")), asked),
        };
        if !(200..300).contains(&status) {
            return self.refused(path, status, &bytes, asked);
        }
        match serde_json::from_slice(&bytes) {
            Ok(answer) => Attempt::Done(answer),
            Err(error) if error.is_data() => {
                Attempt::Never(Failure::Question(format!("the server's answer is of another form: {error}")))
            }
            Err(error) => Attempt::Again(format!("the server's answer is no JSON: {error}"), None),
        }
    }

    fn request(&self, path: Path) -> ureq::RequestBuilder<WithBody> {
        let url = match path {
            Path::Api(path) => format!("{}{path}", self.base),
            Path::Root(path) => format!("{}{path}", self.base.trim_end_matches("/v1")),
        };
        let request = self.agent.post(url).content_type("application/json");
        match &self.key {
            Some(key) => request.header("authorization", format!("Bearer {}", key.reveal())),
            None => request,
        }
    }

    /// What a status other than success means.
    fn refused<T>(&self, path: Path, status: u16, body: &[u8], asked: Option<Duration>) -> Attempt<T> {
        let words = self.words(body);
        let said = format!("the server answered {status}: {words}");
        match status {
            404 | 405 | 501 if matches!(path, Path::Root(_)) => {
                let help = "`scoring: forced` needs `/tokenize`; write `scoring: steps` or `draws`";
                Attempt::Never(Failure::Unfit(format!("{said}; {help}")))
            }
            408 | 409 | 425 | 429 | 500..=599 => Attempt::Again(said, asked),
            300..=399 | 401 | 403 | 404 => Attempt::Never(Failure::Unavailable(said)),
            _ => Attempt::Never(Failure::Question(said)),
        }
    }

    /// What a server said, for a person.
    fn words(&self, body: &[u8]) -> String {
        let text = String::from_utf8_lossy(body);
        let parsed: Option<Json> = serde_json::from_str(&text).ok();
        let message = parsed.as_ref().and_then(|json| {
            let error = &json["error"];
            error["message"].as_str().or(error.as_str()).or(json["message"].as_str())
        });
        self.clean(message.unwrap_or(&text))
    }

    /// Short, on one line, and without the key, even where a server repeats it.
    fn clean(&self, text: &str) -> String {
        let text = match self.key.as_ref().map(Secret::reveal).filter(|key| !key.is_empty()) {
            Some(key) => text.replace(key, "***"),
            None => text.to_string(),
        };
        let spaced: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let line = spaced.split_whitespace().collect::<Vec<_>>().join(" ");
        match line.char_indices().nth(SHOWN) {
            Some((cut, _)) => format!("{}…", &line[..cut]),
            None if line.is_empty() => "nothing".to_string(),
            None => line,
        }
    }
}

/// Whether a URL leads to this machine.
fn loopback(base: &str) -> bool {
    let host = base.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_string));
    host.is_some_and(|host| {
        let host = host.trim_matches(['[', ']']);
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    })
}

/// The URL of a server without a slash at its end, or what is wrong with it.
pub fn server(base: &str) -> Result<String, String> {
    let uri: Uri = base.trim_end_matches('/').parse().map_err(|_| "this is no URL".to_string())?;
    let authority = uri.authority().map(|authority| authority.as_str()).unwrap_or_default();
    if authority.is_empty() || uri.scheme().is_none() {
        return Err("this URL names no host".to_string());
    }
    if authority.contains('@') {
        return Err("a URL holds no credentials; write `key: { secret: NAME }`".to_string());
    }
    if base.contains(['?', '#']) {
        return Err("a URL of a server has no `?` and no `#`".to_string());
    }
    Ok(base.trim_end_matches('/').to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_s_words_are_one_short_line_without_the_key() {
        let mut settings: Settings = serde_json::from_str(r#"{"model":"m"}"#).unwrap();
        settings.key = Some(Secret::new("KEY", "sk-hunter2"));
        let client = Client::new("http://127.0.0.1:1", &settings, None);
        let body = br#"{"error":{"message":"bad key\u001b[31m\n sk-hunter2"}}"#;
        assert_eq!(client.words(body), "bad key [31m ***");
        assert_eq!(client.words(b"<html>\n502</html>"), "<html> 502</html>");
        assert_eq!(client.words(&[b'x'; 1000]).chars().count(), SHOWN + 1);
        assert_eq!(client.words(b""), "nothing");
    }

    #[test]
    fn urls_hold_a_host_and_no_credentials() {
        assert_eq!(server("http://127.0.0.1:8080/v1/"), Ok("http://127.0.0.1:8080/v1".to_string()));
        let credentials = format!("http://{}@127.0.0.1/v1", "me:pw");
        for wrong in ["http://", &credentials, "http://127.0.0.1/v1?x=1", "http://127.0.0.1 b"] {
            assert!(server(wrong).is_err(), "{wrong}");
        }
        for (base, here) in [
            ("http://127.0.0.1:80/v1", true),
            ("http://[::1]:80", true),
            ("http://localhost", true),
            ("https://github.com", false),
        ] {
            assert_eq!(loopback(base), here, "{base}");
        }
    }
}
