//! `sterna`, the one binary: a thin client of the agent's control socket, and the few words that need no agent.
//!
//! ```text
//! args      what was typed          task      what is to be done
//! client    the control socket      job       a job, followed to its end: progress, interrupts, report
//! answer    every other answer      console   standard output and error, and how they may fail
//! render    values to text, pure
//! agent (and its log), pki, inspect, manual    the words that are done here
//! ```

mod agent;
mod answer;
mod args;
mod client;
mod console;
mod failure;
mod inspect;
mod job;
mod log;
mod manual;
mod pki;
mod render;
mod task;

use std::process::ExitCode;

use crate::args::Cli;
use crate::client::Client;
use crate::console::Console;
use crate::failure::Failure;
use crate::task::{Invocation, Task};

fn main() -> ExitCode {
    let typed = match Cli::read(std::env::args_os()) {
        Ok(typed) => typed,
        Err(error) => {
            // Nobody may be reading; the exit code says it all the same.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let mut console = Console::new(typed.common.output);
    let done = Invocation::from_typed(typed).and_then(|call| run(call.task, &mut console));
    let code = done.unwrap_or_else(|failure| {
        console.note(&failure.to_string());
        failure.exit_code()
    });
    ExitCode::from(console.close(code))
}

/// Does what is to be done; returns the exit code.
fn run(task: Task, console: &mut Console) -> Result<u8, Failure> {
    match task {
        Task::Agent { config } => agent::run_agent(config.as_deref())?,
        Task::PkiInit { directory } => pki::init(&directory, console)?,
        Task::PkiIssue { directory, host } => pki::issue(&directory, &host, console)?,
        Task::PkiRevoke { directory, host } => pki::revoke(&directory, host.as_ref(), console)?,
        Task::StreamInspect { file } => return inspect::inspect(&file, console),
        Task::Manual { directory } => manual::write_pages(&directory)?,
        Task::Completions { shell } => manual::print_completions(shell, console),
        Task::Ask { socket, request } => {
            return answer::ask(&Client::new(socket), &request, console);
        }
        Task::Drain { socket, drain } => {
            return job::run_drain(Client::new(socket), &drain, console);
        }
        Task::Job { socket, errand } => return job::run(Client::new(socket), &errand, console),
    }
    Ok(0)
}
