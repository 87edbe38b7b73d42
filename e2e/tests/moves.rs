//! One move of a guest, whatever it is doing: the contract's promises about a move that goes well.

use sterna_e2e::{Guest, Pair, Result, Setup, Side, Vm, expect_that, story};

/// A limit that a busy test machine keeps too; what Sterna can do is the benchmark's matter.
const MAX_DOWNTIME_MS: u16 = 1000;

#[test]
fn an_idle_guest_moves() -> Result<()> {
    moves("idle size=16M sweep=30")
}

#[test]
fn a_uniform_writer_of_random_pages_moves() -> Result<()> {
    moves("uniform size=16M rate=4M sweep=30")
}

#[test]
fn a_hot_set_of_text_moves() -> Result<()> {
    moves("hotset size=24M rate=8M text=80 sweep=30")
}

#[test]
fn a_sparse_writer_of_duplicates_moves() -> Result<()> {
    moves("sparse size=24M rate=16M duplicate=60 text=20 sweep=30")
}

#[test]
fn a_rewriter_of_the_same_contents_moves() -> Result<()> {
    moves("rewrite size=24M rate=16M text=40 random=40 sweep=30")
}

/// There and back and there again: no stay's output is lost, and the guest's clock never goes back.
#[test]
fn a_guest_comes_back() -> Result<()> {
    story(&Setup::default(), |pair| {
        let mut vm =
            Vm::start(pair, &Guest::new("traveller").load("sparse size=16M rate=4M sweep=30"))?;
        let first = vm.log().ticks()?.len();
        for side in [Side::Beta, Side::Alpha, Side::Beta] {
            vm.migrate(pair, &[])?;
            assert_eq!(vm.at(), side);
            vm.check_ticks()?;
        }
        vm.check_works()?;
        let ticks = vm.log().ticks()?;
        assert!(ticks.len() >= first + 3, "{ticks:?}");
        Ok(())
    })
}

fn moves(load: &str) -> Result<()> {
    story(&Setup::default(), |pair| {
        let mut vm = Vm::start(pair, &Guest::new("mover").load(load))?;
        vm.check_ticks()?;
        let before = vm.log().last_tick()?;
        let moved = vm.migrate(pair, &["--max-downtime", &MAX_DOWNTIME_MS.to_string()])?;
        vm.check_works()?;
        let after = vm.log().last_tick()?;
        assert!(after.time_ms > before.time_ms && after.writes >= before.writes, "{after:?}");
        check_report(pair, &moved)
    })
}

fn check_report(pair: &Pair, moved: &sterna_e2e::Move) -> Result<()> {
    let downtime_ms = moved.number("/downtime_ms")?;
    let limit_ms = f64::from(MAX_DOWNTIME_MS);
    expect_that(downtime_ms > 0.0 && downtime_ms < limit_ms, "downtime_ms", limit_ms, downtime_ms)?;
    let total_ms = moved.number("/total_ms")?;
    expect_that(total_ms > downtime_ms, "total_ms", "more than the downtime", total_ms)?;
    // The wire's counters include headers and what else is said; the report must not say more.
    let wire_bytes = moved.number("/wire_bytes/total")?;
    let source = pair.world().counters(Side::Alpha)?;
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
    let counted = (source.sent_bytes + source.received_bytes) as f64;
    let is_near = wire_bytes <= counted && wire_bytes > counted * 0.8;
    expect_that(is_near, "wire_bytes.total", format!("a little below {counted}"), wire_bytes)?;
    let hashed = moved.number("/verify/pages_hashed")?;
    expect_that(hashed > 1000.0, "verify.pages_hashed", "thousands", hashed)
}
