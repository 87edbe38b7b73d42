//! Data connections: whole frames in bulk, farewells, cuts and silence.

use std::thread;
use std::time::Duration;

use sterna_wire::{FrameError, FrameKind, FrameReader, FrameWriter};

use super::authority::Authority;
use super::{pair, run};
use crate::tls::{DataStream, FrameStreamError, TlsError, read_frame, write_frame};

/// A source's end and a destination's end.
fn streams() -> (DataStream, DataStream) {
    run(async {
        let authority = Authority::new();
        let (alpha, beta) = (authority.identity("alpha"), authority.identity("beta"));
        let (client, server) = pair(&alpha, &beta, "beta").await;
        (client.unwrap().into_blocking().unwrap(), server.unwrap().into_blocking().unwrap())
    })
}

/// Bytes that say where they belong.
fn payload(length_bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state.to_be_bytes()[0]
    };
    (0..length_bytes).map(next).collect()
}

#[test]
fn frames_of_all_sizes_arrive_whole_and_in_order() {
    let lengths =
        [0, 1, 4096, 16_384, 65_536, 65_537, 262_144, 1024 * 1024, 3, 0, 1024 * 1024 - 17];
    let (mut source, mut destination) = streams();
    assert_eq!(source.peer().as_str(), "beta");
    let writer = thread::spawn(move || {
        let mut writer = FrameWriter::new();
        source.write_frame(&mut writer, FrameKind::Hello, b"hi").unwrap();
        for (seed, length) in (0..).zip(lengths) {
            let payload = payload(length, seed);
            source.write_frame(&mut writer, FrameKind::Pages, &payload).unwrap();
        }
        source.finish().unwrap();
        writer.frames()
    });
    let mut reader = FrameReader::new();
    assert!(destination.read_frame(&mut reader).unwrap());
    assert_eq!(reader.frame().unwrap().payload, b"hi");
    for (seed, length) in (0..).zip(lengths) {
        assert!(destination.read_frame(&mut reader).unwrap());
        assert!(reader.frame().unwrap().payload == payload(length, seed), "{length} bytes");
    }
    assert!(!destination.read_frame(&mut reader).unwrap(), "the farewell is the end");
    assert_eq!(writer.join().unwrap(), reader.frames());
}

#[test]
fn what_came_before_the_thread_took_over_is_not_lost() {
    let (client, server) = run(async {
        let authority = Authority::new();
        let (alpha, beta) = (authority.identity("alpha"), authority.identity("beta"));
        let (client, server) = pair(&alpha, &beta, "beta").await;
        let (mut client, mut server) = (client.unwrap(), server.unwrap());
        let mut writer = FrameWriter::new();
        let stream = client.stream();
        write_frame(stream, &mut writer, FrameKind::Hello, b"hi").await.unwrap();
        write_frame(stream, &mut writer, FrameKind::Pages, &[7; 3000]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut reader = FrameReader::new();
        // The record with the pages may be in the library's buffer when the Hello is read.
        assert!(read_frame(server.stream(), &mut reader).await.unwrap());
        assert_eq!(reader.frame().unwrap().payload, b"hi");
        let client = (client.into_blocking().unwrap(), writer);
        (client, (server.into_blocking().unwrap(), reader))
    });
    let ((mut source, mut writer), (mut destination, mut reader)) = (client, server);
    source.write_frame(&mut writer, FrameKind::Tail, &[8; 10]).unwrap();
    assert!(destination.read_frame(&mut reader).unwrap());
    assert_eq!(reader.frame().unwrap().payload, [7; 3000]);
    assert!(destination.read_frame(&mut reader).unwrap());
    assert_eq!(reader.frame().unwrap().payload, [8; 10]);
}

#[test]
fn a_cut_is_not_a_farewell() {
    let (mut source, mut destination) = streams();
    source.write_all(b"some").unwrap();
    drop(source);
    let mut bytes = [0; 16];
    assert_eq!(destination.read(&mut bytes).unwrap(), 4);
    assert!(matches!(destination.read(&mut bytes), Err(TlsError::Truncated)));
}

#[test]
fn a_farewell_within_a_frame_is_a_cut() {
    let (mut source, mut destination) = streams();
    let header = FrameWriter::new().header(FrameKind::Hello, 10).unwrap();
    source.write_parts(&header, b"half").unwrap();
    source.finish().unwrap();
    let error = destination.read_frame(&mut FrameReader::new()).unwrap_err();
    assert!(matches!(error, FrameStreamError::Connection(TlsError::Truncated)), "{error}");
}

#[test]
fn what_is_no_frame_is_named() {
    let (mut source, mut destination) = streams();
    source.write_all(&[0x41; 64]).unwrap();
    let error = destination.read_frame(&mut FrameReader::new()).unwrap_err();
    assert!(matches!(error, FrameStreamError::Frame(FrameError::Magic { found: 0x4141 })));
}

#[test]
fn bytes_changed_on_the_way_are_found() {
    use std::io::Write;
    let (mut source, mut destination) = streams();
    source.write_all(b"right").unwrap();
    // Past the TLS library, as somebody on the way would: a record that nobody encrypted.
    let mut socket = source.handle().unwrap().into_socket();
    socket.write_all(&[0x17, 3, 3, 0, 32]).unwrap();
    socket.write_all(&[0; 32]).unwrap();
    let mut bytes = [0; 16];
    let mut read = Vec::new();
    let error = loop {
        match destination.read(&mut bytes) {
            Ok(count) => read.extend(&bytes[..count]),
            Err(error) => break error,
        }
    };
    assert!(b"right".starts_with(&read), "{read:?}");
    assert!(matches!(error, TlsError::PeerGarbage { .. }), "{error}");
}

#[test]
fn silence_ends_at_its_limit_and_reading_can_go_on() {
    let (mut source, mut destination) = streams();
    destination.set_wait_limit(Some(Duration::from_millis(50))).unwrap();
    let mut bytes = [0; 16];
    let error = destination.read(&mut bytes).unwrap_err();
    assert!(matches!(error, TlsError::Timeout { .. }), "{error}");
    source.write_all(b"late").unwrap();
    assert_eq!(destination.read(&mut bytes).unwrap(), 4);
}

#[test]
fn another_thread_can_end_a_read() {
    let (_source, mut destination) = streams();
    let handle = destination.handle().unwrap();
    let reading = thread::spawn(move || destination.read(&mut [0; 16]));
    thread::sleep(Duration::from_millis(50));
    handle.close();
    assert!(matches!(reading.join().unwrap(), Err(TlsError::Truncated)));
}

#[test]
fn another_thread_can_end_a_write_that_is_stuck() {
    let (mut source, _destination) = streams();
    let handle = source.handle().unwrap();
    let writing = thread::spawn(move || {
        let bytes = vec![0; 1024 * 1024];
        loop {
            if let Err(error) = source.write_all(&bytes) {
                return error;
            }
        }
    });
    thread::sleep(Duration::from_millis(100));
    handle.close();
    assert!(matches!(writing.join().unwrap(), TlsError::Io(_)));
}
