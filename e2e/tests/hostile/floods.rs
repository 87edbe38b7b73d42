//! Too much of everything: connections, jobs, pings, bytes; and a peer that does not read.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sterna_wire::message::Echo;
use sterna_wire::{FrameKind, Message, Role};
use tokio::net::{TcpSocket, TcpStream};

use crate::bench::Bench;
use crate::caller::Caller;
use crate::protocol::prepare;
use crate::{Failure, Result, expect, run};

const CONNECTIONS: usize = 10_000;
/// Of the flood's own, open at a time.
const HELD: usize = 2_000;
const JOBS: usize = 10_000;
/// Descriptors of an agent in a flood: its places for strangers, and what it has anyhow.
const MAX_DESCRIPTORS: usize = 256 + 128;
/// How much more than before a flood may make of the agent.
const MAX_GROWTH_KIB: u64 = 48 << 10;
/// How long a flood without end is looked at.
const FLOOD: Duration = Duration::from_secs(4);
/// An honest peer beside a flood, on a machine that the flood keeps busy.
const SERVED_WITHIN: Duration = Duration::from_secs(8);

/// Serves honest peers while something goes on, and watches how large the agent becomes.
async fn beside<T>(bench: &Bench, flood: impl Future<Output = Result<T>>) -> Result<T> {
    let before = bench.usage()?;
    let watch = async {
        let mut served = 0_u32;
        loop {
            if let Err(error) = bench.serves("gamma", SERVED_WITHIN).await {
                return Failure::from(format!("after {served} that were served: {error}"));
            }
            served += 1;
            let now = match bench.usage() {
                Ok(now) => now,
                Err(error) => return error,
            };
            if now.anonymous_kib > before.anonymous_kib + MAX_GROWTH_KIB
                || now.descriptors > MAX_DESCRIPTORS
            {
                return format!("expected a bounded agent, found {now:?} after {before:?}").into();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        done = flood => done,
        error = watch => Err(error),
    }
}

#[test]
fn ten_thousand_connections_that_say_nothing() -> Result<()> {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?;
    run(async {
        let bench = Bench::start("")?;
        let before = bench.usage()?;
        let address = bench.address().parse()?;
        let flood = async {
            let mut held: VecDeque<TcpStream> = VecDeque::new();
            for _ in 0..CONNECTIONS {
                let socket = TcpSocket::new_v4()?;
                socket.bind("127.0.0.2:0".parse()?)?;
                held.push_back(socket.connect(address).await?);
                if held.len() > HELD {
                    held.pop_front();
                }
            }
            // The flood holds what it has; others are greeted all the same.
            tokio::time::sleep(Duration::from_secs(2)).await;
            Ok(())
        };
        beside(&bench, flood).await?;
        bench
            .is_well(
                before,
                &["turned away", "127.0.0.2", "flood of connections", "not logged one by one"],
            )
            .await
    })
}

#[test]
fn a_peer_with_very_many_connections_is_refused_more() -> Result<()> {
    run(async {
        let bench = Bench::start("jobs = 2")?;
        let (alpha, before) = (bench.identity("alpha")?, bench.usage()?);
        let mut held = Vec::new();
        for _ in 0..34 {
            held.push(Caller::call(&bench, &alpha, Role::Control).await?);
        }
        let refusal = Caller::refused(&bench, &alpha, Role::Check).await?;
        expect(refusal.code == "too-many-connections", "too-many-connections", &refusal)?;
        bench.serves("gamma", SERVED_WITHIN).await?;
        drop(held);
        bench.is_well(before, &["alpha was refused", "too-many-connections"]).await?;
        bench.serves("alpha", SERVED_WITHIN).await
    })
}

#[test]
fn ten_thousand_jobs_that_cannot_be() -> Result<()> {
    run(async {
        let bench = Bench::start("")?;
        let (alpha, nemo, before) =
            (bench.identity("alpha")?, bench.identity("nemo")?, bench.usage()?);
        // Asked for on one connection, and one after the other on connections of their own.
        let asked = async {
            for (identity, code) in [(&alpha, "description-malformed"), (&nemo, "peer-not-allowed")]
            {
                let mut caller = Caller::call(&bench, identity, Role::Check).await?;
                for job in 0..JOBS / 2 {
                    let prepare = prepare(&format!("job-{job}"), "web", &"x".repeat(2000))?;
                    caller.send(&Message::Prepare(prepare)).await?;
                    match caller.receive().await? {
                        Some(Message::Refused(no)) if no.refusals[0].code == code => {}
                        other => return Err(format!("expected {code}, found {other:?}").into()),
                    }
                }
            }
            for job in 0..200 {
                let mut caller = Caller::call(&bench, &alpha, Role::Control).await?;
                let prepare = prepare(&format!("job-{job}"), "web", "{}")?;
                caller.send(&Message::Prepare(prepare)).await?;
                caller.wait_for_close(Duration::from_secs(5)).await?;
            }
            Ok(())
        };
        beside(&bench, asked).await?;
        expect(bench.sterna(&["jobs", "-o", "json"])?.1.trim() == "[]", "no job", &bench.log())?;
        let journals =
            std::fs::read_dir(bench.folder().join("state/jobs")).map_or(0, Iterator::count);
        expect(journals == 0, "no journal", &journals)?;
        bench.is_well(before, &["a VM was refused", "alpha"]).await
    })
}

#[test]
fn pings_without_end_from_a_peer_that_does_not_read() -> Result<()> {
    run(async {
        let bench = Bench::start("")?;
        let (alpha, before) = (bench.identity("alpha")?, bench.usage()?);
        let flood = async {
            let start = Instant::now();
            let mut callers = Vec::new();
            for role in [Role::Control, Role::Control, Role::Check] {
                callers.push(Caller::call(&bench, &alpha, role).await?);
            }
            let (mut sent, mut stuck) = (0_u64, Vec::new());
            while start.elapsed() < FLOOD {
                let Some(mut caller) = callers.pop() else {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let ping = Message::Ping(Echo { nonce: sent, sent_ns: 0 });
                // It waits when the agent does not read on either, which is as it should be.
                let sending = tokio::time::timeout(Duration::from_millis(500), caller.send(&ping));
                match sending.await {
                    Ok(done) => {
                        done?;
                        sent += 1;
                        callers.insert(0, caller);
                    }
                    Err(_) => stuck.push(caller),
                }
            }
            expect(sent > 1000, "pings that were taken", &sent)
        };
        beside(&bench, flood).await?;
        bench.is_well(before, &[]).await
    })
}

#[test]
fn probes_without_end() -> Result<()> {
    run(async {
        let bench = Bench::start("")?;
        let (alpha, before) = (bench.identity("alpha")?, bench.usage()?);
        let flood = async {
            let (start, probe) = (Instant::now(), vec![0x5a; 256 << 10]);
            let mut caller = Caller::call(&bench, &alpha, Role::Check).await?;
            while start.elapsed() < FLOOD {
                caller.send_frame(FrameKind::Probe, &probe).await?;
            }
            caller.ping().await
        };
        beside(&bench, flood).await?;
        bench.is_well(before, &[]).await
    })
}
