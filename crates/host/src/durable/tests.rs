//! Crashes, played: every cut, every damaged byte, and what a log makes of it.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;

/// A path that nobody else uses, removed with everything beside it.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("sterna-durable-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn log(&self) -> PathBuf {
        self.0.join("log")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn written(place: &Place, records: &[Vec<u8>]) -> Vec<u8> {
    let (mut log, before) = DurableLog::open(&place.log()).unwrap();
    assert_eq!(before, Recovered::default());
    for record in records {
        log.append(record).unwrap();
    }
    fs::read(place.log()).unwrap()
}

fn reopened(place: &Place, bytes: &[u8]) -> Result<Recovered, DurableError> {
    fs::write(place.log(), bytes).unwrap();
    DurableLog::open(&place.log()).map(|(_, recovered)| recovered)
}

fn records() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 1..60), 1..6)
}

/// Where the last record begins.
fn last_start(bytes: &[u8], records: &[Vec<u8>]) -> usize {
    bytes.len() - 12 - records.last().unwrap().len()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_appended_is_read_back(records in records()) {
        let place = Place::new();
        let bytes = written(&place, &records);
        prop_assert_eq!(reopened(&place, &bytes).unwrap(), Recovered { records, torn_bytes: 0 });
    }

    /// A cut anywhere loses the records behind it, and never one before it; the log goes on from there.
    #[test]
    fn a_cut_loses_only_what_is_behind_it(records in records(), at in any::<prop::sample::Index>()) {
        let place = Place::new();
        let bytes = written(&place, &records);
        let cut = &bytes[..at.index(bytes.len() + 1)];
        let recovered = reopened(&place, cut).unwrap();
        let kept = recovered.records.len();
        prop_assert_eq!(&recovered.records[..], &records[..kept]);
        let whole: usize = 8 + records[..kept].iter().map(|record| 12 + record.len()).sum::<usize>();
        prop_assert!(cut.len() < 8 || cut.len() >= whole);
        prop_assert!(kept == records.len() || cut.len() < whole + 12 + records[kept].len());
        let (mut log, again) = DurableLog::open(&place.log()).unwrap();
        prop_assert_eq!(again.torn_bytes, 0);
        log.append(b"next").unwrap();
        let (_, last) = DurableLog::open(&place.log()).unwrap();
        prop_assert_eq!(last.records.len(), kept + 1);
    }

    /// The last append, with any part of its bytes not written, whatever is there instead.
    #[test]
    fn a_torn_append_is_dropped(
        records in records(),
        from in any::<prop::sample::Index>(),
        to in any::<prop::sample::Index>(),
        filler in prop::sample::select(vec![0_u8, 0xff, 0x55]),
    ) {
        let place = Place::new();
        let mut bytes = written(&place, &records);
        let start = last_start(&bytes, &records);
        let (from, to) = (start + from.index(bytes.len() - start), start + to.index(bytes.len() - start));
        let before = bytes.clone();
        bytes[from.min(to)..=from.max(to)].fill(filler);
        let recovered = reopened(&place, &bytes).unwrap();
        let expected = if bytes == before { records.len() } else { records.len() - 1 };
        prop_assert_eq!(&recovered.records[..], &records[..expected]);
    }

    /// A byte that changes where an acknowledged record is: never silently fewer or other records.
    #[test]
    fn damage_in_the_middle_is_an_error_that_names_the_place(
        records in records(),
        at in any::<prop::sample::Index>(),
        change in 1_u8..,
    ) {
        let place = Place::new();
        let mut bytes = written(&place, &records);
        let at = at.index(last_start(&bytes, &records));
        bytes[at] ^= change;
        let refused = reopened(&place, &bytes);
        let Err(DurableError::Damaged { offset, .. }) = refused else {
            panic!("not noticed: {refused:?}");
        };
        prop_assert!(offset <= at as u64);
        prop_assert_eq!(fs::read(place.log()).unwrap(), bytes, "a damaged log is left as it is");
    }

    #[test]
    fn no_bytes_whatever_crash_it(bytes in prop::collection::vec(any::<u8>(), 0..300), start in any::<bool>()) {
        let place = Place::new();
        let bytes = if start { [b"STRNLOG1", &bytes[..]].concat() } else { bytes };
        if let Ok(recovered) = reopened(&place, &bytes) {
            prop_assert!(recovered.records.is_empty());
        }
    }
}

#[test]
fn a_record_inside_a_record_is_no_record() {
    let place = Place::new();
    // The image of a whole record, taken from another place of the log, is the content of one that is then torn.
    let image = written(&place, &[b"state: offered".to_vec()])[8..].to_vec();
    let place = Place::new();
    let records = vec![b"first".to_vec(), image];
    let mut bytes = written(&place, &records);
    let start = last_start(&bytes, &records);
    bytes[start] ^= 1;
    let recovered = reopened(&place, &bytes).unwrap();
    assert_eq!(recovered.records, [b"first".to_vec()]);
}

