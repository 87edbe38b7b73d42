//! RESP, the protocol of redis: commands as arrays of bulk strings, five kinds of replies.
//!
//! ```text
//! +text\r\n   -error\r\n   :number\r\n   $length\r\nbytes\r\n (length -1: nothing)   *count\r\nreplies
//! ```
//!
//! What a server says is checked against limits before anything is allocated. This file stands
//! alone: the benchmark's client includes it too.

use std::io::{self, BufRead, Read};

/// Longest text line of a reply.
const MAX_LINE_BYTES: u64 = 4096;
/// Longest bulk string.
const MAX_BULK_BYTES: usize = 1 << 16;
/// Most elements of an array.
const MAX_ELEMENTS: usize = 1024;
/// Arrays in arrays.
const MAX_DEPTH: u32 = 4;

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// `+`: a word such as OK.
    Text(String),
    /// `-`: it refuses.
    Refused(String),
    /// `:`
    Number(i64),
    /// `$`: bytes, or nothing of that name.
    Bulk(Option<Vec<u8>>),
    /// `*`
    Array(Vec<Reply>),
}

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RespError {
    /// The connection.
    #[error("the connection to redis: {0}")]
    Connection(#[from] io::Error),
    /// The connection was closed.
    #[error("redis closed the connection")]
    Closed,
    /// Not of this protocol, or beyond its limits.
    #[error("redis: expected {expected}, found {found:?}")]
    Malformed {
        /// What belongs there.
        expected: &'static str,
        /// What is there.
        found: String,
    },
}

/// Appends a command.
pub(crate) fn write_command(words: &[&[u8]], to: &mut Vec<u8>) {
    to.extend(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        to.extend(format!("${}\r\n", word.len()).as_bytes());
        to.extend(*word);
        to.extend(b"\r\n");
    }
}

/// Reads one reply.
///
/// # Errors
/// The connection ends, or what comes is none.
pub(crate) fn read_reply(from: &mut impl BufRead) -> Result<Reply, RespError> {
    read_nested(from, 0)
}

fn read_nested(from: &mut impl BufRead, depth: u32) -> Result<Reply, RespError> {
    let line = read_line(from)?;
    let Some(kind) = line.chars().next().filter(char::is_ascii) else {
        return Err(malformed("a reply", line));
    };
    let rest = &line[1..];
    match kind {
        '+' => Ok(Reply::Text(rest.to_owned())),
        '-' => Ok(Reply::Refused(rest.to_owned())),
        ':' => rest.parse().map(Reply::Number).map_err(|_| malformed("a number", line)),
        '$' if rest == "-1" => Ok(Reply::Bulk(None)),
        '$' => read_bulk(from, rest).map(|bytes| Reply::Bulk(Some(bytes))),
        '*' if depth < MAX_DEPTH => {
            let count = parse_count(rest, MAX_ELEMENTS, "an array of at most 1024 replies")?;
            (0..count)
                .map(|_| read_nested(from, depth + 1))
                .collect::<Result<_, _>>()
                .map(Reply::Array)
        }
        _ => Err(malformed("a reply", line)),
    }
}

fn read_bulk(from: &mut impl BufRead, length: &str) -> Result<Vec<u8>, RespError> {
    let length = parse_count(length, MAX_BULK_BYTES, "a bulk string of at most 64 KiB")?;
    let mut bytes = vec![0; length + 2];
    from.read_exact(&mut bytes).map_err(closed_or_broken)?;
    if bytes.split_off(length) != b"\r\n" {
        return Err(malformed("the end of a bulk string", String::new()));
    }
    Ok(bytes)
}

fn read_line(from: &mut impl BufRead) -> Result<String, RespError> {
    let mut line = Vec::new();
    from.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(RespError::Closed);
    }
    let text = String::from_utf8_lossy(&line).into_owned();
    let whole = text.strip_suffix("\r\n").map(str::to_owned);
    whole.ok_or_else(|| malformed("a line of at most 4096 bytes", text))
}

fn parse_count(text: &str, most: usize, expected: &'static str) -> Result<usize, RespError> {
    let count = text.parse::<usize>().ok().filter(|count| *count <= most);
    count.ok_or_else(|| malformed(expected, text.to_owned()))
}

fn closed_or_broken(error: io::Error) -> RespError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        RespError::Closed
    } else {
        RespError::Connection(error)
    }
}

fn malformed(expected: &'static str, mut found: String) -> RespError {
    let end = found.char_indices().nth(80).map_or(found.len(), |(at, _)| at);
    found.truncate(end);
    RespError::Malformed { expected, found }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Reply, RespError> {
        read_reply(&mut text.as_bytes())
    }

    #[test]
    fn a_command_is_an_array_of_bulk_strings() {
        let mut bytes = Vec::new();
        write_command(&[b"GET", b"k\r\n"], &mut bytes);
        assert_eq!(bytes, b"*2\r\n$3\r\nGET\r\n$3\r\nk\r\n\r\n");
    }

    #[test]
    fn reads_all_kinds_one_after_the_other() {
        let text = "+OK\r\n-ERR no\r\n:-7\r\n$-1\r\n$2\r\n\r\n\r\n*2\r\n:1\r\n$0\r\n\r\n";
        let mut from = text.as_bytes();
        let mut next = || read_reply(&mut from).unwrap();
        assert_eq!(next(), Reply::Text("OK".to_owned()));
        assert_eq!(next(), Reply::Refused("ERR no".to_owned()));
        assert_eq!(next(), Reply::Number(-7));
        assert_eq!(next(), Reply::Bulk(None));
        assert_eq!(next(), Reply::Bulk(Some(b"\r\n".to_vec())));
        assert_eq!(next(), Reply::Array(vec![Reply::Number(1), Reply::Bulk(Some(Vec::new()))]));
        assert!(matches!(read_reply(&mut from), Err(RespError::Closed)));
    }

    #[test]
    fn refuses_what_is_none_before_it_allocates() {
        let deep = "*1\r\n".repeat(9);
        let long = format!("+{}\r\n", "x".repeat(5000));
        let bad = [
            "$9999999999\r\n",
            "$65537\r\n",
            "*1025\r\n",
            "*-1\r\n",
            ":x\r\n",
            "OK\r\n",
            "\r\n",
            "+OK\n",
            "$1\r\nab\r\n",
            "\u{e9}\r\n",
            &deep,
            &long,
        ];
        for text in bad {
            assert!(matches!(read(text), Err(RespError::Malformed { .. })), "{text:.20}");
        }
    }

    #[test]
    fn an_end_in_the_middle_is_an_end() {
        for text in ["$5\r\nab", "*2\r\n:1\r\n", ""] {
            assert!(matches!(read(text), Err(RespError::Closed)), "{text}");
        }
    }
}
