//! Shrinking: faults are taken away one by one, as long as the same oracle still complains.

use crate::faults::Scenario;
use crate::oracle::Violation;
use crate::run::{Options, run};

/// A failing scenario with no fault that could be left out.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// Which of its faults are left, by their place in the seed's list.
    pub kept: Vec<usize>,
    /// The scenario with these.
    pub scenario: Scenario,
    /// What is still violated.
    pub violation: Violation,
}

/// Shrinks a scenario that fails; none if it does not.
#[must_use]
pub fn shrink(scenario: &Scenario, options: Options) -> Option<Shrunk> {
    let mut violation = run(scenario, options).violation?;
    let mut kept: Vec<usize> = (0..scenario.faults.len()).collect();
    let mut at = 0;
    while at < kept.len() {
        let mut fewer = kept.clone();
        fewer.remove(at);
        let found = run(&scenario.keeping(&fewer), options).violation;
        match found.filter(|found| found.oracle == violation.oracle) {
            Some(found) => {
                violation = found;
                kept = fewer;
                // What could not be left out before may be now.
                at = 0;
            }
            None => at += 1,
        }
    }
    Some(Shrunk { scenario: scenario.keeping(&kept), kept, violation })
}
