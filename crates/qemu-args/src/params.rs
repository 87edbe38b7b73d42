//! Option values that are lists: `tap,id=n0,script=no`, with `,,` for a comma, or the JSON form `{"type": "tap", ...}`.
//!
//! Both become pairs of a dotted key and a scalar (`file.filename`, `hostfwd.0.str`), and are written anew in the form that
//! they came in. Keys are letters, digits, `-`, `_` and `.`, so a value can never become a key on the way back.

use alloc::borrow::Cow;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde_json::{Map, Number, Value};

/// Pairs in one value. QEMU's longest options have some dozens.
const MAX_PAIRS: usize = 256;
/// Nesting of the JSON form.
const MAX_DEPTH: usize = 8;

/// Why a value is no list.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum ParamsProblem {
    #[error("expected a key of letters, digits, '-', '_', '.', found {0}")]
    Key(String),
    #[error("expected at most {MAX_PAIRS} pairs")]
    Many,
    #[error("expected JSON nested at most {MAX_DEPTH} deep")]
    Deep,
    #[error("expected valid JSON")]
    Json,
    #[error("expected a setting, found a call for help")]
    Help,
}

/// One value of a pair.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Scalar {
    Text(String),
    Number(Number),
    Switch(bool),
    Null,
}

impl Scalar {
    /// As the comma form writes it.
    pub(crate) fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Text(text) => Cow::Borrowed(text),
            Self::Number(number) => Cow::Owned(number.to_string()),
            Self::Switch(true) => Cow::Borrowed("on"),
            Self::Switch(false) => Cow::Borrowed("off"),
            Self::Null => Cow::Borrowed(""),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    Commas,
    Json,
}

/// A value taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Params {
    form: Form,
    /// The key that the first word may leave out (`driver` of `-device`).
    implied: Option<&'static str>,
    pub(crate) pairs: Vec<(String, Scalar)>,
}

impl Params {
    pub(crate) fn new(implied: Option<&'static str>) -> Self {
        Self { form: Form::Commas, implied, pairs: Vec::new() }
    }

    /// The comma form only.
    pub(crate) fn commas(text: &str, implied: Option<&'static str>) -> Result<Self, ParamsProblem> {
        let mut params = Self::new(implied);
        let mut rest = text;
        let mut first = true;
        while !rest.is_empty() {
            if params.pairs.len() == MAX_PAIRS {
                return Err(ParamsProblem::Many);
            }
            let (key, value, after) = next_pair(rest, implied.filter(|_| first));
            params.pairs.push((checked_key(&key)?, Scalar::Text(value)));
            rest = after;
            first = false;
        }
        Ok(params)
    }

    /// Either form.
    pub(crate) fn any(text: &str, implied: Option<&'static str>) -> Result<Self, ParamsProblem> {
        if !text.starts_with('{') {
            return Self::commas(text, implied);
        }
        let Ok(Value::Object(map)) = serde_json::from_str(text) else {
            return Err(ParamsProblem::Json);
        };
        let mut params = Self { form: Form::Json, implied, pairs: Vec::new() };
        flatten("", Value::Object(map), 0, &mut params.pairs)?;
        Ok(params)
    }

    /// The last value of `key`, which is the one that counts for QEMU.
    pub(crate) fn get(&self, key: &str) -> Option<Cow<'_, str>> {
        self.pairs.iter().rev().find(|(known, _)| known == key).map(|(_, value)| value.text())
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.pairs.iter().any(|(known, _)| known == key)
    }

    /// Sets `key` where it stands, or at the end; later doubles of it go.
    pub(crate) fn set(&mut self, key: &str, value: impl Into<String>) {
        let value = Scalar::Text(value.into());
        match self.pairs.iter().position(|(known, _)| known == key) {
            Some(at) => {
                self.pairs[at].1 = value;
                let mut index = 0;
                self.pairs.retain(|(known, _)| {
                    index += 1;
                    index - 1 <= at || known != key
                });
            }
            None => self.pairs.push((key.to_string(), value)),
        }
    }

    pub(crate) fn set_switch(&mut self, key: &str, on: Switch) {
        self.set(key, if on == Switch::On { "on" } else { "off" });
        if self.form == Form::Json {
            for (known, value) in &mut self.pairs {
                if known == key {
                    *value = Scalar::Switch(on == Switch::On);
                }
            }
        }
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.pairs.retain(|(known, _)| known != key);
    }

    /// The value anew, in the form that it came in.
    pub(crate) fn to_text(&self) -> String {
        match self.form {
            Form::Commas => self.to_commas(),
            Form::Json => nest(&self.pairs).to_string(),
        }
    }

    fn to_commas(&self) -> String {
        let mut text = String::new();
        for (index, (key, value)) in self.pairs.iter().enumerate() {
            let value = escape(&value.text());
            if index > 0 {
                text.push(',');
            } else if self.implied == Some(key.as_str()) && is_bare(&value) {
                text.push_str(&value);
                continue;
            }
            text.push_str(&format!("{key}={value}"));
        }
        text
    }
}

