//! One move of a drain, followed in a task of its own.

use sterna_api::{MigrateRequest, Progress, Request, Response};
use sterna_model::{JobId, VmName};
use tokio::sync::mpsc;

use crate::client::{Client, ClientError};

use super::ending::How;

/// What is heard while a drain goes on.
pub(super) enum Said {
    /// Of this VM's move.
    Of(VmName, Heard),
    /// Something for the user.
    Note(String),
}

/// What is heard of a move.
pub(super) enum Heard {
    Started(JobId),
    Progress(Progress),
    End(How),
}

/// Begins a move and follows it to its end, which is always said.
pub(super) async fn follow(client: Client, request: MigrateRequest, say: mpsc::Sender<Said>) {
    let vm = request.name.clone();
    let how = match heard(client, request, &say).await {
        Ok(how) => how,
        Err(error) => How::Unheard(error),
    };
    let _ = say.send(Said::Of(vm, Heard::End(how))).await;
}

async fn heard(
    client: Client,
    request: MigrateRequest,
    say: &mpsc::Sender<Said>,
) -> Result<How, ClientError> {
    let vm = request.name.clone();
    let mut connection = client.connect().await?;
    connection.send(&Request::Migrate(request)).await?;
    loop {
        let heard = match connection.next().await? {
            Response::Started { job } => Heard::Started(job),
            Response::Progress(progress) => Heard::Progress(progress),
            Response::Report(report) => return Ok(How::Reported(report)),
            Response::Error(error) => return Ok(How::Refused(error)),
            _ => return Ok(How::WrongAnswer),
        };
        // The receiver is there as long as the drain is.
        let _ = say.send(Said::Of(vm.clone(), heard)).await;
    }
}
