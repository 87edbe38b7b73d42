//! Changes that know nothing of the format: flips, cuts, repeats, splices, and numbers that may be lengths.

use sterna_sim::random::Random;

use super::{Material, telling_number};

/// Bytes that one change adds, at most.
const MAX_ADDED_BYTES: usize = 300;

/// One change.
pub(super) fn change(input: &mut Vec<u8>, material: Material<'_>, random: &mut Random) {
    match random.below(12) {
        0 => flip(input, random),
        1 => put_byte(input, random),
        2 | 3 => put_number(input, random),
        4 => nudge(input, random),
        5 => input.truncate(random.index(input.len())),
        6 => drop(cut(input, random)),
        7 => repeat(input, random),
        8 => splice(input, material.other, random),
        9 => {
            let token = material.token(random).to_vec();
            insert(input, &token, random);
        }
        10 => {
            let noise: Vec<u8> = (0..=random.below(8)).map(|_| byte(random)).collect();
            insert(input, &noise, random);
        }
        _ => swap(input, random),
    }
}

fn byte(random: &mut Random) -> u8 {
    random.any().to_le_bytes()[0]
}

fn flip(input: &mut [u8], random: &mut Random) {
    let at = random.index(input.len());
    if let Some(byte) = input.get_mut(at) {
        *byte ^= 1 << random.below(8);
    }
}

fn put_byte(input: &mut [u8], random: &mut Random) {
    let at = random.index(input.len());
    if let Some(place) = input.get_mut(at) {
        *place = match random.below(4) {
            0 => 0,
            1 => 0xff,
            2 => 0x80,
            _ => byte(random),
        };
    }
}

/// Writes a number of 2, 4 or 8 bytes over a place, in either order of bytes: it may be a length.
fn put_number(input: &mut [u8], random: &mut Random) {
    let width = 2_usize << random.below(3);
    let number = telling_number(random);
    let bytes = if random.chance(500) {
        number.to_le_bytes()[..width].to_vec()
    } else {
        number.to_be_bytes()[8 - width..].to_vec()
    };
    let at = random.index(input.len().saturating_sub(width) + 1);
    if let Some(place) = input.get_mut(at..at + width) {
        place.copy_from_slice(&bytes);
    }
}

/// Makes a byte a little more or less: a length that is nearly right.
fn nudge(input: &mut [u8], random: &mut Random) {
    let at = random.index(input.len());
    let by = random.below(9).to_le_bytes()[0];
    if let Some(byte) = input.get_mut(at) {
        *byte = byte.wrapping_add(by).wrapping_sub(4);
    }
}

/// A piece, mostly a short one.
fn piece(length: usize, random: &mut Random) -> std::ops::Range<usize> {
    let start = random.index(length);
    let most = if random.chance(700) { 16 } else { length };
    let end = (start + 1 + random.index(most)).min(length);
    start..end.max(start)
}

fn cut(input: &mut Vec<u8>, random: &mut Random) -> Vec<u8> {
    let piece = piece(input.len(), random);
    input.drain(piece).collect()
}

fn repeat(input: &mut Vec<u8>, random: &mut Random) {
    let piece = piece(input.len(), random);
    let one = input[piece.clone()].to_vec();
    if one.is_empty() {
        return insert(input, b"\0", random);
    }
    let times = 1 + random.index((MAX_ADDED_BYTES / one.len()).clamp(1, 40));
    let copies = one.repeat(times);
    input.splice(piece.end..piece.end, copies);
}

/// A piece of another input, put in or written over a place.
fn splice(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let donor = &other[piece(other.len(), random)];
    let place = piece(input.len(), random);
    let end = if random.chance(500) { place.start } else { place.end };
    input.splice(place.start..end, donor.iter().copied());
}

fn insert(input: &mut Vec<u8>, bytes: &[u8], random: &mut Random) {
    let at = random.index(input.len() + 1);
    input.splice(at..at, bytes.iter().copied());
}

/// Two pieces change their places.
fn swap(input: &mut Vec<u8>, random: &mut Random) {
    let moved = cut(input, random);
    insert(input, &moved, random);
}
