//! The protocol, the books of keys, the windows.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use super::recorder::MAX_WINDOWS;
use super::resp::Reply;
use super::value::value_of;
use super::worker::Outcome;
use super::*;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn worker() -> Worker {
    let setup = Setup { address: (Ipv4Addr::LOCALHOST, 1).into(), connections: 3, keys: 10 };
    Worker::new(&setup, 1)
}

#[test]
fn windows_have_ranks_and_no_gaps() {
    let mut recorder = Recorder::new(1000.0, 1);
    for n in 1..=100 {
        recorder.reply_at(ms(50), Duration::from_micros(n));
    }
    recorder.reply_at(ms(370), ms(320));
    recorder.close_windows_before(ms(400));
    let windows = &recorder.record.windows;
    let first = Window { replies: 100, p50_us: Some(50), p99_us: Some(99), max_us: Some(100) };
    assert_eq!(windows[..3], [first, Window::default(), Window::default()]);
    let last = Some(320_000);
    assert_eq!(windows[3..], [Window { replies: 1, p50_us: last, p99_us: last, max_us: last }]);
}

#[test]
fn the_longest_silence_is_between_replies_and_has_a_time() {
    let mut recorder = Recorder::new(1000.0, 1);
    for at in [500, 510, 790, 800] {
        recorder.reply_at(ms(at), ms(1));
    }
    let record = &recorder.record;
    assert!((record.longest_silence_ms - 280.0).abs() < 1e-6, "{record:?}");
    assert!((record.silence_unix_ms - 1510.0).abs() < 1e-6, "{record:?}");
}

#[test]
fn windows_end_somewhere() {
    let mut recorder = Recorder::new(0.0, 1);
    recorder.reply_at(Duration::from_secs(1_000_000), ms(1));
    assert_eq!((recorder.record.windows.len(), recorder.latencies_us.len()), (MAX_WINDOWS, 0));
}

#[test]
fn connections_share_the_keys() {
    let setup = Setup { address: (Ipv4Addr::LOCALHOST, 1).into(), connections: 3, keys: 10 };
    let mut keys: Vec<u32> = (0..3)
        .map(|index| Worker::new(&setup, index))
        .flat_map(|worker| (0..worker.known.len()).map(|slot| worker.key(slot)).collect::<Vec<_>>())
        .collect();
    keys.sort_unstable();
    assert_eq!(keys, (0..10).collect::<Vec<_>>());
}

#[test]
fn a_stale_a_foreign_and_a_lost_value_are_wrong() {
    let mut worker = worker();
    let key = worker.key(2);
    let held = |sequence| Reply::Bulk(Some(value_of(key, sequence)));
    assert_eq!(worker.judge(2, None, None, held(4)), Outcome::Read);
    assert_eq!(worker.judge(2, Some(5), Some(4), Reply::Text("OK".to_owned())), Outcome::Written);
    assert_eq!(worker.known[2], Some(5));
    assert_eq!(worker.judge(2, None, Some(5), held(5)), Outcome::Read);
    let foreign = Reply::Bulk(Some(value_of(key + 1, 5)));
    for reply in [held(4), foreign, Reply::Bulk(None), Reply::Text("OK".to_owned())] {
        let outcome = worker.judge(2, None, Some(5), reply);
        assert!(matches!(outcome, Outcome::Wrong(_)), "{outcome:?}");
    }
    let refused = worker.judge(2, Some(6), Some(5), Reply::Refused("OOM".to_owned()));
    assert_eq!((refused, worker.known[2]), (Outcome::Refused("OOM".to_owned()), Some(5)));
}

#[test]
fn a_connection_that_ends_is_counted_and_made_anew() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let setup = Setup { address: listener.local_addr().unwrap(), connections: 1, keys: 1 };
    let shared = Arc::new(Shared::new(&setup).unwrap());
    let for_worker = Arc::clone(&shared);
    let worker = thread::spawn(move || Worker::new(&setup, 0).work(&for_worker));
    let serve = |mut client: TcpStream, has_asked: &dyn Fn()| {
        let mut buffer = [0; 4096];
        let length = client.read(&mut buffer).unwrap();
        has_asked();
        let mut held = b"$1000\r\n".to_vec();
        held.extend(value_of(0, 0));
        held.extend(b"\r\n");
        let is_get = buffer[..length].starts_with(b"*2");
        client.write_all(if is_get { &held } else { b"+OK\r\n" }).unwrap();
    };
    serve(listener.accept().unwrap().0, &|| {});
    serve(listener.accept().unwrap().0, &|| shared.stop.store(true, Ordering::Relaxed));
    worker.join().unwrap();
    let record = shared.recorder().finish(0);
    assert_eq!(record.gets + record.sets, 2);
    assert_eq!((record.disconnects, record.wrong_values, record.is_sound()), (1, 0, false));
    assert!(record.first_problem.is_some(), "{record:?}");
}

#[test]
fn words_of_another_kind_are_refused() {
    let parse = |line: &str| {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        Setup::parse(&words)
    };
    assert_eq!(parse("127.0.0.1:6379 4 65536").unwrap().keys, KEYS);
    for line in ["127.0.0.1 4 9", "127.0.0.1:1 0 9", "127.0.0.1:1 65 99", "127.0.0.1:1 4 3", "x"] {
        assert!(parse(line).is_err(), "{line}");
    }
}
