//! Sound and video: decoded in real time, piece after piece, for ever.
//!
//! The disk's manifest has a line for each piece: `audio|video FILE BYTES_PER_SECOND BYTES_PER_UNIT
//! LENGTH DIGEST`, where a unit is a KiB of sound or a picture, and length and digest are those of what
//! the same decoder made of it on the host that built the disk. A pass is a piece; its decoder writes
//! into a pipe that is read as [`Player`] has room.

use std::convert::Infallible;
use std::io::Read;
use std::process::{Child, ChildStdout, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::Reporter;
use super::digest::{Digest, DigestValue};
use super::passes::Pass;
use super::player::Player;
use super::program::{ApplicationError, command, read_text};

const MANIFEST: &str = "/material/manifest";
/// What is read at once, when there is room for so much.
const CHUNK_BYTES: usize = 1 << 16;
/// The room that is waited for, as a share of a second.
const CHUNKS_PER_SECOND: u64 = 50;

/// A piece of the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    medium: String,
    file: String,
    bytes_per_second: u64,
    bytes_per_unit: u64,
    length_bytes: u64,
    digest: DigestValue,
}

/// Plays all pieces of a medium in turn.
///
/// # Errors
/// There are none, or a decoder cannot be started.
pub(super) fn run(medium: &str, reporter: &Reporter) -> Result<Infallible, ApplicationError> {
    let mut pieces = parse_manifest(&read_text(MANIFEST)?)?;
    pieces.retain(|piece| piece.medium == medium);
    let Some(first) = pieces.first() else {
        let (what, found) = (MANIFEST.to_owned(), "none".to_owned());
        return Err(ApplicationError::Unexpected {
            what,
            expected: "pieces of that medium",
            found,
        });
    };
    let mut deck = Deck {
        reporter: reporter.clone(),
        player: Player::new(first.bytes_per_second),
        start: Instant::now(),
        buffer: vec![0; CHUNK_BYTES],
        played_bytes: 0,
        is_ready: false,
    };
    loop {
        for piece in &pieces {
            let pass = deck.play(piece, pieces.len())?;
            reporter.pass(pass);
        }
    }
}

struct Deck {
    reporter: Reporter,
    player: Player,
    start: Instant,
    buffer: Vec<u8>,
    played_bytes: u64,
    is_ready: bool,
}

impl Deck {
    fn play(&mut self, piece: &Piece, pieces: usize) -> Result<Pass, ApplicationError> {
        let mut decoder = start_decoder(piece)?;
        let mut digest = Digest::default();
        if let Some(mut output) = decoder.stdout.take() {
            while self.read_some(&mut output, piece, &mut digest)? {
                if !self.is_ready && self.player.is_playing() {
                    self.is_ready = true;
                    let rate = piece.bytes_per_second / 1024;
                    self.reporter.ready(format!("pieces={pieces} rate={rate}KiB/s"));
                }
            }
        }
        let status = decoder.wait().map_err(ApplicationError::io("waiting for the decoder"))?;
        let (length, value) = (digest.length_bytes(), digest.value());
        let is_good = status.success() && (length, value) == (piece.length_bytes, piece.digest);
        let bad = (!is_good).then(|| {
            let (expected, file) = (piece.digest, &piece.file);
            let lengths = format!("{length} of {}", piece.length_bytes);
            format!(
                "piece={file} expected={expected} found={value} bytes={lengths} decoder: {status}"
            )
        });
        Ok(Pass { units: length / piece.bytes_per_unit, bad })
    }

    /// Waits for room and reads what has come; false at the end.
    fn read_some(
        &mut self,
        output: &mut ChildStdout,
        piece: &Piece,
        digest: &mut Digest,
    ) -> Result<bool, ApplicationError> {
        let least = piece.bytes_per_second / CHUNKS_PER_SECOND;
        let room = loop {
            let room = self.player.room_bytes(self.start.elapsed());
            if room >= least {
                break usize::try_from(room).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
            }
            thread::sleep(Duration::from_secs(1) / 50);
        };
        let length = output
            .read(&mut self.buffer[..room])
            .map_err(ApplicationError::io("reading what the decoder makes"))?;
        digest.update(&self.buffer[..length]);
        self.player.receive(length as u64, self.start.elapsed());
        self.played_bytes += length as u64;
        self.reporter.set_work(self.played_bytes / piece.bytes_per_unit);
        self.reporter.set_stalls(self.player.stalls(), self.player.stalled());
        Ok(length > 0)
    }
}

fn start_decoder(piece: &Piece) -> Result<Child, ApplicationError> {
    let mut words = decoder_of(&piece.medium);
    words.push(&piece.file);
    let (program, arguments) =
        words.split_first().map_or(("", &[][..]), |(first, rest)| (*first, rest));
    let mut decoder = command(program);
    // What it has to say of a missing terminal is no news; that it failed shows in its status.
    decoder.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    decoder.spawn().map_err(ApplicationError::io(format!("starting {program}")))
}

/// The same words as in scripts/build-apps, where the digests are made.
fn decoder_of(medium: &str) -> Vec<&str> {
    match medium {
        "audio" => vec!["/usr/bin/mpg123", "--quiet", "--cpu", "x86-64", "--stdout"],
        _ => vec!["/usr/bin/vpxdec", "--i420", "--rawvideo", "--output=-"],
    }
}

fn parse_manifest(text: &str) -> Result<Vec<Piece>, ApplicationError> {
    let parse = |line: &str| {
        parse_piece(line).ok_or_else(|| ApplicationError::Unexpected {
            what: MANIFEST.to_owned(),
            expected: "MEDIUM FILE BYTES_PER_SECOND BYTES_PER_UNIT LENGTH DIGEST",
            found: line.to_owned(),
        })
    };
    text.lines().map(parse).collect()
}

fn parse_piece(line: &str) -> Option<Piece> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [medium, file, bytes_per_second, bytes_per_unit, length_bytes, digest] = words[..] else {
        return None;
    };
    let positive = |text: &str| text.parse::<u64>().ok().filter(|number| *number > 0);
    Some(Piece {
        medium: medium.to_owned(),
        file: file.to_owned(),
        bytes_per_second: positive(bytes_per_second)?,
        bytes_per_unit: positive(bytes_per_unit)?,
        length_bytes: positive(length_bytes)?,
        digest: digest.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_names_pieces() {
        let line = "audio /material/a.mp3 176400 1024 1058400 00000000000000ff";
        let pieces = parse_manifest(&format!("{line}\n{line}\n")).unwrap();
        assert_eq!(pieces.len(), 2);
        assert_eq!(pieces[0].length_bytes, 1_058_400);
        assert_eq!(pieces[0].digest.to_string(), "00000000000000ff");
    }

    #[test]
    fn a_manifest_that_is_none_is_refused() {
        for line in ["audio", "audio /f 0 1 1 ff", "audio /f 1 0 1 ff", "audio /f 1 1 1 xx"] {
            assert!(parse_manifest(line).is_err(), "{line}");
        }
    }
}
