//! The brain: source and destination machines, tracker, policies.
