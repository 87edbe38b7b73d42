//! The guest's clients: their connections live on, and they find the guest where it is.

use std::time::Duration;

use sterna_e2e::{Guest, GuestNetwork, Prober, Result, Setup, Vm, ask_guest, expect_that, story};

const LIMIT: Duration = Duration::from_secs(60);
/// Downtime, the time until the network knows, and TCP's doubling wait for its next attempt.
const LONGEST_GAP: Duration = Duration::from_secs(4);

#[test]
fn an_open_connection_lives_through_moves() -> Result<()> {
    let setup = Setup { guest_network: GuestNetwork::Bridged, ..Setup::default() };
    story(&setup, |pair| {
        let guest = Guest::new("server").load("uniform size=16M rate=4M sweep=20").tap();
        let mut vm = Vm::start(pair, &guest)?;
        let prober = Prober::start(pair.world(), LIMIT)?;
        for _ in 0..2 {
            vm.migrate(pair, &[])?;
            prober.wait_for_echo(LIMIT)?;
            let answer = ask_guest(pair.world(), "sweep", LIMIT)?;
            expect_that(answer.starts_with("OK "), "the guest's sweep", "OK", &answer)?;
        }
        let seen = prober.finish();
        eprintln!("{seen:?}");
        assert!(seen.lived && seen.longest_gap < LONGEST_GAP, "{seen:?}");
        vm.check_ticks()
    })
}
