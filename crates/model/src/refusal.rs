//! A refusal: why something is not begun, in words that a user can act on.

use alloc::string::String;
use core::fmt;

use serde::{Deserialize, Serialize};

/// One reason not to begin. Several can hold at once; all are reported together, before anything is touched.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refusal {
    /// What scripts match on: lower-case words with dashes (`option-not-allowed`). Codes are only ever added.
    pub code: String,
    /// What was expected and what was found.
    pub reason: String,
    /// What the user can do about it.
    pub remedy: String,
}

impl Refusal {
    /// A refusal from its three parts.
    pub fn new(code: &str, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { code: code.into(), reason: reason.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.code, self.reason, self.remedy)
    }
}