/// What a switch is set to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Switch {
    On,
    Off,
}

/// Commas doubled, as QEMU wants them in a value.
pub(crate) fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

/// A first word that cannot be mistaken for a pair, a flag, a call for help or JSON.
fn is_bare(value: &str) -> bool {
    value.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && !value.contains(['=', ','])
        && value != "help"
}

/// The next key and value, and what follows them. A word alone is a switch (`server`, `nowait`), or, at the first place,
/// the value of the implied key.
fn next_pair<'a>(text: &'a str, implied: Option<&'static str>) -> (String, String, &'a str) {
    let at = text.find(['=', ',']).unwrap_or(text.len());
    if text[at..].starts_with('=') {
        let (value, rest) = next_value(&text[at + 1..]);
        return (text[..at].to_string(), value, rest);
    }
    if let Some(key) = implied {
        let (value, rest) = next_value(text);
        return (key.to_string(), value, rest);
    }
    let word = &text[..at];
    let rest = text[at..].strip_prefix(',').unwrap_or_default();
    match word.strip_prefix("no").filter(|key| !key.is_empty()) {
        Some(key) => (key.to_string(), "off".to_string(), rest),
        None => (word.to_string(), "on".to_string(), rest),
    }
}

/// The value up to a single comma, with doubled ones made single.
fn next_value(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let Some(at) = rest.find(',') else {
            value.push_str(rest);
            return (value, "");
        };
        value.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.strip_prefix(',') {
            Some(after) => {
                value.push(',');
                rest = after;
            }
            None => return (value, rest),
        }
    }
}

/// Whether a text may be a key, or a property's name: no path, no separator.
pub(crate) fn is_key(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=128).contains(&text.len()) && text.bytes().all(known)
}

fn checked_key(key: &str) -> Result<String, ParamsProblem> {
    if key == "help" || key == "?" {
        return Err(ParamsProblem::Help);
    }
    if !is_key(key) {
        let shown: String = key.chars().take(40).collect();
        return Err(ParamsProblem::Key(format!("{shown:?}")));
    }
    Ok(key.to_string())
}

fn flatten(
    prefix: &str,
    value: Value,
    depth: usize,
    out: &mut Vec<(String, Scalar)>,
) -> Result<(), ParamsProblem> {
    if depth > MAX_DEPTH {
        return Err(ParamsProblem::Deep);
    }
    if out.len() >= MAX_PAIRS {
        return Err(ParamsProblem::Many);
    }
    let scalar = match value {
        Value::Object(map) => {
            for (key, value) in map {
                let key = checked_key(&key)?;
                // A dot or a number as a JSON key would come back as another structure.
                if key.contains('.') || is_index(&key) {
                    return Err(ParamsProblem::Key(format!("{key:?}")));
                }
                flatten(&join(prefix, &key), value, depth + 1, out)?;
            }
            return Ok(());
        }
        Value::Array(list) => {
            for (index, value) in list.into_iter().enumerate() {
                flatten(&join(prefix, &index.to_string()), value, depth + 1, out)?;
            }
            return Ok(());
        }
        Value::String(text) => Scalar::Text(text),
        Value::Number(number) => Scalar::Number(number),
        Value::Bool(on) => Scalar::Switch(on),
        Value::Null => Scalar::Null,
    };
    out.push((prefix.to_string(), scalar));
    Ok(())
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_string() } else { format!("{prefix}.{key}") }
}

