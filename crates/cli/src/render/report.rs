//! The report, for people: where the time went, what the guest noticed, what the bytes were.

use sterna_api::{PageCounts, Report};
use sterna_migration::outcome::OutcomeName;
use sterna_migration::policy::DecisionName;
use sterna_model::{ByteCount, PAGE_BYTES};

use super::table::{Align, Table};
use super::units::{millis, time};

/// A job's summary.
#[must_use]
pub(crate) fn report(report: &Report) -> String {
    let mut table = Table::new([Align::Left, Align::Left]);
    table
        .row(["job", &format!("{}, {}, begun {}", report.job, report.strategy, report.started_at)]);
    table.row(["total", &total(report)]);
    table.row(["downtime", &downtime(report)]);
    if let Some(ms) = report.switch_ms {
        table.row(["switch", &format!("{} from the command", millis(ms))]);
    }
    table.row(["wire", &wire(report)]);
    if report.disk.bytes_total > 0 {
        table.row(["disk", &disk(report)]);
    }
    table.row(["agents", &agents(report)]);
    table.row(["verify", &verify(report)]);
    let mut out = vec![headline(report)];
    out.extend(table.lines("  "));
    out.extend(pages(report));
    out.extend(rounds(report));
    out.join("\n")
}

fn headline(report: &Report) -> String {
    let Report { vm, source, destination, .. } = report;
    let ended = match report.outcome {
        OutcomeName::Done => return format!("{vm} moved from {source} to {destination}"),
        OutcomeName::Failed => "failed",
        OutcomeName::Refused => "refused",
        OutcomeName::Cancelled => "cancelled and rolled back",
        OutcomeName::Unknown => "outcome unknown",
        OutcomeName::Lost => "lost",
    };
    format!("{vm} from {source} to {destination}: {ended}")
}

fn total(report: &Report) -> String {
    let phases = report.phases_ms;
    let parts = [
        ("prepare", phases.prepare),
        ("copy", phases.copy),
        ("switch-over", phases.switchover),
        ("clean-up", phases.cleanup),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(_, ms)| *ms > 0.0)
        .map(|(name, ms)| format!("{name} {}", time(*ms)))
        .collect();
    with_parts(time(report.total_ms), &parts)
}

fn downtime(report: &Report) -> String {
    let parts = report.downtime_parts_ms;
    let parts = [
        ("stop", parts.stop),
        ("drain", parts.drain),
        ("flush", parts.flush),
        ("load", parts.load),
        ("commit", parts.commit),
        ("resume", parts.resume),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(_, ms)| *ms > 0.0)
        .map(|(name, ms)| format!("{name} {ms:.1}"))
        .collect();
    with_parts(millis(report.downtime_ms), &parts)
}

fn wire(report: &Report) -> String {
    let wire = report.wire_bytes;
    let parts = [
        ("background", wire.background),
        ("pre-copy", wire.precopy),
        ("downtime", wire.downtime),
        ("post-copy", wire.postcopy),
        ("disk", wire.disk),
        ("control", wire.control),
        ("received", wire.received),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(name, bytes)| format!("{name} {}", ByteCount(*bytes)))
        .collect();
    with_parts(ByteCount(wire.total).to_string(), &parts)
}

fn disk(report: &Report) -> String {
    let disk = report.disk;
    let parts = [
        format!("used {}", ByteCount(disk.bytes_used)),
        format!("sent {}", ByteCount(disk.bytes_sent)),
        format!("free and not sent {}", ByteCount(disk.skipped_free_bytes)),
        format!("free and sent last {}", ByteCount(disk.deferred_free_bytes)),
    ];
    with_parts(ByteCount(disk.bytes_total).to_string(), &parts)
}

fn agents(report: &Report) -> String {
    let memory = report.memory;
    format!(
        "at most {} of memory at the source, {} at the destination",
        ByteCount(memory.agent_peak_anon_bytes_source),
        ByteCount(memory.agent_peak_anon_bytes_destination)
    )
}

fn verify(report: &Report) -> String {
    match (report.verify.pages_hashed, report.verify.roots_match) {
        (0, false) => "nothing was compared".to_owned(),
        (pages, true) => format!("{pages} pages hashed, roots match"),
        (pages, false) => format!("{pages} pages hashed, roots did not match or were not compared"),
    }
}

