//! Whole vectors through the public interface: what people and tools write, what is refused, what an enemy would send.
#![cfg(test)]

mod common;
mod hostile;
mod refusals;
mod vectors;
