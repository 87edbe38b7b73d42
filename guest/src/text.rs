//! Text-like page bodies: words drawn from a small vocabulary, common ones far more often, so that
//! a page compresses about as far as English prose does.

use crate::page::next_random;

/// Longest word and its separator.
const SLOT_BYTES: usize = 16;
const WORDS: usize = 256;

/// Ordered by how often a word is drawn: short function words first, rare ones last.
const VOCABULARY: &str = "the of and to in a is that it was for on as with be at by this had not \
    but from have are which or one we all were her she there would their they an when who will \
    more no if out so said what up its about into than them can only other new some could time \
    these two may then do first any my now such like our over man me even most made after also \
    did many before must through back years where much your way well down should because each \
    just those people how too little state good very make world still own see men work long get \
    here between both life being under never day same another know while last might us great old \
    year off come since against go came right used take three states himself few house use during \
    without again place american around however home small found thought went say part once \
    general high upon school every don't does got united left number course war until always \
    away something fact though water less public put thing almost hand enough far took head yet \
    government system better set told nothing night end why called didn't eyes find going look \
    asked later knew point next program city business give group toward young days let room word \
    side social given present several order national possible rather second face per among form \
    often things looked early white case large need become within along weather distance harbour \
    question evening company morning answer picture mountain journey station language";

/// Fills a page body with words, numbers and line breaks from one generator state (not 0).
pub(crate) fn fill(mut state: u64, bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(slot) = bytes.get_mut(at..at + SLOT_BYTES) {
        state = next_random(state);
        let [low, high, kind, shape, ..] = state.to_le_bytes();
        if kind < RARE_OF_256 {
            at += write_rare(state, shape, slot);
        } else {
            let rank = (usize::from(low) * usize::from(high)) >> 8;
            let (word, length) = &TABLE[rank];
            slot.copy_from_slice(word);
            at += length;
        }
    }
    if let Some(rest) = bytes.get_mut(at..) {
        rest.fill(b'\n');
    }
}

/// How many words of 256 are not in the vocabulary.
const RARE_OF_256: u8 = 28;

/// A made-up word of 4 to 11 letters: names and rare words are what keeps prose from compressing.
fn write_rare(state: u64, shape: u8, slot: &mut [u8]) -> usize {
    const LETTERS: &[u8; 32] = b"etaoinshrdlucmfwypvbgkjqxzeaoitn";
    let length = usize::from(shape % 8) + 4;
    let mut rest = state >> 4;
    for letter in &mut slot[..length] {
        *letter = LETTERS[usize::from(rest.to_le_bytes()[0] % 32)];
        rest >>= 5;
    }
    slot[length] = if shape > 200 { b'\n' } else { b' ' };
    length + 1
}

/// Each word with its space in a slot of 16 bytes, copied as two machine words.
static TABLE: [([u8; SLOT_BYTES], usize); WORDS] = table();

const fn table() -> [([u8; SLOT_BYTES], usize); WORDS] {
    let text = VOCABULARY.as_bytes();
    let mut slots = [([b' '; SLOT_BYTES], 0); WORDS];
    let (mut word, mut at) = (0, 0);
    while word < WORDS {
        let mut length = 0;
        while at < text.len() && text[at] != b' ' {
            slots[word].0[length] = text[at];
            length += 1;
            at += 1;
        }
        assert!(length > 0 && length < SLOT_BYTES, "the vocabulary has too few or too long words");
        slots[word].1 = length + 1;
        word += 1;
        at += 1;
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_printable_and_repeats_for_a_state() {
        let (mut one, mut two) = ([0; 4080], [1; 4080]);
        fill(7, &mut one);
        fill(7, &mut two);
        assert_eq!(one, two);
        assert!(one.iter().all(|byte| byte.is_ascii_graphic() || b" \n".contains(byte)));
        fill(8, &mut two);
        assert_ne!(one, two);
    }

    #[test]
    fn the_letters_carry_the_entropy_of_prose() {
        let mut body = [0; 4080];
        fill(99, &mut body);
        let mut counts = [0_u32; 256];
        body.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
        let bits: f64 = (counts.iter().filter(|count| **count > 0))
            .map(|count| f64::from(*count) / 4080.0)
            .map(|share| -share * share.log2())
            .sum();
        assert!((3.9..4.6).contains(&bits), "{bits} bits per letter");
    }
}
