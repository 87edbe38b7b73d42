//! Changes to a JSON document: it stays JSON, but not the document that its reader expects.

use serde_json::{Map, Value};
use sterna_sim::random::Random;

use super::{Material, bytes, telling_number};

/// Values that one change may put in, at most.
const MANY: usize = 600;

/// One change; an input that is no JSON is changed as bytes.
pub(super) fn change(input: &mut Vec<u8>, material: Material<'_>, random: &mut Random) {
    let Ok(mut document) = serde_json::from_slice::<Value>(input) else {
        return bytes::change(input, material, random);
    };
    let other = serde_json::from_slice(material.other).unwrap_or(Value::Null);
    let donor = pick(&other, random).clone();
    let place = random.index(count(&document));
    let mut left = place;
    if let Some(value) = at(&mut document, &mut left) {
        alter(value, donor, material, random);
    }
    if let Ok(text) = serde_json::to_vec(&document) {
        *input = text;
    }
}

/// Values in a document, itself included.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// The value at a place, counted from the outside in.
fn at<'v>(value: &'v mut Value, left: &mut usize) -> Option<&'v mut Value> {
    if *left == 0 {
        return Some(value);
    }
    *left -= 1;
    match value {
        Value::Array(list) => list.iter_mut().find_map(|one| at(one, left)),
        Value::Object(map) => map.values_mut().find_map(|one| at(one, left)),
        _ => None,
    }
}

fn pick<'v>(value: &'v Value, random: &mut Random) -> &'v Value {
    let inner: Vec<&Value> = match value {
        Value::Array(list) => list.iter().collect(),
        Value::Object(map) => map.values().collect(),
        _ => Vec::new(),
    };
    match inner.get(random.index(inner.len() + 1)) {
        Some(one) => pick(one, random),
        None => value,
    }
}

fn alter(value: &mut Value, donor: Value, material: Material<'_>, random: &mut Random) {
    let old = value.take();
    *value = match (random.below(8), old) {
        (0, _) => donor,
        (1, _) => scalar(material, random),
        (2, old) => Value::Array(vec![old]),
        (3, Value::String(text)) => Value::String(edited(text, material, random)),
        (_, Value::Object(map)) => Value::Object(other_keys(map, donor, material, random)),
        (_, Value::Array(list)) => Value::Array(other_items(list, donor, random)),
        (_, Value::String(text)) => Value::String(edited(text, material, random)),
        (_, Value::Number(_)) => number(random),
        (_, _) => scalar(material, random),
    };
}

fn number(random: &mut Random) -> Value {
    let number = telling_number(random);
    match random.below(4) {
        0 => Value::from(number.cast_signed()),
        1 => Value::from(f64::from_bits(number)),
        _ => Value::from(number),
    }
}

fn scalar(material: Material<'_>, random: &mut Random) -> Value {
    match random.below(6) {
        0 => Value::Null,
        1 => Value::Bool(random.chance(500)),
        2 => Value::String(String::new()),
        3 => Value::Object(Map::new()),
        4 => Value::String(token(material, random)),
        _ => number(random),
    }
}

fn token(material: Material<'_>, random: &mut Random) -> String {
    String::from_utf8_lossy(material.token(random)).into_owned()
}

fn edited(text: String, material: Material<'_>, random: &mut Random) -> String {
    let mut bytes = text.into_bytes();
    match random.below(6) {
        0 => bytes.extend_from_slice(&[b'x'; MANY]),
        1 => bytes.extend_from_slice("\u{1b}[31m\n\0é\u{202e}".as_bytes()),
        2 => return token(material, random),
        _ => bytes::change(&mut bytes, material, random),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn other_keys(
    mut map: Map<String, Value>,
    donor: Value,
    material: Material<'_>,
    random: &mut Random,
) -> Map<String, Value> {
    let key = map.keys().nth(random.index(map.len())).cloned().unwrap_or_default();
    match random.below(4) {
        0 => drop(map.remove(&key)),
        1 => drop(map.insert(token(material, random), donor)),
        2 => {
            let value = map.remove(&key).unwrap_or_default();
            map.insert(edited(key, material, random), value);
        }
        _ => drop(map.insert(key, donor)),
    }
    map
}

fn other_items(mut list: Vec<Value>, donor: Value, random: &mut Random) -> Vec<Value> {
    let place = random.index(list.len());
    match random.below(4) {
        0 if !list.is_empty() => drop(list.remove(place)),
        1 => {
            let one = list.get(place).cloned().unwrap_or(donor);
            // Many copies of a large value would be an input that is only large.
            let copies = if count(&one) > 8 { 2 } else { random.index(MANY) };
            list.extend(std::iter::repeat_n(one, copies));
        }
        2 => list.reverse(),
        _ => list.insert(place, donor),
    }
    list
}
