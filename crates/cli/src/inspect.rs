//! `sterna stream inspect`: a captured QEMU stream, read here without an agent.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sterna_qemu_stream::{End, Inspector, Summary};

use crate::console::Console;
use crate::failure::{FAILED, Failure};

/// Bytes that are read at once.
const PIECE_BYTES: usize = 1 << 20;

/// Prints what is in the stream; a damaged one exits with 1.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn inspect(file: &Path, console: &mut Console) -> Result<u8, Failure> {
    let failure = |error| Failure::File { path: file.to_owned(), error };
    let summary = if file == Path::new("-") {
        read(io::stdin().lock()).map_err(failure)?
    } else {
        File::open(file).and_then(read).map_err(failure)?
    };
    console.value(&summary, || summary.to_string());
    Ok(if summary.end == End::Complete { 0 } else { FAILED })
}

fn read(mut source: impl Read) -> io::Result<Summary> {
    let mut inspector = Inspector::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match source.read(&mut piece) {
            Ok(0) => return Ok(inspector.finish()),
            Ok(length) => inspector.push(&piece[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
