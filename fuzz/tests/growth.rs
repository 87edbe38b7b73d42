//! Proof that the harness finds an over-allocation. Alone in its process, whose peak memory is what is measured.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::time::Duration;

use sterna_fuzz::engine::{Budget, Places, fuzz};
use sterna_fuzz::{Made, Outcome, Target, catch};

/// A reader of `length, content` that makes room for the content before any of it is there.
const CARELESS: Target = Target {
    name: "careless",
    about: "a length that is believed",
    run: |input| {
        let Some((length, rest)) = input.split_first_chunk::<4>() else {
            return Outcome::refused("cut");
        };
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap();
        let mut content = vec![1_u8; length.min(200 << 20)];
        let there = length.min(rest.len()).min(content.len());
        content[..there].copy_from_slice(&rest[..there]);
        std::hint::black_box(&content);
        if there == rest.len() { Outcome::accepted("") } else { Outcome::refused("too much") }
    },
    make: |noise| {
        let content: [u8; 9] = noise.arbitrary()?;
        Ok(Made::valid([&[9, 0, 0, 0][..], &content].concat()))
    },
    mutators: &[],
    tokens: &[],
    max_bytes: 4096,
    borrowed: &[],
};

#[test]
fn an_over_allocation_is_found() {
    let budget = Budget { inputs: 5000, time: Duration::from_secs(60), failures: 1 };
    let tally = fuzz(&CARELESS, 1, Vec::new(), budget, Places::default()).unwrap();
    let failure = tally.failures.first().expect("nothing was found");
    assert_eq!(failure.complaint.place, catch::GROWTH, "{failure}");
    let length = failure.input.first_chunk::<4>().map(|length| u32::from_le_bytes(*length));
    assert!(length.is_some_and(|length| length > 64 << 20), "{failure}");
}
