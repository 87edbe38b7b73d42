//! What became of pages, by the books of whoever moved the guest.

use serde_json::Value;
use sterna_api::Report;

use crate::record::{Measured, float};

const PAGE_BYTES: f64 = 4096.0;

/// Pages that were sent with a content, each as often as it was sent. Those of zeros do not count.
pub(crate) fn sent(measured: &Measured) -> Option<f64> {
    let ours = measured.report.as_ref().map(|report| {
        let pages = report.pages;
        float(pages.total.saturating_sub(pages.zero).saturating_sub(pages.same))
    });
    ours.or_else(|| stock(measured, "/ram/normal"))
}

/// Of the pages that were lacking when the guest was resumed, those that it asked for.
pub(crate) fn asked_for_percent(measured: &Measured) -> Option<f64> {
    let (requests, lacking) = match &measured.report {
        Some(report) => (float(report.requests?), lacking(report)),
        None => (
            stock(measured, "/ram/postcopy-requests")?,
            stock(measured, "/ram/postcopy-bytes")? / PAGE_BYTES,
        ),
    };
    (lacking > 0.0).then(|| 100.0 * requests / lacking)
}

/// What a report counts beyond its rounds went after the stop.
fn lacking(report: &Report) -> f64 {
    let in_rounds: u64 = report.rounds.iter().map(|round| round.pages).sum();
    float(report.pages.total.saturating_sub(in_rounds))
}

fn stock(measured: &Measured, key: &str) -> Option<f64> {
    measured.stock_info.as_ref()?.pointer(key).and_then(Value::as_f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn stock_asks_for_a_share_of_its_post_copy_bytes() {
        let ram = json!({"ram": {"normal": 50, "postcopy-requests": 3, "postcopy-bytes": 40960}});
        let measured = Measured { stock_info: Some(ram), ..Measured::default() };
        assert_eq!(sent(&measured), Some(50.0));
        assert_eq!(asked_for_percent(&measured), Some(30.0));
    }

    #[test]
    fn who_lacked_nothing_asked_for_no_share() {
        let ram = json!({"ram": {"normal": 50, "postcopy-requests": 0, "postcopy-bytes": 0}});
        let measured = Measured { stock_info: Some(ram), ..Measured::default() };
        assert_eq!(asked_for_percent(&measured), None);
        assert_eq!(sent(&Measured::default()), None);
    }
}
