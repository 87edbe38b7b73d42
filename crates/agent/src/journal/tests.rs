//! Journals: begun once, read without being touched, and gone in the end.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sterna_migration::journal::{DestinationRecord, SourceRecord};

use super::prune::{KEPT_FOR, KEPT_JOURNALS};
use super::*;
use crate::testing::{Hosts, destination_of, source_of, subject};

fn folder() -> (Hosts, PathBuf) {
    let hosts = Hosts::new();
    let state_dir = hosts.host("alpha", "").state_dir();
    (hosts, state_dir)
}

#[test]
fn a_job_has_one_journal() {
    let (_hosts, folder) = folder();
    let mut first = Journal::begin(&folder, &[source_of()]).unwrap();
    assert!(matches!(
        Journal::begin(&folder, &[destination_of("beta")]),
        Err(JournalError::Write { .. })
    ));
    first.append(&Entry::Source(SourceRecord::Offered)).unwrap();
    let story = Journal::read(&path_of(&folder, &subject("beta").job)).unwrap().unwrap();
    assert_eq!(story.side, Side::Source(SourceRecord::Offered));
    assert!(Journal::begin(&folder, &[Entry::GuestRan(true)]).is_err(), "of no job");
}

#[test]
fn a_journal_that_begins_late_says_how_far_it_came() {
    let (_hosts, folder) = folder();
    let read = || Journal::read(&path_of(&folder, &subject("beta").job)).unwrap().unwrap();
    let mut journal = JobJournal::to_begin(folder.clone(), vec![source_of()]);
    journal.note(&Entry::Ended("nothing was recorded".into())).unwrap();
    assert!(files(&folder).unwrap().is_empty());
    journal.record(&Entry::Source(SourceRecord::Returned)).unwrap();
    assert_eq!(read().side, Side::Source(SourceRecord::Returned));
    std::fs::remove_file(path_of(&folder, &subject("beta").job)).unwrap();
    let mut journal = JobJournal::to_begin(folder.clone(), vec![source_of()]);
    journal.record(&Entry::Source(SourceRecord::Copying)).unwrap();
    journal.note(&Entry::GuestRan(false)).unwrap();
    assert_eq!((read().side, read().guest_ran), (Side::Source(SourceRecord::Copying), false));
}

#[test]
fn journals_of_earlier_builds_are_read() {
    let subject = r#"{"job":"job-1","vm":"web","uuid":"0a1b2c3d-0000-4111-8222-ffffffffffff","epoch":5,"peer":"beta"}"#;
    let lines = [
        format!(r#"{{"entry":"source-of","value":[{subject},"2026-01-02T03:04:05Z"]}}"#),
        r#"{"entry":"guest-ran","value":false}"#.to_owned(),
        r#"{"entry":"source","value":"offered"}"#.to_owned(),
    ];
    let records = lines.map(String::into_bytes);
    let story = Story::read(&records).unwrap().unwrap();
    assert_eq!(story.side, Side::Source(SourceRecord::Offered));
    assert_eq!((story.peer_address, story.process, story.guest_ran), (None, None, false));
    assert!(Story::read(&[br#"{"entry":"of-a-later-build","value":1}"#.to_vec()]).is_err());
}

#[test]
fn what_a_source_still_has_to_do_is_not_settled() {
    let story = |entries: &[Entry]| {
        let records: Vec<_> =
            entries.iter().map(|entry| serde_json::to_vec(entry).unwrap()).collect();
        Story::read(&records).unwrap().unwrap()
    };
    let gone = Entry::Source(SourceRecord::Gone);
    assert!(!story(&[source_of(), gone.clone()]).is_settled());
    assert!(story(&[source_of(), gone, Entry::Ended(String::new())]).is_settled());
    assert!(story(&[source_of(), Entry::Source(SourceRecord::Returned)]).is_settled());
    assert!(!story(&[source_of(), Entry::Source(SourceRecord::Offered)]).is_settled());
    let running = Entry::Destination(DestinationRecord::Running);
    assert!(story(&[destination_of("beta"), running]).is_settled());
}

/// Makes so many journals that end with `last`, the first of them the oldest, one minute apart and the newest `age` old.
fn make(folder: &Path, name: &str, count: usize, last: &Entry, age: Duration) {
    let whole = {
        let entries = [destination_of("beta"), last.clone()];
        drop(Journal::begin(folder, &entries).unwrap());
        let path = path_of(folder, &subject("beta").job);
        let whole = std::fs::read(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        whole
    };
    for number in 0..count {
        let path = folder.join("jobs").join(format!("{name}-{number:04}.{EXTENSION}"));
        std::fs::write(&path, &whole).unwrap();
        let back = age + Duration::from_mins((count - number) as u64);
        let at = SystemTime::now() - back;
        File::options().append(true).open(&path).unwrap().set_modified(at).unwrap();
    }
}

const NEW: Duration = Duration::ZERO;
const OLD: Duration = KEPT_FOR;

fn left(folder: &Path, in_use: &[&str]) -> usize {
    let in_use: BTreeSet<JobId> = in_use.iter().map(|job| job.parse().unwrap()).collect();
    let before = files(folder).unwrap().len();
    let removed = prune(folder, &in_use, SystemTime::now()).unwrap();
    let left = files(folder).unwrap().len();
    assert_eq!(before - removed, left);
    left
}

#[test]
fn journals_of_long_ago_go_but_for_the_newest() {
    let (_hosts, folder) = folder();
    let over = Entry::Destination(DestinationRecord::Discarded);
    make(&folder, "old", KEPT_JOURNALS + 30, &over, OLD);
    assert_eq!(left(&folder, &["old-0000", "old-0029", "old-0200"]), KEPT_JOURNALS + 2);
    assert!(folder.join("jobs/old-0029.journal").exists(), "the registry speaks of it");
    assert!(!folder.join("jobs/old-0028.journal").exists());
    make(&folder, "new", KEPT_JOURNALS + 30, &over, NEW);
    assert_eq!(left(&folder, &[]), KEPT_JOURNALS + 30, "new ones take the place of the old");
}

#[test]
fn there_is_a_most_of_journals_however_new() {
    let (_hosts, folder) = folder();
    make(&folder, "new", MAX_JOURNALS + 7, &Entry::Destination(DestinationRecord::Running), NEW);
    assert_eq!(left(&folder, &[]), MAX_JOURNALS);
    assert!(!folder.join("jobs/new-0006.journal").exists());
    assert!(folder.join("jobs/new-0007.journal").exists());
}

#[test]
fn no_unfinished_journal_goes() {
    let (_hosts, folder) = folder();
    make(&folder, "old", KEPT_JOURNALS + 5, &Entry::Destination(DestinationRecord::Entitled), OLD);
    assert_eq!(left(&folder, &[]), KEPT_JOURNALS + 5);
    let damaged = folder.join("jobs/old-0000.journal");
    let mut bytes = std::fs::read(&damaged).unwrap();
    bytes[2] ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let old = SystemTime::now() - 2 * OLD;
    File::options().append(true).open(&damaged).unwrap().set_modified(old).unwrap();
    assert_eq!(left(&folder, &[]), KEPT_JOURNALS + 5, "nor one that cannot be read");
}
