//! The same guest to and fro: what one move in many would lose shows here.

use sterna_e2e::{Guest, Result, Setup, Vm, story};

#[test]
fn twenty_moves_in_a_row_lose_no_page() -> Result<()> {
    let moves =
        if std::env::var_os("STERNA_SOAK").is_some_and(|value| value == "1") { 50 } else { 20 };
    story(&Setup::default(), |pair| {
        let load = "hotset size=24M rate=6M text=30 duplicate=20 sweep=30";
        let mut vm = Vm::start(pair, &Guest::new("commuter").load(load))?;
        for number in 1..=moves {
            let moved = vm.migrate(pair, &[])?;
            vm.check_ticks()?;
            eprintln!("move {number}: {} ms down", moved.number("/downtime_ms")?);
        }
        vm.check_works()
    })
}
