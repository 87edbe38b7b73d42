//! The format of a value in the redis server: what the guest fills in, and its clients write and check.
//!
//! ```text
//! {"key":0000000000,"seq":0000000000,"check":"0123456789abcdef","body":"…"}     1000 bytes
//!        decimal           decimal            hexadecimal                928 letters
//! ```
//!
//! The body is a function of key and sequence that compresses about as far as prose does; the check
//! covers key, sequence and body. This file stands alone: the benchmark's client includes it too.

/// Bytes of a value: with what redis adds it fills an allocation of 1 KiB.
pub(crate) const VALUE_BYTES: usize = 1000;

const HEAD_BYTES: usize = 70;
const TAIL: &[u8] = b"\"}";
const SYLLABLES: &[u8; 32] = b"kamoritesuna lepidovaharenuto si";

/// Why bytes are no value of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadValue {
    /// Another length.
    #[error("expected {VALUE_BYTES} bytes, found {0}")]
    Length(usize),
    /// The head is not of this format.
    #[error("expected the head of a value, found other bytes")]
    Head,
    /// The value of another key.
    #[error("expected key {expected}, found {found}")]
    Key {
        /// Whose value it should be.
        expected: u32,
        /// Whose it is.
        found: u32,
    },
    /// The body is not what was written.
    #[error("sequence {sequence}: the check does not fit the body")]
    Check {
        /// The sequence that the head names.
        sequence: u32,
    },
}

/// The name of a key in the server.
pub(crate) fn key_name(key: u32) -> String {
    format!("item:{key:08}")
}

/// The value that a key has at a sequence.
pub(crate) fn value_of(key: u32, sequence: u32) -> Vec<u8> {
    let mut body = [0; VALUE_BYTES - HEAD_BYTES - TAIL.len()];
    let mut state = (u64::from(key) << 32 | u64::from(sequence)).wrapping_mul(SCATTER) | 1;
    for block in body.as_chunks_mut::<32>().0 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        for (pair, at) in block.as_chunks_mut::<2>().0.iter_mut().zip((0..64).step_by(4)) {
            let syllable = usize::from((state >> at).to_le_bytes()[0] & 15) * 2;
            pair.copy_from_slice(&SYLLABLES[syllable..syllable + 2]);
        }
    }
    let check = check_of(key, sequence, &body);
    let mut value = Vec::with_capacity(VALUE_BYTES);
    value.extend(head(key, sequence, check).as_bytes());
    value.extend(body);
    value.extend(TAIL);
    value
}

/// The sequence of a key's value.
///
/// # Errors
/// It is not what was written to that key at any time.
pub(crate) fn sequence_in(key: u32, value: &[u8]) -> Result<u32, BadValue> {
    if value.len() != VALUE_BYTES {
        return Err(BadValue::Length(value.len()));
    }
    let (head, rest) = value.split_at(HEAD_BYTES);
    let (found, sequence, check) = parse_head(head).ok_or(BadValue::Head)?;
    if found != key {
        return Err(BadValue::Key { expected: key, found });
    }
    let (body, tail) = rest.split_at(rest.len() - TAIL.len());
    if tail != TAIL || check != check_of(key, sequence, body) {
        return Err(BadValue::Check { sequence });
    }
    Ok(sequence)
}

const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;

fn head(key: u32, sequence: u32, check: u64) -> String {
    format!(r#"{{"key":{key:010},"seq":{sequence:010},"check":"{check:016x}","body":""#)
}

/// By fixed places: a guest whose instructions are emulated reads thousands of values per second.
fn parse_head(head: &[u8]) -> Option<(u32, u32, u64)> {
    let (key, rest) = field::<10>(head.strip_prefix(br#"{"key":"#)?)?;
    let (sequence, rest) = field::<10>(rest.strip_prefix(br#","seq":"#)?)?;
    let (check, rest) = field::<16>(rest.strip_prefix(br#","check":""#)?)?;
    let [key, sequence] = [key, sequence].map(|digits| number(digits, 10));
    let is_whole = rest == br#"","body":""#;
    let (key, sequence) = (u32::try_from(key?).ok()?, u32::try_from(sequence?).ok()?);
    number(check, 16).filter(|_| is_whole).map(|check| (key, sequence, check))
}

fn field<const LENGTH: usize>(bytes: &[u8]) -> Option<(&[u8; LENGTH], &[u8])> {
    bytes.split_first_chunk()
}

fn number<const LENGTH: usize>(digits: &[u8; LENGTH], base: u32) -> Option<u64> {
    let value = |digit: &u8| char::from(*digit).to_digit(base).map(u64::from);
    digits.iter().try_fold(0, |sum: u64, digit| Some(sum * u64::from(base) + value(digit)?))
}

fn check_of(key: u32, sequence: u32, body: &[u8]) -> u64 {
    let start = (u64::from(sequence) << 32 | u64::from(key)) ^ SCATTER;
    body.as_chunks::<8>().0.iter().fold(start, |state, word| {
        let mixed = (state ^ u64::from_le_bytes(*word)).wrapping_mul(SCATTER);
        mixed.rotate_left(29) ^ mixed >> 17
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_says_its_key_and_sequence() {
        for (key, sequence) in [(0, 0), (1, 0), (65_535, 7), (u32::MAX, u32::MAX)] {
            let value = value_of(key, sequence);
            assert_eq!(value.len(), VALUE_BYTES);
            assert_eq!(sequence_in(key, &value), Ok(sequence));
        }
        assert_ne!(value_of(3, 1)[HEAD_BYTES..], value_of(3, 2)[HEAD_BYTES..]);
    }

    #[test]
    fn no_changed_byte_goes_unnoticed() {
        let value = value_of(77, 5);
        for at in 0..VALUE_BYTES {
            let mut bad = value.clone();
            bad[at] ^= 1;
            assert!(sequence_in(77, &bad).is_err(), "{at}");
        }
    }

    #[test]
    fn what_is_no_value_of_the_key_is_named() {
        let value = value_of(77, 5);
        assert_eq!(sequence_in(78, &value), Err(BadValue::Key { expected: 78, found: 77 }));
        assert_eq!(sequence_in(77, &value[1..]), Err(BadValue::Length(VALUE_BYTES - 1)));
        assert_eq!(sequence_in(77, &[0; VALUE_BYTES]), Err(BadValue::Head));
    }
}
