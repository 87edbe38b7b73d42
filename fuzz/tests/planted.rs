//! Proof that the harness finds what it is there to find: bugs planted in targets, each found within its budget. (One that is
//! about memory is in a process of its own: `growth.rs`.)
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::time::Duration;

use arbitrary::Unstructured;
use sterna_fuzz::engine::{Budget, Failure, Places, fuzz};
use sterna_fuzz::mutate::Mutator;
use sterna_fuzz::{Made, Outcome, Target, catch};

/// A reader of records `tag, length, content`; its mistakes are the tests'.
const CLEAN: Target = Target {
    name: "planted",
    about: "a small format with bugs",
    run: |input| match read(input) {
        Some(records) => Outcome::accepted(format!("{} records", records.len().min(8))),
        None => Outcome::refused("cut"),
    },
    make,
    mutators: &[],
    tokens: &[b"magic"],
    max_bytes: 4096,
    borrowed: &[],
};

fn make(noise: &mut Unstructured<'_>) -> arbitrary::Result<Made> {
    let mut out = Vec::new();
    for _ in 0..noise.int_in_range(0..=5)? {
        let content: [u8; 3] = noise.arbitrary()?;
        out.extend_from_slice(&[noise.arbitrary()?, 3]);
        out.extend_from_slice(&content);
    }
    Ok(Made::valid(out))
}

fn read(input: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let (mut rest, mut records) = (input, Vec::new());
    while let [tag, length, after @ ..] = rest {
        let (content, later) = after.split_at_checked(usize::from(*length))?;
        records.push((*tag, content));
        rest = later;
    }
    rest.is_empty().then_some(records)
}

fn write(records: &[(u8, &[u8])]) -> Vec<u8> {
    let parts = records.iter().flat_map(|(tag, content)| {
        let length = u8::try_from(content.len()).unwrap();
        [*tag, length].into_iter().chain(content.iter().copied())
    });
    parts.collect()
}

/// The one failure that is found, within so many inputs.
fn found(target: &Target, inputs: u64) -> Failure {
    let budget = Budget { inputs, time: Duration::from_secs(60), failures: 1 };
    let mut tally = fuzz(target, 1, Vec::new(), budget, Places::default()).unwrap();
    tally.failures.pop().unwrap_or_else(|| panic!("nothing found in {} inputs", tally.inputs))
}

#[test]
fn nothing_is_found_where_nothing_is_planted() {
    let budget = Budget { inputs: 20_000, time: Duration::from_secs(60), failures: 1 };
    let tally = fuzz(&CLEAN, 1, Vec::new(), budget, Places::default()).unwrap();
    assert!(tally.failures.is_empty(), "{:?}", tally.failures);
    assert_eq!((tally.inputs, tally.signatures.len()), (20_000, 10));
    assert!(tally.accepted > 5000 && tally.accepted < 20_000, "{}", tally.accepted);
}

#[test]
fn a_panic_is_found_and_shrunk() {
    let target = Target {
        // An index that nobody checked, behind two conditions.
        run: |input| {
            let records = read(input).unwrap_or_default();
            for (tag, content) in &records {
                if *tag > 0xf0 && content.len() < 3 {
                    return Outcome::accepted(format!("{}", content[2]));
                }
            }
            (CLEAN.run)(input)
        },
        ..CLEAN
    };
    let failure = found(&target, 30_000);
    assert!(failure.complaint.what.contains("index out of bounds"), "{failure}");
    assert!(failure.complaint.place.contains("planted.rs"), "{failure}");
    assert!(
        matches!(failure.input[..], [0xf1..=0xff, 0]),
        "not the smallest such input: {failure}"
    );
    assert!(failure.replay(&target).contains("replay planted"));
}

#[test]
fn a_panic_in_a_task_is_found() {
    let target = Target {
        run: |input| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let is_long = input.len() > 20;
            let task = runtime.block_on(async {
                tokio::spawn(async move { assert!(!is_long, "a task fails") }).await
            });
            // As a careless client does: what becomes of the task is not asked.
            drop(task);
            (CLEAN.run)(input)
        },
        ..CLEAN
    };
    assert!(found(&target, 5000).complaint.what.contains("a task fails"));
}

#[test]
fn a_wrong_round_trip_is_found() {
    let target = Target {
        // A writer that takes two records of one tag for one, when the second is empty.
        run: |input| {
            if let Some(mut records) = read(input) {
                records.dedup_by(|later, one| later.0 == one.0 && later.1.is_empty());
                assert_eq!(write(&records), input, "what is written reads otherwise");
            }
            (CLEAN.run)(input)
        },
        ..CLEAN
    };
    let failure = found(&target, 50_000);
    assert!(failure.complaint.what.contains("reads otherwise"), "{failure}");
    let [one, 0, other, 0] = failure.input[..] else { panic!("not shrunk: {failure}") };
    assert_eq!(one, other);
}

#[test]
fn a_good_input_that_is_refused_is_found() {
    let target = Target {
        run: |input| match read(input) {
            Some(records) if records.len() == 4 => Outcome::refused("four are too many"),
            _ => (CLEAN.run)(input),
        },
        ..CLEAN
    };
    let failure = found(&target, 2000);
    assert_eq!(failure.complaint.place, "grammar");
    assert!(failure.complaint.what.contains("four are too many"));
}

#[test]
fn structure_reaches_what_noise_does_not() {
    // A mistake that needs a document of the right shape: only changes to JSON keep it one.
    let target = Target {
        make: |_| Ok(Made::valid(br#"{"a":{"b":[1,2,3]},"c":"x"}"#.to_vec())),
        run: |input| {
            let value = serde_json::from_slice::<serde_json::Value>(input).unwrap_or_default();
            assert!(value["a"]["b"].as_array().is_none_or(|list| list.len() <= 300), "too many");
            Outcome::accepted("")
        },
        mutators: &[Mutator::Json],
        ..CLEAN
    };
    assert!(found(&target, 20_000).complaint.what.contains("too many"));
}

#[test]
fn a_failure_is_kept_and_replays() {
    let folder = std::env::temp_dir().join(format!("sterna-fuzz-{}", std::process::id()));
    let target = Target {
        run: |input| {
            assert!(!input.contains(&0x55), "0x55");
            (CLEAN.run)(input)
        },
        ..CLEAN
    };
    let budget = Budget { inputs: 5000, time: Duration::from_secs(60), failures: 1 };
    let trail = folder.with_extension("trail");
    let places = Places { failures: Some(&folder), trail: Some(&trail) };
    let tally = fuzz(&target, 1, Vec::new(), budget, places).unwrap();
    let kept = std::fs::read(tally.failures[0].path.as_ref().unwrap()).unwrap();
    let before_it_failed = std::fs::read(&trail).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::remove_file(&trail).unwrap();
    assert_eq!(kept, [0x55]);
    assert!(before_it_failed.contains(&0x55));
    assert!(catch::examine(&target, &kept, None).is_err());
}
