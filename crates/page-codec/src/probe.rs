//! Tells content that zstd cannot shrink from content that it may, at a cost far below that of trying.
//!
//! Counts the bytes of a sample by value: the sum of the squared counts is smallest when all values are equally
//! frequent, as in encrypted, compressed or random data. It misses contents whose bytes are evenly spread and yet
//! repeat; the encoder tries a few such pages now and then to see whether the guest has them.

/// Sampled bytes, in [`PIECES`] pieces spread over the content.
const SAMPLE_BYTES: usize = 512;
const PIECES: usize = 8;
const PIECE_BYTES: usize = SAMPLE_BYTES / PIECES;

/// Whether the bytes of `content` are unevenly distributed.
pub(crate) fn is_uneven(content: &[u8]) -> bool {
    let mut counts = [[0_u16; 256]; 2];
    let mut sampled = 0;
    let stride = (content.len() / PIECES).max(PIECE_BYTES);
    for piece in content.chunks(stride).take(PIECES) {
        let piece = &piece[..piece.len().min(PIECE_BYTES)];
        sampled += piece.len();
        // Two tables: equal neighbours, which are frequent, need not wait for each other.
        for pair in piece.chunks(2) {
            counts[0][usize::from(pair[0])] += 1;
            if let Some(second) = pair.get(1) {
                counts[1][usize::from(*second)] += 1;
            }
        }
    }
    let [even, odd] = &counts;
    let squares = even.iter().zip(odd).map(|(a, b)| usize::from(a + b).pow(2)).sum::<usize>();
    // Expected of random bytes: n + n (n - 1) / 256, for 512 of them 1532, with a deviation of 45.
    let random = sampled + sampled * sampled.saturating_sub(1) / 256;
    squares > random + random / 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_model::PAGE_BYTES;

    #[test]
    fn random_is_even_and_text_is_not() {
        let mut random = [0; PAGE_BYTES];
        for seed in 0..200_u64 {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&seed.to_le_bytes()).finalize_xof().fill(&mut random);
            assert!(!is_uneven(&random), "seed {seed}");
            let base64 = random.map(|byte| byte & 63);
            assert!(is_uneven(&base64), "seed {seed}");
        }
        let text = b"It was the best of times, it was the worst of times. ".repeat(80);
        assert!(is_uneven(&text[..PAGE_BYTES]));
        assert!(is_uneven(&text[..300]));
        assert!(!is_uneven(&[]));
    }
}
