//! Memory of guests whose jobs came to nothing here, kept for the next job of the same VM by the same source: it then
//! begins with what is here, and is sent what differs only.
//!
//! Nothing rests on what is kept: the job that takes it over hashes all of it anew.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sterna_host::memory::BlockMemory;
use sterna_model::{HostName, Uuid};

/// Guests whose memory is kept, at most.
const MAX_KEPT: usize = 16;

/// See the module. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeptMemories(Arc<Mutex<HashMap<Owner, Kept>>>);

/// Whose VM it is, and which.
type Owner = (HostName, Uuid);

#[derive(Debug)]
struct Kept {
    blocks: Vec<BlockMemory>,
    until: Instant,
}

impl KeptMemories {
    /// Keeps the memory of a VM for so long, instead of what was kept of it before. Nothing when there is none, or when
    /// that of too many others is kept.
    pub(crate) fn keep(&self, owner: Owner, blocks: Vec<BlockMemory>, keep: Duration) {
        let until = Instant::now() + keep;
        let mut all = self.lock();
        if blocks.is_empty() || (all.len() >= MAX_KEPT && !all.contains_key(&owner)) {
            return;
        }
        tracing::info!(peer = %owner.0, uuid = %owner.1, seconds = keep.as_secs(), "the memory that has arrived is kept");
        all.insert(owner, Kept { blocks, until });
        drop(all);
        let kept = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep_until(until.into()).await;
            kept.drop_old();
        });
    }

    /// The memory that is kept of a VM, for a job that goes on with it.
    pub(crate) fn take(&self, owner: &Owner) -> Option<Vec<BlockMemory>> {
        self.drop_old();
        self.lock().remove(owner).map(|kept| kept.blocks)
    }

    fn drop_old(&self) {
        let now = Instant::now();
        self.lock().retain(|_, kept| kept.until > now);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Owner, Kept>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(name: &str) -> Vec<BlockMemory> {
        let block = sterna_model::BlockName::new(name.as_bytes()).unwrap();
        vec![BlockMemory::staging(block, 4096).unwrap()]
    }

    #[tokio::test]
    async fn what_is_kept_is_given_once_to_its_owner() {
        let kept = KeptMemories::default();
        let owner = ("alpha".parse().unwrap(), Uuid([1; 16]));
        kept.keep(owner.clone(), memory("a"), Duration::from_secs(60));
        assert!(kept.take(&("beta".parse().unwrap(), Uuid([1; 16]))).is_none());
        assert!(kept.take(&("alpha".parse().unwrap(), Uuid([2; 16]))).is_none());
        assert!(kept.take(&owner).is_some_and(|blocks| blocks.len() == 1));
        assert!(kept.take(&owner).is_none());
        kept.keep(owner.clone(), Vec::new(), Duration::from_secs(60));
        assert!(kept.take(&owner).is_none(), "there was nothing");
    }

    #[tokio::test]
    async fn nothing_is_kept_for_longer_than_it_should_be_nor_of_too_many() {
        let kept = KeptMemories::default();
        let owner = |number: u8| ("alpha".parse().unwrap(), Uuid([number; 16]));
        kept.keep(owner(0), memory("a"), Duration::from_millis(20));
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert_eq!(kept.lock().len(), 0, "nobody had to ask");
        for number in 0..30 {
            kept.keep(owner(number), memory("a"), Duration::from_secs(60));
        }
        assert_eq!(kept.lock().len(), MAX_KEPT);
        kept.keep(owner(0), memory("b"), Duration::from_secs(60));
        let newer = kept.take(&owner(0)).unwrap();
        assert_eq!(newer[0].block().to_string(), "b");
    }
}
