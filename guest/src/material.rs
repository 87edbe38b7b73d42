//! What the applications work on, made on the host that builds their disk.
//!
//! `sterna-load material text BYTES` prints lines of words; `sterna-load material digest` reads its
//! input and prints `LENGTH DIGEST`, with which a guest compares what it decodes from the same file.

use std::io::{self, Read, Write};
use std::process::ExitCode;

use crate::application::digest::Digest;
use crate::text;

/// Most that is made: an editor's text, not a disk.
const MAX_TEXT_BYTES: usize = 64 << 20;
const LINE_BYTES: usize = 72;
/// Any state but 0: the text is the same on every machine.
const TEXT_STATE: u64 = 0x5374_6572_6e61;

/// Does what was asked for, if it was this.
pub(crate) fn asked(arguments: &[String]) -> Option<ExitCode> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["material", "text", bytes] => print_text(bytes),
        ["material", "digest"] => print_digest(),
        ["material", ..] => Err(io::Error::other("expected: material text BYTES, material digest")),
        _ => return None,
    };
    Some(done.map_or_else(
        |error| {
            eprintln!("sterna-load: {error}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    ))
}

fn print_text(bytes: &str) -> io::Result<()> {
    let length = bytes.parse::<usize>().ok().filter(|length| *length <= MAX_TEXT_BYTES);
    let length = length.ok_or_else(|| io::Error::other("expected at most 64 MiB of text"))?;
    io::stdout().write_all(wrapped_text(length).as_bytes())
}

fn print_digest() -> io::Result<()> {
    let mut input = io::stdin().lock();
    let mut digest = Digest::default();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = input.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        digest.update(&buffer[..length]);
    }
    println!("{} {}", digest.length_bytes(), digest.value());
    Ok(())
}

/// About so many bytes of words in lines that are neither empty nor longer than 72 columns.
fn wrapped_text(length_bytes: usize) -> String {
    let mut words = vec![0; length_bytes];
    text::fill(TEXT_STATE, &mut words);
    let words = String::from_utf8_lossy(&words);
    let mut wrapped = String::with_capacity(length_bytes + 1);
    let mut column = 0;
    for word in words.split_whitespace() {
        if column > 0 && column + 1 + word.len() > LINE_BYTES {
            wrapped.push('\n');
            column = 0;
        } else if column > 0 {
            wrapped.push(' ');
            column += 1;
        }
        wrapped.push_str(word);
        column += word.len();
    }
    wrapped.push('\n');
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_lines_of_words_and_is_always_the_same() {
        let text = wrapped_text(50_000);
        assert_eq!(text, wrapped_text(50_000));
        assert!(text.ends_with('\n') && text.len() > 48_000);
        assert!(text.lines().all(|line| (1..=LINE_BYTES).contains(&line.len())));
        assert!(text.lines().count() > 600);
    }

    #[test]
    fn other_words_are_not_for_us() {
        assert!(asked(&["idle".to_owned()]).is_none());
        assert!(asked(&["material".to_owned(), "film".to_owned()]).is_some());
    }
}
