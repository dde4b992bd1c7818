//! What a model's tokens cost in money.
//!
//! A price is no part of a model's identity: a new price list changes what a run costs and nothing
//! of what it answers. Tokens of a prompt that were computed before have a price of their own,
//! because servers discount them, and one's own machine gives them away.

use coea_operators::shape::Cost;
use schemars::JsonSchema;
use serde::Deserialize;

/// Money for a million tokens.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// A million tokens of prompts.
    pub prompt: f64,
    /// A million tokens of prompts that were computed before; as `prompt` if absent.
    pub cached: Option<f64>,
    /// A million tokens written; as `prompt` if absent.
    pub completion: Option<f64>,
    /// The currency, such as USD; one for all models of a pipeline.
    pub currency: String,
}

impl Price {
    /// What these tokens cost.
    pub fn of(&self, cost: &Cost) -> f64 {
        let parts = [
            (cost.prompt_tokens, self.prompt),
            (cost.reused_prompt_tokens, self.cached.unwrap_or(self.prompt)),
            (cost.completion_tokens, self.completion.unwrap_or(self.prompt)),
        ];
        parts.iter().map(|(tokens, price)| *tokens as f64 * price).sum::<f64>() / 1e6
    }

    /// The first field that cannot be, and why.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let fields =
            [("prompt", Some(self.prompt)), ("cached", self.cached), ("completion", self.completion)];
        for (name, price) in fields {
            if price.is_some_and(|price| !(price.is_finite() && price >= 0.0)) {
                return Err((name, format!("`{name}` wants money for a million tokens, 0 or more")));
            }
        }
        if self.currency.is_empty() || !self.currency.chars().all(char::is_alphanumeric) {
            return Err(("currency", "`currency` wants a name such as USD".to_string()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_token_has_its_price() {
        let mut price =
            Price { prompt: 2.0, cached: Some(0.5), completion: Some(8.0), currency: "USD".to_string() };
        let cost = Cost {
            prompt_tokens: 1_000_000,
            reused_prompt_tokens: 2_000_000,
            completion_tokens: 500_000,
            ..Cost::default()
        };
        assert_eq!(price.of(&cost), 2.0 + 1.0 + 4.0);
        (price.cached, price.completion) = (None, None);
        assert_eq!(price.of(&cost), 2.0 + 4.0 + 1.0);
        assert_eq!(price.check(), Ok(()));
        price.cached = Some(-1.0);
        assert_eq!(price.check().unwrap_err().0, "cached");
    }
}
