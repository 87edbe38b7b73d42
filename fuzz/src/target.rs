//! A target: what is fed, what has to hold, and how inputs are made.

use arbitrary::Unstructured;

use crate::mutate::Mutator;

/// One thing that is fuzzed.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name: of its row, of its folder below `corpus/`, in `replay`.
    pub name: &'static str,
    /// What it feeds, for people.
    pub about: &'static str,
    /// Feeds one input; panics when a property does not hold.
    pub run: fn(&[u8]) -> Outcome,
    /// Makes an input by the grammar of the format.
    pub make: fn(&mut Unstructured<'_>) -> arbitrary::Result<Made>,
    /// Ways to change an input beyond those for bytes.
    pub mutators: &'static [Mutator],
    /// Words of the format, to be put in anywhere.
    pub tokens: &'static [&'static [u8]],
    /// Bytes in an input, at most.
    pub max_bytes: usize,
    /// Inputs that lie elsewhere in the repository, by their paths from its root.
    pub borrowed: &'static [&'static str],
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Target({})", self.name)
    }
}

/// An input by the grammar of its format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// The input.
    pub bytes: Vec<u8>,
    /// What the target has to say to it; `None` where it may say anything.
    pub expected: Option<Verdict>,
}

impl Made {
    /// An input that has to be accepted.
    #[must_use]
    pub const fn valid(bytes: Vec<u8>) -> Self {
        Self { bytes, expected: Some(Verdict::Accepted) }
    }

    /// An input that may be either.
    #[must_use]
    pub const fn anything(bytes: Vec<u8>) -> Self {
        Self { bytes, expected: None }
    }
}

/// Whether an input was taken for what it pretends to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was.
    Accepted,
    /// It was not, with an error.
    Refused,
}

/// What came of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Whether it was accepted.
    pub verdict: Verdict,
    /// The kind of error, or the shape of the result: inputs with the same signature count as alike.
    pub signature: String,
}

impl Outcome {
    /// It was accepted, and has this shape.
    #[must_use]
    pub fn accepted(signature: impl Into<String>) -> Self {
        Self { verdict: Verdict::Accepted, signature: signature.into() }
    }

    /// It was refused in this way.
    #[must_use]
    pub fn refused(signature: impl Into<String>) -> Self {
        Self { verdict: Verdict::Refused, signature: signature.into() }
    }
}