/// What became of the pages, and what that saved.
fn pages(report: &Report) -> Vec<String> {
    let pages = report.pages;
    if pages.total == 0 {
        return Vec::new();
    }
    let wire = report.wire_bytes;
    let took = [wire.background, wire.precopy, wire.downtime, wire.postcopy].iter().sum::<u64>();
    let mut out =
        vec![format!("  pages: {} of memory{}", content(pages.total), saved(pages.total, took))];
    out.extend(encodings(&pages).lines("    "));
    let sends = match report.max_sends_per_page {
        0 | 1 => "once".to_owned(),
        times => format!("{times} times"),
    };
    let PageCounts { held_back, requested, .. } = pages;
    out.push(format!(
        "    no page was sent more than {sends}; {held_back} waited for a later round, {requested} were asked for again"
    ));
    out
}

fn encodings(pages: &PageCounts) -> Table<4> {
    let mut table = Table::new([Align::Left, Align::Right, Align::Right, Align::Left]);
    for (name, count, meaning) in [
        ("zero", pages.zero, "not sent: zeros"),
        ("same", pages.same, "not sent: the destination has them"),
        ("ref", pages.r#ref, "not sent: as another page"),
        ("delta", pages.delta, "sent as what changed"),
        ("compressed", pages.compressed, "sent compressed"),
        ("raw", pages.raw, "sent as they are"),
    ] {
        if count > 0 {
            table.row([name, &count.to_string(), &content(count).to_string(), meaning]);
        }
    }
    table
}

/// What the pages took; nothing where that was not counted.
fn saved(pages: u64, wire_bytes: u64) -> String {
    if wire_bytes == 0 {
        return String::new();
    }
    // Sizes of guests and of what they send are far below 2^53, where doubles stop being exact.
    let percent = 100.0 * (1.0 - wire_bytes as f64 / content(pages).0 as f64);
    format!(" took {} on the wire ({percent:.1} % saved)", ByteCount(wire_bytes))
}

fn content(pages: u64) -> ByteCount {
    ByteCount(pages.saturating_mul(PAGE_BYTES as u64))
}

fn rounds(report: &Report) -> Vec<String> {
    if report.rounds.is_empty() {
        return Vec::new();
    }
    let mut table = Table::new([
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Left,
    ]);
    table.row(["round", "pages", "sent", "took", "dirty at its end", "then"]);
    for (number, round) in (1..).zip(&report.rounds) {
        let decision = match round.decision {
            DecisionName::NextRound => "next round",
            DecisionName::Stop => "stop",
            DecisionName::StopForPostCopy => "stop, the rest by post-copy",
            DecisionName::GiveUp => "give up",
        };
        table.row([
            i32::to_string(&number),
            round.pages.to_string(),
            ByteCount(round.bytes_wire).to_string(),
            time(round.duration_ms),
            round.dirty_pages.to_string(),
            decision.to_owned(),
        ]);
    }
    table.lines("  ")
}

fn with_parts(whole: String, parts: &[String]) -> String {
    if parts.is_empty() { whole } else { format!("{whole}: {}", parts.join(", ")) }
}

#[cfg(test)]
pub(crate) mod tests {
    use sterna_api::{
        DiskReport, DowntimeParts, MemoryReport, PhaseTimes, RoundReport, VerifyReport, WireBytes,
    };
    use sterna_migration::outcome::GuestIs;

    use super::*;

    /// The report of a move of 1 GiB that went well.
    pub(crate) fn done_report() -> Report {
        let round = |pages, dirty_pages, decision| RoundReport {
            pages,
            bytes_wire: pages * 1024,
            duration_ms: 9_100.0,
            dirty_pages,
            decision,
        };
        Report {
            job: "j1".parse().unwrap(),
            vm: "web".parse().unwrap(),
            strategy: "precopy".to_owned(),
            source: "alpha".to_owned(),
            destination: "beta".to_owned(),
            started_at: "2026-01-04T00:34:30Z".to_owned(),
            outcome: OutcomeName::Done,
            guest_is: GuestIs::Destination,
            error: None,
            refusals: Vec::new(),
            total_ms: 12_400.0,
            downtime_ms: 45.2,
            downtime_parts_ms: DowntimeParts {
                stop: 1.2,
                drain: 10.0,
                flush: 5.1,
                load: 20.0,
                commit: 3.0,
                resume: 5.9,
            },
            rounds: vec![
                round(262_144, 5_000, DecisionName::NextRound),
                round(5_000, 100, DecisionName::Stop),
            ],
            wire_bytes: WireBytes {
                total: 274_500_000,
                precopy: 273_000_000,
                downtime: 1_400_000,
                control: 80_000,
                received: 20_000,
                ..WireBytes::default()
            },
            pages: PageCounts {
                total: 267_244,
                zero: 200_000,
                same: 100,
                compressed: 60_000,
                raw: 7_144,
                held_back: 12,
                ..PageCounts::default()
            },
            max_sends_per_page: 2,
            resend_histogram: vec![0, 257_144, 5_000],
            disk: DiskReport::default(),
            memory: MemoryReport {
                agent_peak_anon_bytes_source: 30 << 20,
                agent_peak_anon_bytes_destination: 20 << 20,
            },
            phases_ms: PhaseTimes {
                prepare: 300.0,
                destination_qemu_start: 200.0,
                copy: 12_000.0,
                switchover: 60.0,
                cleanup: 40.0,
            },
            verify: VerifyReport { pages_hashed: 267_244, roots_match: true },
            requests: None,
            fault_latency_us: None,
            switch_ms: None,
        }
    }

    #[test]
    fn a_report_is_a_summary() {
        let expected = "\
web moved from alpha to beta
  job       j1, precopy, begun 2026-01-04T00:34:30Z
  total     12.4 s: prepare 300.0 ms, copy 12.0 s, switch-over 60.0 ms, clean-up 40.0 ms
  downtime  45.2 ms: stop 1.2, drain 10.0, flush 5.1, load 20.0, commit 3.0, resume 5.9
  wire      261.7 MiB: pre-copy 260.3 MiB, downtime 1.3 MiB, control 78.1 KiB, received 19.5 KiB
  agents    at most 30.0 MiB of memory at the source, 20.0 MiB at the destination
  verify    267244 pages hashed, roots match
  pages: 1.0 GiB of memory took 261.6 MiB on the wire (74.9 % saved)
    zero        200000  781.2 MiB  not sent: zeros
    same           100  400.0 KiB  not sent: the destination has them
    compressed   60000  234.3 MiB  sent compressed
    raw           7144   27.9 MiB  sent as they are
    no page was sent more than 2 times; 12 waited for a later round, 0 were asked for again
  round   pages       sent   took  dirty at its end  then
      1  262144  256.0 MiB  9.1 s              5000  next round
      2    5000    4.8 MiB  9.1 s               100  stop";
        assert_eq!(report(&done_report()), expected);
    }

    #[test]
    fn a_job_that_never_copied_is_short() {
        let failed = Report {
            outcome: OutcomeName::Failed,
            guest_is: GuestIs::Source,
            error: Some("beta cannot be reached".to_owned()),
            total_ms: 5_000.0,
            downtime_ms: 0.0,
            downtime_parts_ms: DowntimeParts::default(),
            rounds: Vec::new(),
            wire_bytes: WireBytes::default(),
            pages: PageCounts::default(),
            disk: DiskReport { bytes_total: 1 << 30, ..DiskReport::default() },
            memory: MemoryReport::default(),
            phases_ms: PhaseTimes { prepare: 5_000.0, ..PhaseTimes::default() },
            verify: VerifyReport::default(),
            requests: None,
            fault_latency_us: None,
            switch_ms: None,
            ..done_report()
        };
        let expected = "\
web from alpha to beta: failed
  job       j1, precopy, begun 2026-01-04T00:34:30Z
  total     5.0 s: prepare 5.0 s
  downtime  0.0 ms
  wire      0 B
  disk      1.0 GiB: used 0 B, sent 0 B, free and not sent 0 B, free and sent last 0 B
  agents    at most 0 B of memory at the source, 0 B at the destination
  verify    nothing was compared";
        assert_eq!(report(&failed), expected);
    }
}
