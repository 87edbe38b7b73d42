//! A source that makes the connections of its job anew, and one of an attempt that it gave up comes late: what has arrived is
//! kept, and the source may come back once more.

use std::time::{Duration, Instant};

use sterna_host::tls::TlsIdentity;
use sterna_wire::keep::KEEP;
use sterna_wire::message::{Abort, Prepared};
use sterna_wire::post_copy::{POST_COPY, Rejoin};
use sterna_wire::{Message, Reply, Role, Text};

use crate::bench::Bench;
use crate::caller::{Caller, offer};
use crate::guest::{MACHINE, RAM_BYTES, description, head, wait_for_end};
use crate::protocol::prepare;
use crate::{Result, expect, run};

const JOB: &str = "job-1";
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn a_late_connection_of_a_given_up_attempt_costs_no_move() -> Result<()> {
    run(async {
        let bench = Bench::start("")?;
        let (alpha, before) = (bench.identity("alpha")?, bench.usage()?);
        let (source, prepared) = begin(&bench, &alpha).await?;
        let first = connect_both(&bench, &alpha, &prepared).await?;
        drop((source, first));

        let mut source = rejoin(&bench, &alpha).await?;
        let present = connect_both(&bench, &alpha, &prepared).await?;
        // It was on its way when the source gave its first attempt up, and says what the present ones say.
        let late = call(&bench, &alpha, data(&prepared, 0)?).await?;
        source.wait_for_close(LIMIT).await?;
        drop((present, late));

        let mut source = rejoin(&bench, &alpha).await?;
        let (_, jobs) = bench.sterna(&["jobs", "-o", "json"])?;
        let jobs: serde_json::Value = serde_json::from_str(&jobs)?;
        expect(jobs[0]["state"] == "receiving", "a job that goes on", &jobs)?;
        let reason = Text::new("seen enough");
        source.send(&Message::Abort(Abort { reason, keep: false })).await?;
        wait_for_end(&bench, JOB).await?;
        bench.is_well(before, &["expected a data connection of 0 to 1, each once"]).await
    })
}

/// A job that is kept while its source is away, as far as its first round.
async fn begin(bench: &Bench, identity: &TlsIdentity) -> Result<(Caller, Prepared)> {
    let mut source = call(bench, identity, Role::Control).await?;
    let mut prepare = prepare(JOB, "victim", &description()?)?;
    prepare.keep_ms = Some(60_000);
    source.send(&Message::Prepare(prepare)).await?;
    let prepared = match source.receive().await? {
        Some(Message::Prepared(prepared)) => prepared,
        other => return Err(format!("expected it to be prepared, found {other:?}").into()),
    };
    source.send(&head(MACHINE, "pc.ram", RAM_BYTES)?).await?;
    Ok((source, prepared))
}

/// The job's control connection anew. The agent may not have noticed yet that the last one is gone.
async fn rejoin(bench: &Bench, identity: &TlsIdentity) -> Result<Caller> {
    let begun = Instant::now();
    loop {
        let mut source = call(bench, identity, Role::Control).await?;
        let job = prepare(JOB, "victim", "")?;
        let (uuid, epoch, page_key) = (job.uuid, job.epoch, job.page_key);
        let rejoin = Rejoin { job: job.job, uuid, epoch, page_key, connections: job.connections };
        source.send(&Message::Rejoin(rejoin)).await?;
        match source.receive().await {
            Ok(Some(Message::Rejoined(_))) => return Ok(source),
            other if begun.elapsed() > LIMIT => {
                return Err(format!("expected to come back, found {other:?}").into());
            }
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn connect_both(
    bench: &Bench,
    identity: &TlsIdentity,
    prepared: &Prepared,
) -> Result<[Caller; 2]> {
    Ok([
        call(bench, identity, data(prepared, 0)?).await?,
        call(bench, identity, data(prepared, 1)?).await?,
    ])
}

fn data(prepared: &Prepared, connection: u16) -> Result<Role> {
    Ok(Role::Data { job: JOB.parse()?, token: prepared.token, connection })
}

/// As an agent that can keep and rejoin.
async fn call(bench: &Bench, identity: &TlsIdentity, role: Role) -> Result<Caller> {
    let mut caller = Caller::connect(bench, identity).await?;
    match caller.hello(&offer(1, 1, &[KEEP, POST_COPY]), role).await? {
        Reply::Welcome(_) => Ok(caller),
        Reply::Refused { refusal } => Err(format!("refused: {refusal}").into()),
    }
}
