//! The link as programs on two hosts find it: its delay, its rate, its loss, its end. Needs root.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use sterna_e2e::command::{Output, Running, is_alive, tool, wait_for};
use sterna_e2e::{
    EmulatedLink, Error, GuestNetwork, Link, Result, Side, World, can_run_here, expect_that,
};
use sterna_model::Rate;

const LIMIT: Duration = Duration::from_secs(30);
/// 20 Mbit/s.
const RATE: Rate = Rate { bytes_per_second: 2_500_000 };
const ROUND_TRIP: Duration = Duration::from_millis(100);
/// Left out of a measurement of the rate: a connection begins slowly.
const WARM_UP_BYTES: usize = 3_000_000;
/// What a full packet's headers leave: 52 of 1500 bytes are theirs.
const PAYLOAD_SHARE_MAX: f64 = 0.966;
/// Of one core, at 20 Mbit/s; it was 0.10 where this was written.
const CPU_SHARE_MAX: f64 = 0.25;

fn link(round_trip: Duration) -> EmulatedLink {
    EmulatedLink::new(RATE, round_trip)
}

fn world(link: EmulatedLink) -> Result<World> {
    World::with_link(GuestNetwork::Absent, Link::Emulated(link))
}

/// Whatever busybox's ping prints, whether an answer came or not.
fn ping(world: &World, words: &[&str]) -> Result<Output> {
    let mut command = world.command_at(Side::Alpha, Path::new("busybox"));
    command.arg("ping").args(words).arg(Side::Beta.address());
    Running::start(&mut command)?.wait(LIMIT)
}

#[test]
fn a_small_packet_takes_the_round_trip() -> Result<()> {
    if !can_run_here()? {
        return Ok(());
    }
    let mut world = world(link(ROUND_TRIP))?;
    let output = ping(&world, &["-c", "8", "-i", "0.2"])?.success()?;
    let times: Vec<f64> = (output.stdout.lines())
        .filter_map(|line| line.split_once("time=")?.1.split_once(' ')?.0.parse().ok())
        .collect();
    assert_eq!(times.len(), 8, "{output:?}");
    assert!(times.iter().all(|time| (100.0..105.0).contains(time)), "{times:?}");
    let report = world.end_link()?;
    eprintln!("{times:?}\n{report}");
    for direction in 0..2 {
        assert_eq!(report["directions"][direction]["forwarded_packets"], 8, "{report}");
    }
    assert_ne!(ping(&world, &["-c", "1", "-W", "1"])?.code, Some(0), "a wire that was ended");
    Ok(())
}

#[test]
fn a_connection_gets_the_rate() -> Result<()> {
    if !can_run_here()? {
        return Ok(());
    }
    let mut world = world(link(ROUND_TRIP))?;
    let length_bytes = 6_000_000;
    let before = world.counters(Side::Alpha)?;
    let start = Instant::now();
    let took = transfer(&world, length_bytes)?;
    let sent_bytes = world.counters(Side::Alpha)?.sent_bytes - before.sent_bytes;
    let report = world.end_link()?;
    let seconds = start.elapsed().as_secs_f64();
    let share_of = |bytes: usize, seconds| bytes as f64 / seconds / RATE.bytes_per_second as f64;
    let later = share_of(length_bytes, took.as_secs_f64());
    let whole = share_of(length_bytes + WARM_UP_BYTES, seconds);
    let cpu_share = number(&report, "/cpu_seconds")? / seconds;
    eprintln!(
        "payload: {later:.3} of the rate once warm, {whole:.3} in all; {cpu_share:.3} of a core"
    );
    eprintln!("{report}");
    assert!(later > 0.90 && whole < PAYLOAD_SHARE_MAX, "{later}, {whole}");
    assert!(sent_bytes > (length_bytes + WARM_UP_BYTES) as u64, "{sent_bytes} by the device");
    assert!(cpu_share < CPU_SHARE_MAX, "{cpu_share} of a core");
    Ok(())
}

/// 1000 small packets go and as many come back, less those lost: about 20; five standard deviations.
#[test]
fn one_packet_in_a_hundred_is_lost() -> Result<()> {
    if !can_run_here()? {
        return Ok(());
    }
    let mut world = world(link(Duration::from_millis(10)).losing(10_000, 7))?;
    let output = ping(&world, &["-c", "1000", "-i", "0.001", "-W", "1"])?;
    let summary = output.stdout.lines().find(|line| line.contains("packets transmitted"));
    let words: Vec<&str> = summary.unwrap_or_default().split_whitespace().collect();
    let received: u64 = words.get(3).and_then(|word| word.parse().ok()).unwrap_or_default();
    let report = world.end_link()?;
    eprintln!("{summary:?}\n{report}");
    assert!((1000 - 42..=1000 - 3).contains(&received), "{summary:?}");
    let lost = |direction: usize| number(&report, &format!("/directions/{direction}/lost_packets"));
    assert_eq!(lost(0)? + lost(1)?, (1000 - received) as f64, "{report}");
    Ok(())
}

