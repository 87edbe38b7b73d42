//! JSON documents from a peer: their shape is checked before they are parsed.
//!
//! What a document becomes in memory can be many times its length (`[[],[],…`): one pass over the bytes, which allocates
//! nothing, counts values and nesting first.

use alloc::vec::Vec;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Text;
use crate::limits::{MAX_JSON_DEPTH, MAX_JSON_VALUES};

/// Why a payload is not the JSON document that was expected, or could not be made one.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JsonError {
    /// Objects and lists inside each other.
    #[error("expected JSON nested at most {MAX_JSON_DEPTH} deep, found more")]
    Depth,
    /// More than the largest message has.
    #[error("expected at most {MAX_JSON_VALUES} values in a JSON document, found more")]
    Values,
    /// More bytes than a frame of its kind may carry.
    #[error("expected a JSON document of at most {limit_bytes} bytes, found {found_bytes} bytes")]
    Length {
        /// The frame kind's limit.
        limit_bytes: usize,
        /// The document's length.
        found_bytes: usize,
    },
    /// No JSON, or not of the expected form.
    #[error("{problem}")]
    Form {
        /// What is wrong, in the parser's words; they can quote the document.
        problem: Text,
    },
}

/// The value that `payload` spells.
pub(crate) fn decode<T: DeserializeOwned>(payload: &[u8], limit: usize) -> Result<T, JsonError> {
    check_length(payload, limit)?;
    check_shape(payload)?;
    // The parser would take a list of an object's values for the object.
    if payload.trim_ascii_start().first() != Some(&b'{') {
        return Err(JsonError::Form { problem: Text::new("expected a JSON object") });
    }
    serde_json::from_slice(payload).map_err(|error| form(&error))
}

/// The document of `value`.
pub(crate) fn encode<T: Serialize>(value: &T, limit: usize) -> Result<Vec<u8>, JsonError> {
    let payload = serde_json::to_vec(value).map_err(|error| form(&error))?;
    check_length(&payload, limit)?;
    Ok(payload)
}

fn check_length(payload: &[u8], limit_bytes: usize) -> Result<(), JsonError> {
    if payload.len() > limit_bytes {
        return Err(JsonError::Length { limit_bytes, found_bytes: payload.len() });
    }
    Ok(())
}

/// Counts what could become a value, outside of strings. Bytes that are no JSON are left to the parser.
fn check_shape(payload: &[u8]) -> Result<(), JsonError> {
    let (mut depth, mut values) = (0_usize, 1_usize);
    let mut bytes = payload.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => skip_string(&mut bytes),
            b'[' | b'{' => (depth, values) = (depth + 1, values + 1),
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' | b':' => values += 1,
            _ => {}
        }
        if depth > MAX_JSON_DEPTH {
            return Err(JsonError::Depth);
        }
        if values > MAX_JSON_VALUES {
            return Err(JsonError::Values);
        }
    }
    Ok(())
}

fn skip_string(bytes: &mut core::slice::Iter<'_, u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            b'\\' => _ = bytes.next(),
            _ => {}
        }
    }
}

fn form(error: &serde_json::Error) -> JsonError {
    JsonError::Form { problem: Text::new(&alloc::format!("{error}")) }
}
