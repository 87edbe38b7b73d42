//! Sizes as QEMU writes them: digits, an optional fraction, an optional binary suffix.

/// The bytes that `text` names. `unit_bytes` is what a number without a suffix counts (1, or 1 MiB for `-m`).
///
/// Suffixes are B, K, M, G, T, P, E in either case, powers of 1024. A fraction (`1.5G`) is rounded to the nearest byte,
/// halves up, as QEMU does. `None` for anything else, and for what does not fit 64 bits.
#[must_use]
pub fn parse_size(text: &str, unit_bytes: u64) -> Option<u64> {
    let (number, unit) = match text.as_bytes().last()? {
        b'0'..=b'9' => (text, unit_bytes),
        letter => (text.get(..text.len() - 1)?, suffix_bytes(*letter)?),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || whole.len() > 20 || fraction.len() > 9 {
        return None;
    }
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = (fraction.parse::<u128>().ok()? * u128::from(unit) + scale / 2) / scale;
    let total = whole.parse::<u128>().ok()? * u128::from(unit) + part;
    u64::try_from(total).ok()
}

fn suffix_bytes(letter: u8) -> Option<u64> {
    let power = b"bkmgtpe".iter().position(|known| *known == letter.to_ascii_lowercase())?;
    Some(1 << (10 * power))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn reads_what_qemu_reads() {
        for (text, unit, bytes) in [
            ("256", MIB, 256 * MIB),
            ("256", 1, 256),
            ("262136k", MIB, 262_136 << 10),
            ("1.5G", 1, 3 << 29),
            ("4096B", MIB, 4096),
            ("2t", 1, 2 << 40),
        ] {
            assert_eq!(parse_size(text, unit), Some(bytes), "{text}");
        }
    }

    #[test]
    fn refuses_the_rest() {
        for text in
            ["", "k", "-1", "1e9", "0x10", "1.G", ".5G", "16E", "99999999999999999999", "1 G", "1é"]
        {
            assert_eq!(parse_size(text, 1), None, "{text}");
        }
    }
}
