//! Which journals go in the end. Kept are the newest [`KEPT_JOURNALS`], and whatever was written to in the last
//! [`KEPT_FOR`], up to [`MAX_JOURNALS`] in all; so `jobs` and `report` tell of these, and a peer that asks about such a job
//! is answered. Never removed is one whose job is not settled, that cannot be read, or that the registry speaks of.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sterna_model::JobId;

use super::{Journal, JournalError, files, job_of};

/// The newest journals: these are kept however old they are.
pub(super) const KEPT_JOURNALS: usize = 200;
/// Others are kept for so long after their last entry.
pub(super) const KEPT_FOR: Duration = Duration::from_hours(30 * 24);
/// Journals of jobs that are over, at most, however new they are.
pub(crate) const MAX_JOURNALS: usize = 1000;

/// Removes the journals that need not be kept; gives how many. `in_use` are jobs that the registry speaks of.
///
/// # Errors
/// When the folder cannot be read. A file that cannot be removed is logged, and tried again the next time.
pub(crate) fn prune(
    state_dir: &Path,
    in_use: &BTreeSet<JobId>,
    now: SystemTime,
) -> Result<usize, JournalError> {
    let files = files(state_dir)?;
    if files.len() <= KEPT_JOURNALS {
        return Ok(0);
    }
    let written = |path: PathBuf| Some((path.metadata().ok()?.modified().ok()?, path));
    let mut journals: Vec<(SystemTime, PathBuf)> = files.into_iter().filter_map(written).collect();
    journals.sort_by_key(|(at, _)| Reverse(*at));
    let removed = journals.iter().enumerate().skip(KEPT_JOURNALS).filter(|(newer, (at, path))| {
        let old = now.duration_since(*at).is_ok_and(|age| age > KEPT_FOR);
        (old || *newer >= MAX_JOURNALS) && may_go(path, in_use) && remove(path)
    });
    Ok(removed.count())
}

fn may_go(path: &Path, in_use: &BTreeSet<JobId>) -> bool {
    if job_of(path).is_none_or(|job| in_use.contains(&job)) {
        return false;
    }
    // One without a subject never began anything.
    Journal::read(path).is_ok_and(|story| story.is_none_or(|story| story.is_settled()))
}

fn remove(path: &Path) -> bool {
    let removed = std::fs::remove_file(path);
    if let Err(error) = &removed {
        tracing::warn!(path = %path.display(), %error, "an old journal could not be removed");
    }
    removed.is_ok()
}
