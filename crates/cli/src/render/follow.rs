//! A followed VM, for people.

use sterna_api::{CopyView, FollowState, FollowView};
use sterna_model::ByteCount;

use super::table::{Align, Table};
use super::units::time;

/// How current a followed VM's copy is.
#[must_use]
pub(crate) fn follow(view: &FollowView) -> String {
    let mut table = Table::new([Align::Left, Align::Left]);
    table.row(["job", &format!("{}, since {}", view.job, view.since)]);
    table.row(["state", state(view.state)]);
    if let Some(hindrance) = &view.hindrance {
        table.row(["because", &format!("{}, {} ago", hindrance.why, time(as_f64(hindrance.ms)))]);
    }
    if let Some(copy) = &view.copy {
        figures(copy, &mut table);
    }
    let mut out = vec![format!("{} is followed to {}", view.vm, view.destination)];
    out.extend(table.lines("  "));
    out.join("\n")
}

const fn state(state: FollowState) -> &'static str {
    match state {
        FollowState::Preparing => "the destination gets ready",
        FollowState::Copying => "all memory is copied for the first time",
        FollowState::Following => "the copy is kept nearly current",
        FollowState::Reconnecting => "the destination is tried to be reached again",
        FollowState::Waiting => "it is begun anew",
        FollowState::Paused => "it is paused while devices are changed",
        FollowState::Switching => "the guest is being handed over",
    }
}

fn figures(copy: &CopyView, table: &mut Table<2>) {
    let bytes = |bytes: u64| ByteCount(bytes).to_string();
    table.row([
        "stale",
        &format!(
            "{} in {} pages of {}; about {} on the wire, {} may be",
            bytes(copy.stale_bytes),
            copy.stale_pages,
            bytes(copy.memory_bytes),
            bytes(copy.stale_wire_bytes),
            bytes(copy.allowed_wire_bytes),
        ),
    ]);
    table.row(["sent", &format!("{} in the background", bytes(copy.background_bytes))]);
    table.row(["guest", &format!("changes {}/s", bytes(copy.dirty_bytes_per_second))]);
    if let Some(epoch) = &copy.last_epoch {
        table.row([
            "epoch",
            &format!(
                "{}, ended {} ago: {} pages dirtied, {} below {:.3}/s, {} sent; window {}, next in {}; the guest waited {} % more meanwhile",
                copy.epochs,
                time(as_f64(epoch.ended_ms_ago)),
                epoch.dirtied_pages,
                epoch.eligible_pages,
                epoch.hazard_limit_per_second,
                epoch.sent_pages,
                epoch.window_pages,
                time(as_f64(epoch.next_ms)),
                epoch.harm_percent,
            ),
        ]);
    }
    if let Some(ms) = copy.predicted_switch_ms {
        table.row(["switch", &format!("about {} now (an estimate)", time(ms))]);
    }
}

#[allow(clippy::cast_precision_loss, reason = "milliseconds, far below 2^53")]
fn as_f64(ms: u64) -> f64 {
    ms as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use sterna_api::{EpochView, HindranceView};

    #[test]
    fn a_followed_vm_is_described() {
        let mut view = FollowView {
            vm: "web".parse().unwrap(),
            job: "j1".parse().unwrap(),
            destination: "beta".to_owned(),
            state: FollowState::Preparing,
            since: "2026-01-04T00:34:30Z".to_owned(),
            hindrance: None,
            copy: None,
        };
        assert_eq!(
            follow(&view),
            "web is followed to beta\n  job    j1, since 2026-01-04T00:34:30Z\n  state  the destination gets ready"
        );
        view.state = FollowState::Reconnecting;
        view.hindrance = Some(HindranceView { ms: 12_000, why: "the link broke".to_owned() });
        let text = follow(&view);
        for part in ["is tried to be reached again", "because  the link broke, 12.0 s ago"] {
            assert!(text.contains(part), "{text}");
        }
        view.state = FollowState::Following;
        view.copy = Some(CopyView {
            memory_bytes: 256 << 20,
            stale_pages: 3,
            stale_bytes: 12 << 10,
            stale_wire_bytes: 4 << 10,
            allowed_wire_bytes: 9 << 20,
            background_bytes: 40 << 20,
            predicted_switch_ms: Some(212.3),
            dirty_bytes_per_second: 8 << 10,
            epochs: 7,
            last_epoch: Some(EpochView {
                ended_ms_ago: 900,
                dirtied_pages: 12,
                eligible_pages: 9,
                sent_pages: 9,
                dirtied_again: 1,
                window_pages: 64,
                next_ms: 8000,
                hazard_limit_per_second: 0.25,
                harm_percent: 4,
            }),
        });
        let text = follow(&view);
        for part in [
            "in 3 pages",
            "9 below 0.250/s, 9 sent; window 64, next in 8.0 s; the guest waited 4 % more",
            "about 212.3 ms",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
