//! What is said before a move: the plan, and a peer that was looked at.

use sterna_api::{CheckView, Plan};
use sterna_model::Rate;

use super::outcome::refusals;
use super::table::{Align, Table};
use super::units::{millis, predicted_bytes, range, time};

/// Predictions for each strategy, and what speaks against the move.
#[must_use]
pub(crate) fn plan(plan: &Plan) -> String {
    let mut out = Vec::new();
    if !plan.strategies.is_empty() {
        out.extend(forecasts(plan));
    }
    match &plan.recommended {
        Some(name) => out.push(format!("recommended: {name}")),
        None => out.push("no strategy is recommended".to_owned()),
    }
    out.extend(refusals(&plan.refusals));
    out.join("\n")
}

fn forecasts(plan: &Plan) -> Vec<String> {
    let mut table = Table::new([Align::Left; 4]);
    table.row(["STRATEGY", "TOTAL", "DOWNTIME", "ON THE WIRE"]);
    for forecast in &plan.strategies {
        table.row([
            forecast.name.clone(),
            range(forecast.total_ms, time),
            range(forecast.downtime_ms, millis),
            range(forecast.wire_bytes, predicted_bytes),
        ]);
    }
    table.lines("")
}

/// A peer that was looked at.
#[must_use]
pub(crate) fn check(check: &CheckView) -> String {
    let accepts = if check.accepts { "takes VMs from us" } else { "takes no VMs from us" };
    let link = Rate { bytes_per_second: check.link_bytes_per_second };
    let mut table = Table::new([Align::Left, Align::Left]);
    table.row(["software", &format!("{}, protocol {}", check.software, check.protocol)]);
    table.row(["round trip", &format!("{:.2} ms", check.round_trip_ms)]);
    table.row(["link", &format!("{link} over one connection")]);
    let (ours, theirs) = (check.our_certificate_days, check.peer_certificate_days);
    table.row(["certificates", &format!("days left: ours {ours}, theirs {theirs}")]);
    let mut out = vec![format!("{} at {}: reached, trusted, {accepts}", check.peer, check.address)];
    out.extend(table.lines("  "));
    out.extend(check.warnings.iter().map(|warning| format!("warning: {warning}")));
    out.extend(refusals(&check.refusals));
    out.join("\n")
}

#[cfg(test)]
mod tests {
    use sterna_api::{Range, StrategyForecast};
    use sterna_model::Refusal;

    use super::*;

    fn forecast(name: &str, high: f64) -> StrategyForecast {
        StrategyForecast {
            name: name.to_owned(),
            total_ms: Range { low: 9_000.0, high: 9_000.0 + high },
            downtime_ms: Range { low: 20.0, high: 20.0 + high },
            wire_bytes: Range { low: 1e9, high: 1e9 + high * 1e7 },
        }
    }

    #[test]
    fn a_plan_lists_strategies_and_refusals() {
        let refused = Refusal::new("peer-full", "beta has 1.0 GiB free", "stop a VM on beta");
        let shown = Plan {
            strategies: vec![forecast("precopy", 60.0), forecast("three-stage", 0.0)],
            recommended: Some("precopy".to_owned()),
            refusals: vec![refused],
        };
        let expected = "\
STRATEGY     TOTAL         DOWNTIME            ON THE WIRE
precopy      9.0 s to 9.1 s  20.0 ms to 80.0 ms  953.7 MiB to 1.5 GiB
three-stage  9.0 s           20.0 ms             953.7 MiB
recommended: precopy
refused, for 1 reason:
  peer-full: beta has 1.0 GiB free
    remedy: stop a VM on beta"
            .replace("TOTAL         DOWN", "TOTAL           DOWN");
        assert_eq!(plan(&shown), expected);
    }

    #[test]
    fn a_peer_is_described() {
        let view = CheckView {
            peer: "beta".to_owned(),
            address: "10.77.0.2:7837".to_owned(),
            software: "sterna 0.1.0".to_owned(),
            protocol: 1,
            accepts: true,
            round_trip_ms: 0.42,
            link_bytes_per_second: 112 << 20,
            our_certificate_days: 364,
            peer_certificate_days: 300,
            warnings: Vec::new(),
            refusals: Vec::new(),
        };
        let expected = "\
beta at 10.77.0.2:7837: reached, trusted, takes VMs from us
  software      sterna 0.1.0, protocol 1
  round trip    0.42 ms
  link          112.0 MiB/s over one connection
  certificates  days left: ours 364, theirs 300";
        assert_eq!(check(&view), expected);
        let soon = "beta's certificate expires 3 days from now".to_owned();
        let warned = check(&CheckView { warnings: vec![soon], ..view });
        assert_eq!(
            warned,
            format!("{expected}\nwarning: beta's certificate expires 3 days from now")
        );
    }
}