fn is_index(key: &str) -> bool {
    key.bytes().all(|byte| byte.is_ascii_digit())
}

/// The inverse of [`flatten`].
fn nest(pairs: &[(String, Scalar)]) -> Value {
    let mut groups: Vec<(&str, Vec<(String, Scalar)>)> = Vec::new();
    for (key, value) in pairs {
        let (head, rest) = key.split_once('.').unwrap_or((key, ""));
        let member = (rest.to_string(), value.clone());
        match groups.iter_mut().find(|(known, _)| *known == head) {
            Some((_, members)) => members.push(member),
            None => groups.push((head, [member].into())),
        }
    }
    let inner = |members: &[(String, Scalar)]| match members {
        [(rest, value)] if rest.is_empty() => scalar_json(value),
        members => nest(members),
    };
    if groups.iter().all(|(head, _)| is_index(head)) && !groups.is_empty() {
        return Value::Array(groups.iter().map(|(_, members)| inner(members)).collect());
    }
    let map: Map<String, Value> =
        groups.iter().map(|(head, members)| ((*head).to_string(), inner(members))).collect();
    Value::Object(map)
}

fn scalar_json(value: &Scalar) -> Value {
    match value {
        Scalar::Text(text) => Value::String(text.clone()),
        Scalar::Number(number) => Value::Number(number.clone()),
        Scalar::Switch(on) => Value::Bool(*on),
        Scalar::Null => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commas_are_escaped_both_ways() {
        let params = Params::commas("file=/a,,b,if=none,readonly,nowait", None).unwrap();
        assert_eq!(params.get("file").unwrap(), "/a,b");
        assert_eq!(params.to_text(), "file=/a,,b,if=none,readonly=on,wait=off");
    }

    #[test]
    fn implied_key_is_the_first_word_only() {
        let params = Params::commas("e1000,id=x", Some("driver")).unwrap();
        assert_eq!(
            (params.get("driver").unwrap().as_ref(), params.to_text().as_str()),
            ("e1000", "e1000,id=x")
        );
        let odd = Params::commas("a,,b=c,id=x", Some("driver")).unwrap();
        assert_eq!(odd.get("driver").unwrap(), "a,b=c");
        assert_eq!(odd.to_text(), "driver=a,,b=c,id=x");
    }

    #[test]
    fn json_survives() {
        let text = r#"{"backing":null,"driver":"qcow2","file":{"driver":"file","filename":"/a,b"},"l":[{"s":"x"},{"s":"y"}],"n":3,"on":true}"#;
        let params = Params::any(text, None).unwrap();
        assert_eq!(params.get("file.filename").unwrap(), "/a,b");
        assert_eq!(params.get("l.1.s").unwrap(), "y");
        assert_eq!(params.to_text(), text);
    }

    #[test]
    fn a_number_that_no_integer_holds_is_the_same_at_every_hop() {
        let text = r#"{"x":15715717157515157157157157}"#;
        let first = Params::any(text, None).unwrap();
        let second = Params::any(&first.to_text(), None).unwrap();
        assert_eq!(second, first);
    }

    #[test]
    fn tricks_are_refused() {
        for text in ["=x", "a=b,/x=1", "help", "a=1,help", "a b=1", "x\n=1"] {
            assert!(Params::commas(text, None).is_err(), "{text:?}");
        }
        for text in ["{", "{}x", r#"{"a.b":1}"#, r#"{"0":1}"#, r#"{"a b":1}"#, r#"{"":1}"#] {
            assert!(Params::any(text, None).is_err(), "{text:?}");
        }
        let deep = format!("{}1{}", r#"{"a":"#.repeat(20), "}".repeat(20));
        assert_eq!(Params::any(&deep, None), Err(ParamsProblem::Deep));
        assert_eq!(Params::commas(&"a=1,".repeat(1000), None), Err(ParamsProblem::Many));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_reads_back(text in "[a-z=,.{}/\"0-9:-]{0,60}") {
            for implied in [None, Some("driver")] {
                if let Ok(params) = Params::any(&text, implied) {
                    prop_assert_eq!(Params::any(&params.to_text(), implied), Ok(params));
                }
            }
        }
    }
}
