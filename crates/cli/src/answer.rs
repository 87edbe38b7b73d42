//! The words that the agent answers once: the answer is printed, and becomes an exit code.

use serde::Serialize;
use sterna_api::{CheckView, Plan, Request, Response};

use crate::client::{Client, ClientError};
use crate::console::Console;
use crate::failure::{FAILED, Failure, REFUSED, UNKNOWN};
use crate::render;

/// Asks the agent and prints its answer.
///
/// # Errors
/// The agent was not reached, or said no.
pub(crate) fn ask(
    client: &Client,
    request: &Request,
    console: &mut Console,
) -> Result<u8, Failure> {
    let runtime = runtime()?;
    match runtime.block_on(client.ask(request)) {
        Ok(response) => print(response, console),
        Err(error) => {
            let code = if may_be_done(request, &error) { UNKNOWN } else { FAILED };
            Err(Failure::Client { error, code })
        }
    }
}

/// The runtime of a client: one thread.
///
/// # Errors
/// The system has no resources for it.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().map_err(Failure::EventLoop)
}

/// Prints a plan; refused if anything speaks against it.
pub(crate) fn print_plan(plan: &Plan, console: &mut Console) -> u8 {
    console.value(plan, || render::plan(plan));
    if plan.refusals.is_empty() { 0 } else { REFUSED }
}

/// Prints a sentence.
pub(crate) fn print_message(message: &str, console: &mut Console) {
    console.value(&Message { message }, || message.to_owned());
}

fn print(response: Response, console: &mut Console) -> Result<u8, Failure> {
    match response {
        Response::Vm(vm) => console.value(&vm, || render::vm(&vm)),
        Response::Vms(vms) => console.list(&vms, || render::vms(&vms)),
        Response::Jobs(jobs) => console.list(&jobs, || render::jobs(&jobs)),
        Response::Report(report) => console.value(&*report, || render::report(&report)),
        Response::Plan(plan) => return Ok(print_plan(&plan, console)),
        Response::Check(check) => return Ok(print_check(&check, console)),
        Response::Resolve(view) => console.value(&*view, || render::resolve(&view)),
        Response::Follow(view) => console.value(&*view, || render::follow(&view)),
        Response::Text(message) => {
            print_message(&message, console);
        }
        Response::Error(error) => return Err(Failure::Api(error)),
        Response::Started { .. } | Response::Progress(_) => return Err(Failure::WrongAnswer),
    }
    Ok(0)
}

fn print_check(check: &CheckView, console: &mut Console) -> u8 {
    console.value(check, || render::check(check));
    if check.accepts && check.refusals.is_empty() { 0 } else { REFUSED }
}

/// A sentence, as JSON.
#[derive(Serialize)]
struct Message<'a> {
    message: &'a str,
}

/// Whether the agent may have done something before the connection failed.
fn may_be_done(request: &Request, error: &ClientError) -> bool {
    let changes = match request {
        Request::VmStart { .. }
        | Request::VmAdopt { .. }
        | Request::VmStop { .. }
        | Request::Migrate(_)
        | Request::Follow(_)
        | Request::Switch { .. }
        | Request::Unfollow { .. }
        | Request::Resolve { guest_is: Some(_), .. }
        | Request::Cancel { .. } => true,
        Request::VmList
        | Request::VmShow { .. }
        | Request::Status { .. }
        | Request::Plan { .. }
        | Request::Check { .. }
        | Request::Jobs
        | Request::Watch { .. }
        | Request::Resolve { guest_is: None, .. }
        | Request::Report { .. } => false,
    };
    changes && !matches!(error, ClientError::NotReached { .. })
}
