//! What is known of a VM whose owner is not, and what can be decided.

use sterna_api::{Choice, Decision, JournalView, QemuView, ResolveView};

use super::table::{Align, Table};

/// All that is known, then the decisions; or what was decided.
#[must_use]
pub(crate) fn resolve(view: &ResolveView) -> String {
    let ResolveView { vm, host, settled, .. } = view;
    if let Some(decision) = settled {
        let subject = view.job.as_ref().map_or(vm.as_str(), |job| job.as_str());
        let is = match decision {
            Decision::Source => "at the job's source",
            Decision::Destination => "at the job's destination",
            Decision::Lost => "lost",
        };
        return format!("{vm} is settled on {host} ({subject}): the guest is {is}");
    }
    let mut out = vec![format!("whose {vm} is, is not known on {host}")];
    out.extend(facts(view).lines("  "));
    out.extend(journal(&view.journal));
    out.push("what can follow, once you have looked at both hosts:".to_owned());
    out.extend(view.choices.iter().flat_map(choice));
    out.join("\n")
}

fn facts(view: &ResolveView) -> Table<2> {
    let mut table = Table::new([Align::Left, Align::Left]);
    table.row(["why", view.why.as_deref().unwrap_or("-")]);
    let peer = view.peer.as_deref().unwrap_or("not known");
    let job = match &view.job {
        Some(job) => format!("{job}; {} is its {}, the other host is {peer}", view.host, view.role),
        None => "none".to_owned(),
    };
    table.row(["job", &job]);
    table.row(["registry", &view.registry]);
    table.row(["QEMU here", &qemu(view.qemu.as_ref())]);
    for answer in &view.peers {
        let says = match &answer.state {
            Some(state) => format!("says {state}: {}", answer.meaning),
            None => format!("cannot be asked: {}", answer.meaning),
        };
        table.row([answer.peer.as_str(), says.as_str()]);
    }
    table
}

fn qemu(qemu: Option<&QemuView>) -> String {
    let Some(QemuView { pid, run_state, error }) = qemu else { return "none found".to_owned() };
    match (run_state, error) {
        (Some(state), _) => format!("pid {pid}, {state}"),
        (None, error) => format!("pid {pid}, {}", error.as_deref().unwrap_or("silent")),
    }
}

fn journal(journal: &JournalView) -> Vec<String> {
    let Some(path) = &journal.path else { return Vec::new() };
    let mut out = vec![format!("the journal {path}:")];
    out.extend(journal.error.iter().map(|error| format!("  {error}")));
    let mut table = Table::new([Align::Left, Align::Left]);
    for entry in &journal.states {
        table.row([entry.at.as_deref().unwrap_or("-"), entry.state.as_str()]);
    }
    out.extend(table.lines("  "));
    out
}

fn choice(choice: &Choice) -> Vec<String> {
    let mut out = vec![format!("  {}", choice.command), format!("      {}", choice.consequence)];
    if let Some(refusal) = &choice.refused {
        out.push(format!("      refused now: {}: {}", refusal.code, refusal.reason));
        out.push(format!("      remedy: {}", refusal.remedy));
    }
    out
}

#[cfg(test)]
mod tests {
    use sterna_api::{PeerAnswer, StateView};
    use sterna_model::Refusal;

    use super::*;

    fn unknown() -> ResolveView {
        let choice = |guest_is: Decision, text: &str, refused| Choice {
            guest_is,
            command: format!("sterna resolve j1 --guest-is {guest_is}"),
            consequence: text.to_owned(),
            refused,
        };
        ResolveView {
            job: Some("j1".parse().unwrap()),
            vm: "web".parse().unwrap(),
            host: "alpha".to_owned(),
            role: "source".to_owned(),
            peer: Some("beta".to_owned()),
            why: Some("the journal is lost".to_owned()),
            journal: JournalView {
                path: Some("/var/lib/sterna/jobs/j1.journal".to_owned()),
                error: None,
                states: vec![StateView { at: None, state: "begun: web to beta".to_owned() }],
            },
            registry: "its owner is not known".to_owned(),
            qemu: Some(QemuView { pid: 4711, run_state: Some("paused".to_owned()), error: None }),
            peers: vec![PeerAnswer {
                peer: "beta at 10.77.0.2:7837".to_owned(),
                state: Some("discarded".to_owned()),
                meaning: "it has ended its copy".to_owned(),
            }],
            choices: vec![
                choice(Decision::Source, "the guest is resumed on alpha", None),
                choice(
                    Decision::Destination,
                    "the QEMU on alpha is ended",
                    Some(Refusal::new("peer-has-not", "beta does not have it", "decide otherwise")),
                ),
            ],
            settled: None,
        }
    }

    #[test]
    fn everything_that_is_known_is_told() {
        let expected = "\
whose web is, is not known on alpha
  why                     the journal is lost
  job                     j1; alpha is its source, the other host is beta
  registry                its owner is not known
  QEMU here               pid 4711, paused
  beta at 10.77.0.2:7837  says discarded: it has ended its copy
the journal /var/lib/sterna/jobs/j1.journal:
  -  begun: web to beta
what can follow, once you have looked at both hosts:
  sterna resolve j1 --guest-is source
      the guest is resumed on alpha
  sterna resolve j1 --guest-is destination
      the QEMU on alpha is ended
      refused now: peer-has-not: beta does not have it
      remedy: decide otherwise";
        assert_eq!(resolve(&unknown()), expected);
    }

    #[test]
    fn what_was_decided_is_told() {
        let settled = ResolveView { settled: Some(Decision::Source), ..unknown() };
        assert_eq!(
            resolve(&settled),
            "web is settled on alpha (j1): the guest is at the job's source"
        );
    }
}
