//! A circuit breaker: after so many failures in a row nothing is sent but one probe at a time.
//!
//! A server that is down is not helped by every thread knocking, and a question must not use up its
//! repetitions on an outage. So while the breaker is open everybody waits, probes cost a question
//! nothing, and when patience ends the run ends as a whole, with what was answered kept.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{failure::Failure, settings::Breaking};

/// How often those who wait look again.
const LOOK: Duration = Duration::from_millis(10);

/// The breaker of one server.
pub(super) struct Breaker {
    after: u32,
    pause: Duration,
    patience: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Failures in a row.
    failures: u32,
    /// Since when it is open, and when the next probe may go.
    open: Option<(Instant, Instant)>,
    probing: bool,
    /// What the last failure said.
    cause: String,
}

/// How a request was let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// As usual.
    Normal,
    /// To see whether the server is back.
    Probe,
}

impl Breaker {
    pub fn new(settings: &Breaking) -> Self {
        Breaker {
            after: settings.after,
            pause: settings.pause.0,
            patience: settings.patience.0,
            state: Mutex::default(),
        }
    }

    /// Waits until a request may go.
    ///
    /// # Errors
    /// If patience ends before.
    pub fn admit(&self) -> Result<Pass, Failure> {
        loop {
            if let Some(pass) = self.try_admit(Instant::now())? {
                return Ok(pass);
            }
            std::thread::sleep(LOOK);
        }
    }

    fn try_admit(&self, now: Instant) -> Result<Option<Pass>, Failure> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((since, next)) = state.open else { return Ok(Some(Pass::Normal)) };
        if now.saturating_duration_since(since) > self.patience {
            let (failures, cause) = (state.failures, &state.cause);
            let message = format!("the server failed {failures} times in a row, last with: {cause}");
            return Err(Failure::Unavailable(message));
        }
        if now < next || state.probing {
            return Ok(None);
        }
        state.probing = true;
        Ok(Some(Pass::Probe))
    }

    /// Notes that the server answered, or that a run begins, which has patience of its own.
    pub fn good(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State::default();
    }

    /// Notes a failure.
    pub fn bad(&self, pass: Pass, cause: &str) {
        self.fail(pass, cause, Instant::now());
    }

    fn fail(&self, pass: Pass, cause: &str, now: Instant) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.failures += 1;
        state.cause = cause.to_string();
        match (pass, state.open) {
            (Pass::Probe, Some((since, _))) => {
                state.probing = false;
                state.open = Some((since, now + self.pause));
            }
            (_, None) if state.failures >= self.after => state.open = Some((now, now + self.pause)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::settings::Wait;

    #[test]
    fn it_opens_probes_one_at_a_time_and_loses_patience() {
        let seconds = Duration::from_secs;
        let settings = Breaking { after: 3, pause: Wait(seconds(5)), patience: Wait(seconds(60)) };
        let breaker = Breaker::new(&settings);
        let start = Instant::now();
        for _ in 0..2 {
            breaker.fail(Pass::Normal, "reset", start);
        }
        breaker.good();
        for _ in 0..2 {
            breaker.fail(Pass::Normal, "reset", start);
        }
        assert_eq!(breaker.try_admit(start), Ok(Some(Pass::Normal)), "only failures in a row count");
        breaker.fail(Pass::Normal, "reset", start);
        assert_eq!(breaker.try_admit(start + seconds(4)), Ok(None));
        assert_eq!(breaker.try_admit(start + seconds(5)), Ok(Some(Pass::Probe)));
        assert_eq!(breaker.try_admit(start + seconds(6)), Ok(None), "one probe at a time");
        breaker.fail(Pass::Normal, "a late one", start + seconds(7));
        assert_eq!(breaker.try_admit(start + seconds(8)), Ok(None), "the probe is still under way");
        breaker.fail(Pass::Probe, "refused", start + seconds(9));
        assert_eq!(breaker.try_admit(start + seconds(13)), Ok(None));
        assert_eq!(breaker.try_admit(start + seconds(14)), Ok(Some(Pass::Probe)));
        breaker.fail(Pass::Probe, "refused", start + seconds(15));
        let ended = breaker.try_admit(start + seconds(61)).unwrap_err();
        assert!(matches!(&ended, Failure::Unavailable(said) if said.ends_with("refused")), "{ended:?}");
        breaker.good();
        assert_eq!(breaker.try_admit(start + seconds(62)), Ok(Some(Pass::Normal)));
    }
}