#[test]
fn a_cut_wire_carries_nothing_until_it_is_mended_and_is_not_shaped() -> Result<()> {
    if !can_run_here()? {
        return Ok(());
    }
    let world = world(link(Duration::from_millis(10)))?;
    let is_joined = || Ok(ping(&world, &["-c", "1", "-W", "1"])?.code == Some(0));
    assert!(is_joined()?);
    world.cut()?;
    assert!(!is_joined()?);
    world.unshape()?;
    assert!(is_joined()?);
    let refused = world.shape("10M".parse().unwrap());
    assert!(matches!(refused, Err(Error::Unexpected { .. })), "{refused:?}");
    Ok(())
}

#[test]
fn the_emulator_ends_with_its_world_and_says_what_it_cannot_do() -> Result<()> {
    if !can_run_here()? {
        return Ok(());
    }
    let world = world(link(ROUND_TRIP))?;
    let pids = tool("ip", ["netns", "pids", &world.namespace(Side::Beta)])?;
    let pid = pids.trim().parse().unwrap();
    expect_that(is_alive(pid), "the emulator", "that it is found in beta's namespace", &pids)?;
    drop(world);
    wait_for("its end", LIMIT, || Ok((!is_alive(pid)).then_some(())))?;

    let refused = World::with_link(
        GuestNetwork::Absent,
        Link::Emulated(EmulatedLink::new(Rate { bytes_per_second: 125_000_000 }, LIMIT)),
    );
    assert!(refused.is_err_and(|error| error.to_string().contains("at most 256.0 MiB")));
    Ok(())
}

#[test]
fn a_signal_or_a_closed_input_ends_it_with_a_report() -> Result<()> {
    if !can_run_here()? {
        return Ok(());
    }
    let world = World::new(GuestNetwork::Absent)?;
    for side in Side::BOTH {
        let namespace = world.namespace(side);
        tool("ip", ["-n", &namespace, "tuntap", "add", "dev", "line", "mode", "tun"])?;
        // No IPv6, whose chatter would be counted.
        tool("ip", ["-n", &namespace, "link", "set", "line", "addrgenmode", "none", "up"])?;
    }
    let start = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_link-emulator"));
        command.args(Side::BOTH.map(|side| format!("/run/netns/{}", world.namespace(side))));
        command.args(["--device", "line", "--rate", "1M"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().map_err(Error::io("starting it"))
    };
    let finish = |mut child: Child| -> Result<()> {
        let mut text = String::new();
        let _ = child.stdout.take().unwrap().read_to_string(&mut text);
        let report: Value = serde_json::from_str(&text).unwrap_or_default();
        assert_eq!(report["directions"][1]["forwarded_packets"], 0, "{text:?}");
        assert_eq!(text.lines().count(), 1);
        assert!(child.wait().unwrap().success());
        Ok(())
    };
    for name in ["INT", "TERM"] {
        let child = start()?;
        wait_for_carrier(&world)?;
        sterna_e2e::command::signal(child.id(), name)?;
        finish(child)?;
    }
    let mut child = start()?;
    wait_for_carrier(&world)?;
    drop(child.stdin.take());
    finish(child)
}

fn wait_for_carrier(world: &World) -> Result<()> {
    let namespace = world.namespace(Side::Beta);
    wait_for("the device's carrier", LIMIT, || {
        let text = tool("ip", ["-n", &namespace, "link", "show", "line"])?;
        Ok(text.contains("LOWER_UP").then_some(()))
    })
}

fn number(report: &Value, pointer: &str) -> Result<f64> {
    let number = report.pointer(pointer).and_then(Value::as_f64);
    number.ok_or_else(|| Error::unexpected(pointer, "a number", report))
}

/// Sends zeros from alpha to beta: first to warm up, then so many more; the time of those.
fn transfer(world: &World, length_bytes: usize) -> Result<Duration> {
    let start_nc = |side, arguments: &[&str]| {
        let mut command = world.command_at(side, Path::new("busybox"));
        command.arg("nc").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().map_err(Error::io("starting busybox nc"))
    };
    let mut receiver = start_nc(Side::Beta, &["-l", "-p", "9000"])?;
    thread::sleep(Duration::from_millis(300));
    let mut sender = start_nc(Side::Alpha, &[Side::Beta.address(), "9000"])?;
    let output = receiver.stdout.take();
    let reader = thread::spawn(move || {
        let mut output = output?;
        let start = count_until(&mut output, WARM_UP_BYTES)?;
        Some(count_until(&mut output, length_bytes)? - start)
    });
    let input = sender.stdin.as_mut();
    let written = input.map(|input| input.write_all(&vec![0; WARM_UP_BYTES + length_bytes]));
    let took = reader.join().ok().flatten();
    for child in [&mut sender, &mut receiver] {
        // Both fail only when it has ended already.
        let _ = child.kill();
        let _ = child.wait();
    }
    took.ok_or_else(|| Error::unexpected("a transfer", "all bytes", format!("{written:?}")))
}

/// When so many bytes have come; none if it ends before.
fn count_until(output: &mut impl Read, length_bytes: usize) -> Option<Instant> {
    let mut buffer = vec![0; 1 << 16];
    let mut left = length_bytes;
    while left > 0 {
        let wanted = left.min(buffer.len());
        let length = output.read(&mut buffer[..wanted]).ok().filter(|length| *length > 0)?;
        left -= length;
    }
    Some(Instant::now())
}
