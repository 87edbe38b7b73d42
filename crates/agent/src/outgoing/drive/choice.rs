//! Which policy decides, by the strategy that was asked for and by what the destination can do; its decisions are kept for
//! the report.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sterna_api::{MigrateOptions, Strategy};
use sterna_migration::policy::{Decision, Follow, Policy, Precopy, RoundFacts, ThreeStage};
use sterna_migration::source::Finish;

/// The last decision and what it was made from, until the drive loop takes it.
pub(super) type Decided = Arc<Mutex<Option<(RoundFacts, Decision)>>>;

/// The strategy's name where a VM was followed before.
pub(super) const FOLLOW: &str = "follow";

/// See the module.
pub(super) struct Choice {
    strategy: Strategy,
    max_downtime: Duration,
    /// Known only when the destination is prepared, which is before any round ends.
    post_copy: Arc<AtomicBool>,
    policy: Option<Box<dyn Policy>>,
    /// For a job that follows its VM: whether the hand-over was asked for.
    follows: Option<Arc<AtomicBool>>,
    follow: Option<Follow>,
    decided: Decided,
}

impl Choice {
    /// The policy of a move with these options; of one that follows its VM until the hand-over is asked for, if it does.
    pub(super) fn new(options: &MigrateOptions, follows: Option<Arc<AtomicBool>>) -> Self {
        Self {
            strategy: options.strategy,
            max_downtime: Duration::from_millis(options.max_downtime_ms),
            post_copy: Arc::default(),
            policy: None,
            follows,
            follow: None,
            decided: Arc::default(),
        }
    }

    /// What the drive loop reads, and what it tells: whether post-copy is possible.
    pub(super) fn shared(&self) -> (Decided, Arc<AtomicBool>) {
        (Arc::clone(&self.decided), Arc::clone(&self.post_copy))
    }

    fn policy(&mut self) -> &mut dyn Policy {
        let post_copy = self.post_copy.load(Ordering::Relaxed);
        let (strategy, max_downtime) = (self.strategy, self.max_downtime);
        if let Some(asked) = &self.follows {
            let follow = self.follow.get_or_insert_with(|| Follow::new(max_downtime, post_copy));
            if asked.load(Ordering::Acquire) {
                follow.hand_over();
            }
            return follow;
        }
        &mut **self.policy.get_or_insert_with(|| match strategy {
            Strategy::ThreeStage => Box::new(ThreeStage::new(max_downtime, post_copy)),
            Strategy::Auto => Box::new(Precopy::with_post_copy(max_downtime, post_copy)),
            Strategy::Precopy | Strategy::Liveness => Box::new(Precopy::new(max_downtime)),
        })
    }
}

impl Policy for Choice {
    fn name(&self) -> &'static str {
        match self.follows {
            Some(_) => FOLLOW,
            None => name(self.strategy, Finish::PreCopy),
        }
    }

    fn round_ended(&mut self, facts: &RoundFacts) -> Decision {
        let decision = self.policy().round_ended(facts);
        if let Ok(mut decided) = self.decided.lock() {
            *decided = Some((facts.clone(), decision.clone()));
        }
        decision
    }

    fn timed_out(&mut self) -> Decision {
        self.policy().timed_out()
    }
}

/// Whether the destination is asked to be ready for post-copy.
pub(super) fn may_finish_by_post_copy(options: &MigrateOptions) -> bool {
    matches!(options.strategy, Strategy::ThreeStage | Strategy::Auto)
}

/// The strategy as the report names it: what was done, and for an automatic choice that changed on the way, so.
pub(super) const fn name(strategy: Strategy, finish: Finish) -> &'static str {
    match (strategy, finish) {
        (Strategy::ThreeStage, _) => "three-stage",
        (Strategy::Auto, Finish::PostCopy) => "auto",
        (Strategy::Auto | Strategy::Precopy | Strategy::Liveness, _) => "precopy",
    }
}
