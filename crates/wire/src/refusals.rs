//! Refusals on their way between hosts: bounded in number and length, readable in a terminal.

use alloc::format;
use alloc::vec::Vec;

use sterna_model::Refusal;

use crate::blob::{clean, is_clean};
use crate::limits::{MAX_REFUSAL_CODE_BYTES, MAX_REFUSAL_TEXT_BYTES, MAX_REFUSALS};

/// The refusals within the limits: long texts are cut, and those that are too many become one that says how many.
pub(crate) fn bounded(refusals: &[Refusal]) -> Vec<Refusal> {
    let whole = if refusals.len() > MAX_REFUSALS { MAX_REFUSALS - 1 } else { refusals.len() };
    let mut kept: Vec<Refusal> = refusals[..whole].iter().map(cut).collect();
    if refusals.len() > whole {
        let reason = format!("expected nothing to refuse, found {} more", refusals.len() - whole);
        kept.push(Refusal::new("more-refusals", reason, "remedy the others first"));
    }
    kept
}

/// One refusal within the limits.
pub(crate) fn cut(refusal: &Refusal) -> Refusal {
    Refusal {
        code: clean(&refusal.code, MAX_REFUSAL_CODE_BYTES),
        reason: clean(&refusal.reason, MAX_REFUSAL_TEXT_BYTES),
        remedy: clean(&refusal.remedy, MAX_REFUSAL_TEXT_BYTES),
    }
}

/// Whether a refusal is within the limits.
pub(crate) fn is_bounded(refusal: &Refusal) -> bool {
    let within = |text: &str, limit_bytes| text.len() <= limit_bytes && text.chars().all(is_clean);
    within(&refusal.code, MAX_REFUSAL_CODE_BYTES)
        && within(&refusal.reason, MAX_REFUSAL_TEXT_BYTES)
        && within(&refusal.remedy, MAX_REFUSAL_TEXT_BYTES)
}
