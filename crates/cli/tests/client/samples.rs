//! What an agent says in these tests.

use sterna_api::{
    DiskReport, DowntimeParts, MemoryReport, PageCounts, PhaseTimes, Progress, Report, Response,
    VerifyReport, WireBytes,
};
use sterna_migration::outcome::{GuestIs, OutcomeName};
use sterna_model::Refusal;

/// A job has begun.
pub(crate) fn started() -> Response {
    Response::Started { job: "j1".parse().unwrap() }
}

/// A job is somewhere.
pub(crate) fn progress(phase: &str, elapsed_ms: u64, percent: f64) -> Response {
    Response::Progress(Progress {
        job: "j1".parse().unwrap(),
        phase: phase.to_owned(),
        elapsed_ms,
        round: 1,
        percent,
        memory_done_bytes: 1 << 20,
        memory_total_bytes: 1 << 30,
        remaining_bytes: 0,
        wire_bytes: 1 << 20,
        rate_bytes_per_second: 1 << 20,
        dirty_bytes_per_second: 0,
        eta_ms: None,
    })
}

/// A job has ended.
pub(crate) fn report(outcome: OutcomeName, guest_is: GuestIs, error: Option<&str>) -> Response {
    Response::Report(Box::new(Report {
        job: "j1".parse().unwrap(),
        vm: "web".parse().unwrap(),
        strategy: "precopy".to_owned(),
        source: "alpha".to_owned(),
        destination: "beta".to_owned(),
        started_at: "2026-01-04T00:34:30Z".to_owned(),
        outcome,
        guest_is,
        error: error.map(str::to_owned),
        refusals: Vec::new(),
        total_ms: 1_500.0,
        downtime_ms: 45.2,
        downtime_parts_ms: DowntimeParts::default(),
        rounds: Vec::new(),
        wire_bytes: WireBytes::default(),
        pages: PageCounts::default(),
        max_sends_per_page: 1,
        resend_histogram: Vec::new(),
        disk: DiskReport::default(),
        memory: MemoryReport::default(),
        phases_ms: PhaseTimes::default(),
        verify: VerifyReport { pages_hashed: 10, roots_match: true },
        requests: None,
        fault_latency_us: None,
        switch_ms: None,
    }))
}

/// A job has ended well.
pub(crate) fn done() -> Response {
    report(OutcomeName::Done, GuestIs::Destination, None)
}

/// A reason not to begin.
pub(crate) fn refusal() -> Refusal {
    Refusal::new("no-such-peer", "beta is not configured", "add [peers.beta]")
}
