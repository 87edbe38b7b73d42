//! The format of a page: its content is a function of (seed, index, sequence), so that every byte
//! can be generated again and compared.
//!
//! ```text
//! random, text:  u64 sequence << 32 | check(seed, index, sequence)   u64 index   body…
//! duplicate:     one of 16 patterns, no header: the sequence chooses which
//! zero:          all zero until it is written first, then as random
//! ```
//!
//! A whole-page write gives header and body of the new sequence. A word write (the sparse load)
//! replaces the first 8 bytes by the sequence word and leaves the rest as it was filled. Little
//! endian.

use crate::options::Shares;
use crate::text;

/// Bytes in a page of x86.
pub(crate) const PAGE_BYTES: usize = 4096;

const HEADER_BYTES: usize = 16;
const PATTERNS: u64 = 16;

/// One page of memory, aligned as the guest's pages are (and as direct I/O wants it).
#[derive(Clone, PartialEq, Eq)]
#[repr(C, align(4096))]
pub(crate) struct Page(pub(crate) [u8; PAGE_BYTES]);

impl Page {
    /// A page of zeros.
    pub(crate) const ZERO: Self = Self([0; PAGE_BYTES]);

    /// The first 8 bytes.
    pub(crate) fn first_word(&self) -> u64 {
        self.0.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    /// Writes the first 8 bytes and nothing else.
    pub(crate) fn set_first_word(&mut self, word: u64) {
        self.0[..8].copy_from_slice(&word.to_le_bytes());
    }
}

/// How much of a page a write replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touch {
    /// All of it: new content.
    Whole,
    /// The first 8 bytes.
    Word,
}

/// What a page is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Incompressible.
    Random,
    /// English-like words.
    Text,
    /// Equal to one of 16 patterns.
    Duplicate,
    /// Zero until it is written.
    Zero,
}

/// What a page that is not as expected looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Its header is sound and has this sequence: stale, or its body is corrupt.
    Sequence(u32),
    /// All zero: lost.
    Zero,
    /// One of the patterns, but not the expected one.
    Pattern(u64),
    /// Nothing that this page ever was.
    Foreign,
}

/// Generates the content of every page of one working set.
#[derive(Clone, Debug)]
pub(crate) struct PageFormat {
    seed: u64,
    shares: Shares,
    touch: Touch,
}

impl PageFormat {
    /// Page contents for a seed, in the given shares, changed by writes of one kind.
    pub(crate) fn new(seed: u64, shares: Shares, touch: Touch) -> Self {
        Self { seed, shares, touch }
    }

    /// What the page is filled with.
    pub(crate) fn content(&self, index: u32) -> Content {
        let draw = self.hash(1, index, 0) % 100;
        let text = u64::from(self.shares.text);
        let duplicate = text + u64::from(self.shares.duplicate);
        match draw {
            draw if draw < text => Content::Text,
            draw if draw < duplicate => Content::Duplicate,
            draw if draw < duplicate + u64::from(self.shares.random) => Content::Random,
            _ => Content::Zero,
        }
    }

    /// The first 8 bytes that the page has at this sequence.
    pub(crate) fn first_word(&self, index: u32, sequence: u32) -> u64 {
        match self.content(index) {
            Content::Zero if sequence == 0 => 0,
            Content::Duplicate if sequence == 0 || self.touch == Touch::Whole => {
                next_random(self.pattern_state(self.pattern(index, sequence)))
            }
            _ => self.sequence_word(index, sequence),
        }
    }

    /// Writes the whole content that the page has at this sequence.
    pub(crate) fn generate(&self, index: u32, sequence: u32, page: &mut Page) {
        let body_sequence = match self.touch {
            Touch::Whole => sequence,
            Touch::Word => 0,
        };
        let body_state = self.hash(2, index, body_sequence) | 1;
        match self.content(index) {
            Content::Zero if body_sequence == 0 => page.0.fill(0),
            Content::Random | Content::Zero => {
                fill_random(body_state, &mut page.0[HEADER_BYTES..]);
                self.set_index(index, page);
            }
            Content::Text => {
                text::fill(body_state, &mut page.0[HEADER_BYTES..]);
                self.set_index(index, page);
            }
            Content::Duplicate => {
                let pattern = self.pattern(index, body_sequence);
                fill_random(self.pattern_state(pattern), &mut page.0);
            }
        }
        page.set_first_word(self.first_word(index, sequence));
    }

    /// Says what a page that differs from its expected content is instead.
    pub(crate) fn identify(&self, index: u32, page: &Page) -> Found {
        if *page == Page::ZERO {
            return Found::Zero;
        }
        let word = page.first_word();
        let sequence = u32::try_from(word >> 32).unwrap_or(u32::MAX);
        if word == self.sequence_word(index, sequence) {
            return Found::Sequence(sequence);
        }
        let pattern = (0..PATTERNS).find(|k| next_random(self.pattern_state(*k)) == word);
        pattern.map_or(Found::Foreign, Found::Pattern)
    }

    fn set_index(&self, index: u32, page: &mut Page) {
        page.0[8..HEADER_BYTES].copy_from_slice(&u64::from(index).to_le_bytes());
    }

    fn sequence_word(&self, index: u32, sequence: u32) -> u64 {
        u64::from(sequence) << 32 | self.hash(3, index, sequence) >> 32
    }

    /// Consecutive sequences have different patterns.
    fn pattern(&self, index: u32, sequence: u32) -> u64 {
        (self.hash(4, index, 0) % PATTERNS + u64::from(sequence)) % PATTERNS
    }

    fn pattern_state(&self, pattern: u64) -> u64 {
        mix(self.seed ^ mix(5).wrapping_add(pattern)) | 1
    }

    fn hash(&self, domain: u64, index: u32, sequence: u32) -> u64 {
        mix(mix(self.seed ^ mix(domain)) ^ (u64::from(index) << 32 | u64::from(sequence)))
    }
}

/// Fills with words of the xorshift generator: sequential on purpose, because a vectorised
/// generator is far slower when the guest's instructions are emulated.
pub(crate) fn fill_random(mut state: u64, bytes: &mut [u8]) {
    for chunk in bytes.chunks_exact_mut(8) {
        state = next_random(state);
        chunk.copy_from_slice(&state.to_le_bytes());
    }
}

/// One step of a 64-bit xorshift; a state other than 0 never becomes 0.
pub(crate) fn next_random(mut state: u64) -> u64 {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    state
}

/// Spreads every bit of the input over the output (the finaliser of splitmix64).
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
#[path = "page_tests.rs"]
mod tests;
