//! Changes to inputs. Each takes an input that means something and breaks it somewhere.

mod bytes;
mod json;
mod lines;

use sterna_sim::random::Random;

/// A way to change an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutator {
    /// Bits, bytes, numbers, pieces.
    Bytes,
    /// Values, keys and structure of a JSON document; what is none is changed as bytes.
    Json,
    /// Lines of a text, and the value in one.
    Lines,
}

/// What a change can draw from.
#[derive(Clone, Copy, Debug)]
pub struct Material<'a> {
    /// Another input.
    pub other: &'a [u8],
    /// Words of the format.
    pub tokens: &'a [&'a [u8]],
    /// Bytes of an input, at most.
    pub max_bytes: usize,
}

impl Material<'_> {
    fn token(&self, random: &mut Random) -> &[u8] {
        self.tokens.get(random.index(self.tokens.len())).copied().unwrap_or(b"\0")
    }
}

/// Changes `input` in some places: in one as often as not, in more less often.
pub fn mutate(input: &mut Vec<u8>, with: &[Mutator], material: Material<'_>, random: &mut Random) {
    loop {
        match with.get(random.index(with.len() + 1)) {
            Some(Mutator::Json) => json::change(input, material, random),
            Some(Mutator::Lines) => lines::change(input, material, random),
            Some(Mutator::Bytes) | None => bytes::change(input, material, random),
        }
        input.truncate(material.max_bytes);
        if random.chance(500) {
            return;
        }
    }
}

/// Numbers at which code goes wrong.
fn telling_number(random: &mut Random) -> u64 {
    let power = 1_u64 << random.below(64);
    match random.below(6) {
        0 => 0,
        1 => u64::MAX,
        2 => power,
        3 => power.wrapping_sub(1),
        4 => power.wrapping_add(random.below(4)),
        _ => random.below(300),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: &[&[u8]] = &[b"ram", b"dirty-bitmap"];

    fn changed(start: &[u8], with: &[Mutator], seed: u64) -> Vec<u8> {
        let mut input = start.to_vec();
        let material = Material { other: b"another input", tokens: TOKENS, max_bytes: 200 };
        mutate(&mut input, with, material, &mut Random::new(seed));
        input
    }

    #[test]
    fn a_seed_decides_and_the_limit_holds() {
        for with in [&[Mutator::Bytes][..], &[Mutator::Json], &[Mutator::Lines]] {
            let start = br#"{"a":[1,{"b":"x"}],"c":null}"#;
            for seed in 0..2000 {
                let input = changed(start, with, seed);
                assert!(input.len() <= 200);
                assert_eq!(input, changed(start, with, seed));
            }
        }
    }

    #[test]
    fn most_changes_change_and_nothing_is_too_small() {
        for with in [&[Mutator::Bytes][..], &[Mutator::Json], &[Mutator::Lines]] {
            for start in [&b""[..], b"x", b"key = 7\nother = \"x\"\n", br#"{"k":7}"#] {
                let same = (0..400).filter(|seed| changed(start, with, *seed) == start).count();
                assert!(same < 250, "{with:?} of {start:?}: {same} of 400 are the same");
            }
        }
    }
}