#[test]
fn more_than_one_append_can_leave_is_no_torn_tail() {
    let place = Place::new();
    let mut bytes = written(&place, &[b"first".to_vec()]);
    bytes.resize(bytes.len() + MAX_RECORD_BYTES + 13, 0);
    assert!(matches!(reopened(&place, &bytes), Err(DurableError::Damaged { offset: 25, .. })));
    bytes.pop();
    assert_eq!(reopened(&place, &bytes).unwrap().records, [b"first".to_vec()]);
}

#[test]
fn limits_are_kept_and_cost_nothing() {
    let place = Place::new();
    let (mut log, _) = DurableLog::open(&place.log()).unwrap();
    assert!(matches!(
        log.append(&vec![1; MAX_RECORD_BYTES + 1]),
        Err(DurableError::TooLarge { .. })
    ));
    assert!(log.append(b"").is_err());
    log.append(b"still works").unwrap();
    let file = fs::OpenOptions::new().write(true).open(place.log()).unwrap();
    file.set_len(MAX_LOG_BYTES + 1).unwrap();
    assert!(matches!(DurableLog::open(&place.log()), Err(DurableError::TooLarge { .. })));
}

#[test]
fn a_rewritten_log_goes_on() {
    let place = Place::new();
    let (mut log, _) = DurableLog::open(&place.log()).unwrap();
    for _ in 0..10 {
        log.append(&[7; 1000]).unwrap();
    }
    log.rewrite(&[b"kept".to_vec()]).unwrap();
    assert!(log.length_bytes() < 100);
    log.append(b"new").unwrap();
    let (_, recovered) = DurableLog::open(&place.log()).unwrap();
    assert_eq!(recovered.records, [b"kept".to_vec(), b"new".to_vec()]);
}

#[test]
fn a_file_is_replaced_whole_and_leaves_nothing_beside_it() {
    let place = Place::new();
    let path = place.0.join("state.json");
    replace_file(&path, b"one").unwrap();
    // A link where the temporary file goes, as an attacker or a crash may leave it.
    let victim = place.0.join("victim");
    fs::write(&victim, "untouched").unwrap();
    std::os::unix::fs::symlink(&victim, place.0.join("state.json.new")).unwrap();
    replace_file(&path, b"two").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"two");
    assert_eq!(fs::read(&victim).unwrap(), b"untouched");
    assert_eq!(fs::read_dir(&place.0).unwrap().count(), 2);
    let refused = replace_file(&place.0.join("absent/file"), b"x").unwrap_err();
    assert!(refused.to_string().contains("absent"), "{refused}");
}

#[test]
fn a_folder_has_one_user() {
    let place = Place::new();
    let lock = FolderLock::take(&place.0).unwrap();
    assert!(matches!(FolderLock::take(&place.0), Err(DurableError::InUse { .. })));
    drop(lock);
    FolderLock::take(&place.0).unwrap();
}

/// Not a test of speed, which this machine cannot promise: says what an acknowledged record costs here.
#[test]
fn says_what_a_record_costs() {
    let place = Place::new();
    let (mut log, _) = DurableLog::open(&place.log()).unwrap();
    let begun = std::time::Instant::now();
    for _ in 0..100 {
        log.append(&[7; 200]).unwrap();
    }
    eprintln!("an appended record costs {:?}", begun.elapsed() / 100);
    assert_eq!(log.length_bytes(), 8 + 100 * 212);
}

#[test]
fn a_log_is_made_once_only() {
    let place = Place::new();
    let mut log = DurableLog::create(&place.log()).unwrap();
    log.append(b"first").unwrap();
    assert!(matches!(
        DurableLog::create(&place.log()),
        Err(DurableError::Io { act: "create", .. })
    ));
    log.append(b"second").unwrap();
    let (_, found) = DurableLog::open(&place.log()).unwrap();
    assert_eq!(found.records, [b"first".to_vec(), b"second".to_vec()]);
}

/// A disk that is full later must not keep out what a job has still to say. (That it does not is seen on a full disk by the
/// end-to-end tests.)
#[test]
fn room_is_set_aside_before_the_first_record() {
    let place = Place::new();
    let room = || {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(place.log()).unwrap().blocks() * 512
    };
    let mut log = DurableLog::create(&place.log()).unwrap();
    assert!(room() >= RESERVED_BYTES, "{}", room());
    log.append(b"first").unwrap();
    assert_eq!(fs::metadata(place.log()).unwrap().len(), log.length_bytes(), "as long as before");
    drop(log);
    fs::OpenOptions::new().append(true).open(place.log()).unwrap().set_len(30).unwrap();
    let (log, found) = DurableLog::open(&place.log()).unwrap();
    assert!(found.torn_bytes == 5 && room() >= RESERVED_BYTES, "{found:?} {}", room());
    drop(log);
}

#[test]
fn reading_a_log_changes_nothing() {
    let place = Place::new();
    let whole = written(&place, &[b"first".to_vec(), b"second".to_vec()]);
    let torn = &whole[..whole.len() - 3];
    fs::write(place.log(), torn).unwrap();
    let found = DurableLog::read(&place.log()).unwrap();
    assert_eq!(found.records, [b"first".to_vec()]);
    assert!(found.torn_bytes > 0);
    assert_eq!(fs::read(place.log()).unwrap(), torn);
    fs::remove_file(place.log()).unwrap();
    assert!(DurableLog::read(&place.log()).is_err() && !place.log().exists());
}
