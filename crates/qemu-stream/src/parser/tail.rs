//! Whether the tail is whole. Device sections have no length, so they cannot be walked; but behind them stands their
//! description, whose length is known and which is text: it holds no NUL byte. So the last place that looks like
//! "footer, end of file, description of n bytes, `{`" with no NUL after it is the description, and the tail is whole
//! when exactly n bytes stand there and the last is `}`.

use crate::format::{MAX_DESCRIPTION_BYTES, section};

/// Watches the bytes of a tail go by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TailScan {
    bytes: u64,
    /// The last 16 bytes, the latest lowest.
    window: u128,
    /// Where the description stands, if one has begun.
    description: Option<Span>,
}

/// Where a description stands, in bytes from the tail's start.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u64,
    end: u64,
}

/// What stands before a description: the end of file, the description's type byte and its length.
const BEFORE_DESCRIPTION_BYTES: u64 = 1 + 1 + 4;

/// What a byte of the tail is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// Device state, as far as can be told.
    State,
    /// The first byte of what may be the description; everything taken for it before was not.
    DescriptionStart,
    /// A further byte of it.
    Description,
}

impl TailScan {
    pub(crate) const fn new() -> Self {
        Self { bytes: 0, window: 0, description: None }
    }

    /// Bytes seen.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Watches bytes go by. The guest may be stopped meanwhile: what stands more than a window before a NUL byte is
    /// skipped, because the NUL rules out every description that begins before it.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let nul = bytes.iter().rposition(|byte| *byte == 0);
        let skipped = nul.map_or(0, |nul| nul.saturating_sub(size_of::<u128>() - 1));
        self.bytes += skipped as u64;
        for byte in bytes.iter().skip(skipped) {
            self.push_byte(*byte);
        }
    }

    /// Watches a byte go by and tells what it is.
    #[inline]
    pub(crate) fn push_byte(&mut self, byte: u8) -> Place {
        let start = self.bytes;
        self.bytes += 1;
        self.window = self.window << 8 | u128::from(byte);
        if byte == b'{'
            && let Some(length) = self.description_length()
        {
            self.description = Some(Span { start, end: start + u64::from(length) });
            return Place::DescriptionStart;
        }
        if byte == 0 {
            self.description = None;
        }
        if self.description.is_some() { Place::Description } else { Place::State }
    }

    /// The length that stands before the byte just seen, if it stands between a section's footer and a description.
    fn description_length(&self) -> Option<u32> {
        let [.., footer, _, _, _, _, end_of_file, description, a, b, c, d, _] =
            self.window.to_be_bytes();
        let is_start = footer == section::FOOTER
            && end_of_file == section::END_OF_FILE
            && description == section::DESCRIPTION;
        let length = u32::from_be_bytes([a, b, c, d]);
        (is_start && (2..=MAX_DESCRIPTION_BYTES).contains(&length)).then_some(length)
    }

    /// Whether what went by is a whole tail; if not, what is at its end. Gives the bytes of device state, which end
    /// before the end of file.
    pub(crate) fn end(&self) -> Result<u64, &'static str> {
        match self.description {
            None => Err("no description"),
            Some(span) if span.end > self.bytes => Err("a part of a description"),
            Some(span) if span.end < self.bytes => Err("bytes after the description"),
            Some(_) if self.window & 0xff != u128::from(b'}') => Err("a description without end"),
            // The end of file and what follows it were seen before the description.
            Some(span) => Ok(span.start - BEFORE_DESCRIPTION_BYTES),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// Device state and a description, as the bytes of a tail.
    fn tail(state: &[u8], json: &[u8]) -> Vec<u8> {
        let length = u32::try_from(json.len()).unwrap().to_be_bytes();
        [state, &[0x7e, 0, 0, 0, 9, 0x00, 0x06], &length, json].concat()
    }

    fn end_of(bytes: &[u8]) -> Result<u64, &'static str> {
        let mut scan = TailScan::new();
        scan.push(bytes);
        scan.end()
    }

    #[test]
    fn only_a_whole_tail_is_whole() {
        let whole = tail(b"\x04state", b"{\"a\":[{}]}");
        assert_eq!(end_of(&whole), Ok(11), "seven bytes and a footer");
        for length in 0..whole.len() {
            assert!(end_of(&whole[..length]).is_err(), "cut to {length}");
        }
        assert!(end_of(&[&whole[..], b"}"].concat()).is_err());
        assert!(end_of(&[&whole[..], &[0]].concat()).is_err());
    }

    #[test]
    fn device_state_that_looks_like_a_description_does_not_hide_it() {
        let inner = tail(b"", b"{}");
        let footer_bytes = 5;
        let state_bytes = inner.len() as u64 + footer_bytes;
        assert_eq!(end_of(&tail(&inner, b"{\"b\":1}")), Ok(state_bytes));
        assert_eq!(end_of(&tail(&inner[..inner.len() - 1], b"{}")), Ok(state_bytes - 1));
    }

    /// Bytes among which those that mean something are frequent.
    fn telling_bytes() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop::sample::select(&[0_u8, 1, 2, 6, 0x7e, b'{', b'}', b'x'][..]);
        prop::collection::vec(byte, 0..200)
    }

    proptest! {
        #[test]
        fn skipping_changes_nothing(pieces in prop::collection::vec(telling_bytes(), 0..8)) {
            let (mut fast, mut slow) = (TailScan::new(), TailScan::new());
            for piece in &pieces {
                fast.push(piece);
                for byte in piece {
                    let _ = slow.push_byte(*byte);
                }
                prop_assert_eq!(fast.end(), slow.end());
                prop_assert_eq!(fast.bytes(), slow.bytes());
            }
        }
    }
}
