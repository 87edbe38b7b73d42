//! QEMU's migration stream through the inspector, which has to say the same as the parser, of damaged streams as well.

use sterna_qemu_stream::{End, Event, Inspector, Parser};
use sterna_sim::random::Random;

use super::{stream, stream_grammar};
use crate::signature::{hash, of_error, scale};
use crate::{Outcome, Target};

pub(super) const TARGET: Target = Target {
    name: "inspect",
    about: "QEMU's migration stream, through the inspector",
    run,
    make: stream_grammar::make,
    mutators: &[],
    tokens: stream::TOKENS,
    max_bytes: 400 << 10,
    borrowed: stream::GOLDEN,
};

/// Names of devices that a summary tells, and bytes of each.
const MAX_DEVICES: usize = 4096;
const MAX_NAME_BYTES: usize = 4 * 255;
const ERROR_BYTES: usize = 4096;

fn run(input: &[u8]) -> Outcome {
    let mut random = Random::new(hash(input));
    let mut inspector = Inspector::new();
    let mut rest = input;
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(1 + random.index(rest.len().min(9000)));
        inspector.push(piece);
        rest = later;
    }
    let summary = inspector.finish();
    let mut parser = Parser::new();
    let (mut pages, mut zero_pages, mut tail_bytes) = (0, 0, 0);
    let fed = parser.feed(input, |event| match event {
        Event::Page { .. } => pages += 1,
        Event::ZeroPage { .. } => zero_pages += 1,
        Event::Tail(bytes) => tail_bytes += bytes.len() as u64,
        _ => {}
    });
    let layout = parser.layout().map_or(0, |layout| layout.blocks().len());
    let end = fed.and_then(|_| parser.finish());
    assert_eq!(summary.blocks.iter().map(|block| block.pages).sum::<u64>(), pages);
    assert_eq!(summary.blocks.iter().map(|block| block.zero_pages).sum::<u64>(), zero_pages);
    assert_eq!((summary.blocks.len(), summary.tail_bytes), (layout, tail_bytes));
    assert!(summary.bytes <= input.len() as u64 && summary.devices.len() <= MAX_DEVICES);
    assert!(summary.devices.iter().all(|name| name.len() <= MAX_NAME_BYTES));
    let text = summary.to_string();
    assert!(text.len() <= 8192 + 2 * input.len() + 4 * summary.devices.len());
    assert!(text.chars().all(|char| !char.is_control() || char == '\n'), "{text:?}");
    assert!(serde_json::to_string(&summary).is_ok_and(|text| !text.is_empty()));
    let shape = format!(
        "{} blocks, {} devices, packaged {}",
        scale(layout as u64),
        scale(summary.devices.len() as u64),
        summary.packaged
    );
    match (&summary.end, end) {
        (End::Complete, Ok(_)) => Outcome::accepted(shape),
        (End::Damaged(said), Err(error)) => {
            assert_eq!(*said, error);
            Outcome::refused(format!("{}; {shape}", of_error(&error.fault, ERROR_BYTES)))
        }
        (said, found) => super::broken(&format!("the summary says {said:?}, the parser {found:?}")),
    }
}
