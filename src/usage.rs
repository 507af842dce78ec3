//! The usage of a turn, as far as its agent reports it.

use serde::{Deserialize, Serialize};

/// Tokens and money of one turn. What an agent does not report is none, not zero.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Input tokens, without those read from a cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_tokens: Option<i64>,
    /// Output tokens, reasoning included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<i64>,
    /// Input tokens read from a cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_read_tokens: Option<i64>,
    /// Tokens written to a cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_write_tokens: Option<i64>,
    /// The output tokens that were reasoning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_tokens: Option<i64>,
    /// The cost of the turn, in US dollars.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
    /// Tokens in the agent's context after the turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_tokens: Option<i64>,
    /// The size of its context, in tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_size: Option<i64>,
}

/// The maximum plausible count. It keeps sums over runs from overflowing, whatever an agent reports.
const MOST_TOKENS: i64 = 1_000_000_000_000;

impl Usage {
    /// The same with plausible counts only: none below zero or above 10¹² tokens.
    pub fn clamped(&self) -> Self {
        let tokens = |count: Option<i64>| count.map(|count| count.clamp(0, MOST_TOKENS));
        Self {
            input_tokens: tokens(self.input_tokens),
            output_tokens: tokens(self.output_tokens),
            cache_read_tokens: tokens(self.cache_read_tokens),
            cache_write_tokens: tokens(self.cache_write_tokens),
            reasoning_tokens: tokens(self.reasoning_tokens),
            cost_usd: self.cost_usd.map(|cost| cost.max(0.0)),
            context_tokens: tokens(self.context_tokens),
            context_size: tokens(self.context_size),
        }
    }

    /// The difference to `earlier`, when both count from the same start. The context values are the newest ones.
    pub fn since(&self, earlier: &Self) -> Self {
        let count = |total: Option<i64>, earlier: Option<i64>| Some(total?.saturating_sub(earlier.unwrap_or(0)).max(0));
        Self {
            input_tokens: count(self.input_tokens, earlier.input_tokens),
            output_tokens: count(self.output_tokens, earlier.output_tokens),
            cache_read_tokens: count(self.cache_read_tokens, earlier.cache_read_tokens),
            cache_write_tokens: count(self.cache_write_tokens, earlier.cache_write_tokens),
            reasoning_tokens: count(self.reasoning_tokens, earlier.reasoning_tokens),
            cost_usd: self.cost_usd.map(|total| (total - earlier.cost_usd.unwrap_or(0.0)).max(0.0)),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_agent_can_have_used_is_not_counted() {
        let said =
            Usage { input_tokens: Some(i64::MAX), output_tokens: Some(-1), cost_usd: Some(-0.5), ..Usage::default() };
        let counts =
            Usage { input_tokens: Some(MOST_TOKENS), output_tokens: Some(0), cost_usd: Some(0.0), ..Usage::default() };
        assert_eq!(said.clamped(), counts);
    }

    #[test]
    fn what_was_used_since_is_the_difference_and_never_less_than_nothing() {
        let total =
            Usage { input_tokens: Some(33), output_tokens: Some(2), context_tokens: Some(9), ..Usage::default() };
        let earlier = Usage { input_tokens: Some(22), output_tokens: Some(5), cost_usd: Some(1.0), ..Usage::default() };
        let since =
            Usage { input_tokens: Some(11), output_tokens: Some(0), context_tokens: Some(9), ..Usage::default() };
        assert_eq!(total.since(&earlier), since);
        assert_eq!(total.since(&Usage::default()), total);
    }
}
