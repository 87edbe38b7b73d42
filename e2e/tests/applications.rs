//! Programs as people use them, moved while they work: a redis server, vim, decoders of sound and video.
//!
//! In CI, and with `STERNA_APPLICATIONS` or `STERNA_SOAK` set: their disk is a download of some 80 MB.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use sterna_e2e::command::wait_for;
use sterna_e2e::{
    Application, Error, GUEST_ADDRESS, Guest, GuestNetwork, Pair, Prober, Result, Setup, Vm,
    ask_guest, expect_that, story,
};

const LIMIT: Duration = Duration::from_secs(60);
/// What the network needs beside the downtime: see tests/network.rs.
const LONGEST_GAP: Duration = Duration::from_secs(4);
/// Work in two passes after the move: more than any of them does in a second.
const WORK: u64 = 40;

#[test]
fn a_redis_server_moves_with_its_clients() -> Result<()> {
    let setup = Setup { guest_network: GuestNetwork::Bridged, ..Setup::default() };
    told(&setup, |pair| {
        let mut vm = Vm::start(pair, &Guest::new("server").application(Application::Redis))?;
        let prober = Prober::start(pair.world(), LIMIT)?;
        expect_answer(pair)?;
        moves_at_work(pair, &mut vm)?;
        expect_answer(pair)?;
        let answer = ask_guest(pair.world(), "sweep", LIMIT)?;
        expect_that(answer.starts_with("OK "), "the guest's sweep", "OK", &answer)?;
        let seen = prober.finish();
        assert!(seen.lived && seen.longest_gap < LONGEST_GAP, "{seen:?}");
        Ok(())
    })
}

#[test]
fn an_editor_moves_while_somebody_types() -> Result<()> {
    moves(Application::Edit)
}

#[test]
fn a_player_of_sound_moves() -> Result<()> {
    moves(Application::Audio)
}

#[test]
fn a_player_of_video_moves() -> Result<()> {
    moves(Application::Video)
}

fn moves(application: Application) -> Result<()> {
    told(&Setup::default(), |pair| {
        let mut vm = Vm::start(pair, &Guest::new(application.name()).application(application))?;
        moves_at_work(pair, &mut vm)
    })
}

/// There and back: the application works and is intact before, between and after.
fn moves_at_work(pair: &Pair, vm: &mut Vm) -> Result<()> {
    vm.check_works()?;
    for _ in 0..2 {
        let before = vm.log().last_tick()?;
        vm.migrate(pair, &[])?;
        vm.check_works()?;
        let after = vm.log().last_tick()?;
        let work = after.writes - before.writes;
        expect_that(work >= WORK, "work since the move", format!("at least {WORK}"), work)?;
    }
    Ok(())
}

fn told(setup: &Setup, tell: impl FnOnce(&mut Pair) -> Result<()>) -> Result<()> {
    if ["CI", "STERNA_APPLICATIONS", "STERNA_SOAK"]
        .iter()
        .all(|name| std::env::var_os(name).is_none())
    {
        eprintln!("SKIPPED: a download of some 80 MB; STERNA_APPLICATIONS=1 runs it");
        return Ok(());
    }
    story(setup, tell)
}

/// Redis answers a client from outside.
fn expect_answer(pair: &Pair) -> Result<()> {
    let mut client: Command = pair.world().command_of_client(Path::new("busybox"));
    client.args(["nc", GUEST_ADDRESS, "6379"]);
    client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut client = client.spawn().map_err(Error::io("starting busybox nc"))?;
    let asked = client.stdin.as_mut().map(|input| input.write_all(b"PING\r\n"));
    let output = client.stdout.take().map(BufReader::new);
    let reader = std::thread::spawn(move || {
        let mut line = String::new();
        // What cannot be read is no answer.
        let _ = output.map(|mut output| output.read_line(&mut line));
        line
    });
    let answered = wait_for("an answer of redis", LIMIT, || Ok(reader.is_finished().then_some(())));
    let _ = client.kill();
    let _ = client.wait();
    answered?;
    let line = reader.join().unwrap_or_default();
    let is_pong = matches!(asked, Some(Ok(()))) && line.trim() == "+PONG";
    expect_that(is_pong, "redis", "+PONG", format!("{line:?}"))
}
