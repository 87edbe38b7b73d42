//! Signatures of outcomes, and what every error has to be: the poor man's coverage.

use std::fmt::Display;

/// Bytes of a signature, at most.
const MAX_BYTES: usize = 120;

/// An error's words without its numbers and what it quotes, so that errors of one kind are alike. What is quoted may hold
/// quotation marks itself, so everything from the first mark to the last goes.
#[must_use]
pub fn skeleton(text: &str) -> String {
    let marks = ['"', '`', '\''];
    let (start, end) = match (text.find(marks), text.rfind(marks)) {
        (Some(first), Some(last)) => (&text[..first], &text[last + 1..]),
        _ => (text, ""),
    };
    let mut kept = String::new();
    for char in start.chars().chain(end.chars()) {
        match char {
            '0'..='9' if kept.ends_with('#') => {}
            '0'..='9' => kept.push('#'),
            char if char.is_ascii_graphic() || char == ' ' => kept.push(char),
            _ => {}
        }
        if kept.len() >= MAX_BYTES {
            break;
        }
    }
    kept
}

/// How large a count is, roughly: 0, 1, 2, then powers of four.
#[must_use]
pub fn scale(count: u64) -> u64 {
    if count <= 2 { count } else { 4_u64.saturating_pow(count.ilog(4) + 1) }
}

/// What an error has to be: words, no more than `limit_bytes` of them, which cannot drive a terminal. Gives its
/// [`skeleton`].
#[must_use]
#[track_caller]
pub fn of_error(error: &impl Display, limit_bytes: usize) -> String {
    let text = error.to_string();
    assert!(!text.trim().is_empty(), "expected an error with words, found an empty one");
    let found = text.len();
    assert!(
        found <= limit_bytes,
        "expected an error of at most {limit_bytes} bytes, found {found}"
    );
    let control = text.chars().find(|char| char.is_control() && !matches!(char, '\n' | '\t'));
    assert!(control.is_none(), "expected a printable error, found {control:?} in {text:?}");
    skeleton(&text)
}

/// A hash of bytes: names failures, and lets an input decide everything that is random in its run.
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    let step = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_one_kind_are_alike() {
        let one = skeleton("expected 17 bytes of `field`, found \"x\" (7)");
        assert_eq!(one, "expected # bytes of  (#)");
        assert_eq!(one, skeleton("expected 4 bytes of `y`, found \"`\" (99999)"));
        assert_eq!(skeleton(&"x".repeat(500)).len(), MAX_BYTES);
    }

    #[test]
    fn scales_are_few() {
        let scales: std::collections::BTreeSet<u64> = (0..10_000).map(scale).collect();
        assert_eq!(
            scales.into_iter().collect::<Vec<_>>(),
            [0, 1, 2, 4, 16, 64, 256, 1024, 4096, 16384]
        );
    }

    #[test]
    fn bad_errors_are_found() {
        assert_eq!(of_error(&"a 7", 10), "a #");
        for bad in ["", " ", "a\u{1b}[2J", "much too long"] {
            assert!(std::panic::catch_unwind(|| of_error(&bad, 10)).is_err(), "{bad:?}");
        }
    }
}
