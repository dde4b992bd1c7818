//! Why a question to a server has no answer, sorted by who has to know.

use coea_operators::shape::CallError;

/// Why a question has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// This question alone: it becomes an error row.
    Question(String),
    /// Whatever is asked: the server is out of reach, or refuses.
    Unavailable(String),
    /// Whatever is asked: the server does not do what the pipeline wants of it.
    Unfit(String),
    /// The budget is spent.
    Spent(String),
}

impl From<Failure> for CallError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Question(cause) | Failure::Unfit(cause) => CallError::Failed(cause),
            Failure::Unavailable(cause) => CallError::Unavailable(cause),
            Failure::Spent(cause) => CallError::Spent(cause),
        }
    }
}
