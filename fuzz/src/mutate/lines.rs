//! Changes to a text of lines: lines go, come twice, change places; the value of one becomes another.

use sterna_sim::random::Random;

use super::{Material, telling_number};

/// One change.
pub(super) fn change(input: &mut Vec<u8>, material: Material<'_>, random: &mut Random) {
    let mut lines: Vec<Vec<u8>> = input.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let (one, other) = (random.index(lines.len()), random.index(lines.len()));
    match random.below(7) {
        0 => drop(lines.remove(one)),
        1 => lines.insert(other, lines[one].clone()),
        2 => lines.swap(one, other),
        3 => {
            let donors: Vec<&[u8]> = material.other.split(|byte| *byte == b'\n').collect();
            lines.insert(one, donors[random.index(donors.len())].to_vec());
        }
        4 => {
            let token = material.token(random).to_vec();
            lines.insert(one, token);
        }
        _ => {
            let value = value(material, random);
            let line = &mut lines[one];
            let end = line.iter().position(|byte| *byte == b'=').map_or(0, |at| at + 1);
            line.truncate(end);
            line.extend_from_slice(&value);
        }
    }
    *input = lines.join(&b'\n');
}

fn value(material: Material<'_>, random: &mut Random) -> Vec<u8> {
    let number = telling_number(random);
    match random.below(5) {
        0 => number.to_string().into_bytes(),
        1 => format!("\"{number}\"").into_bytes(),
        2 => format!("-{number}").into_bytes(),
        3 => [b"\"", material.token(random), b"\""].concat(),
        _ => material.token(random).to_vec(),
    }
}
