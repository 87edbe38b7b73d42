//! The guest's network services: an echo for probers (port 7, TCP and UDP) and a control port (7000).
//!
//! Control takes lines: `sweep` answers `OK …` or `BAD …` after a whole sweep, `stats` answers one
//! line of counts. Anything else answers `UNKNOWN`. One thread per client, a bounded number.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{self, Sender};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use std::thread;

const ECHO_PORT: u16 = 7;
const CONTROL_PORT: u16 = 7000;
const MAX_CLIENTS: usize = 16;
const MAX_LINE_BYTES: u64 = 64;

/// A question to the load, with where its answer goes.
#[derive(Debug)]
pub(crate) enum Request {
    /// A whole sweep.
    Sweep(Sender<String>),
    /// Counts so far.
    Stats(Sender<String>),
}

/// Starts both services if the guest has a network card; a failure is printed.
pub(crate) fn start(requests: &Sender<Request>) {
    if !std::path::Path::new("/sys/class/net/eth0").exists() {
        return;
    }
    let requests = requests.clone();
    listen(ECHO_PORT, echo);
    echo_datagrams();
    listen(CONTROL_PORT, move |client| control(client, &requests));
}

fn listen<F>(port: u16, serve: F)
where
    F: Fn(TcpStream) -> std::io::Result<()> + Clone + Send + 'static,
{
    let listener = match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Ok(listener) => listener,
        Err(error) => {
            println!("PORT {port} FAILED {error}");
            return;
        }
    };
    thread::spawn(move || {
        let clients = Arc::new(AtomicUsize::new(0));
        for client in listener.incoming().flatten() {
            if clients.fetch_add(1, Ordering::Relaxed) >= MAX_CLIENTS {
                clients.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (serve, clients) = (serve.clone(), Arc::clone(&clients));
            thread::spawn(move || {
                // A client that breaks off is no news.
                let _ = serve(client);
                clients.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
}

fn echo_datagrams() {
    let socket = match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, ECHO_PORT)) {
        Ok(socket) => socket,
        Err(error) => {
            println!("PORT {ECHO_PORT} FAILED {error}");
            return;
        }
    };
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        loop {
            // A datagram that cannot be answered is lost, as datagrams may be.
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], from);
            }
        }
    });
}

fn echo(mut client: TcpStream) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let mut buffer = [0; 4096];
    loop {
        let length = client.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        client.write_all(&buffer[..length])?;
    }
}

fn control(client: TcpStream, requests: &Sender<Request>) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let mut writer = client.try_clone()?;
    let mut reader = BufReader::new(client);
    loop {
        let mut line = String::new();
        if reader.by_ref().take(MAX_LINE_BYTES).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let answer = answer(line.trim(), requests);
        writer.write_all(format!("{answer}\n").as_bytes())?;
    }
}

fn answer(line: &str, requests: &Sender<Request>) -> String {
    let (reply, answers) = mpsc::channel();
    let request = match line {
        "sweep" => Request::Sweep(reply),
        "stats" => Request::Stats(reply),
        _ => return "UNKNOWN expected sweep or stats".to_owned(),
    };
    let asked = requests.send(request).is_ok();
    let answer = asked.then(|| answers.recv().ok()).flatten();
    answer.unwrap_or_else(|| "GONE the load has ended".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn control_passes_questions_on_and_refuses_others() {
        let (mut client, server) = connected();
        let (requests, received) = mpsc::channel();
        thread::spawn(move || control(server, &requests));
        thread::spawn(move || {
            while let Ok(Request::Sweep(reply) | Request::Stats(reply)) = received.recv() {
                reply.send("OK n=1".to_owned()).unwrap();
            }
        });
        client.write_all(b"sweep\nshout\nstats\n").unwrap();
        let mut lines = BufReader::new(client).lines();
        let mut next = || lines.next().unwrap().unwrap();
        assert_eq!(next(), "OK n=1");
        assert!(next().starts_with("UNKNOWN"));
        assert_eq!(next(), "OK n=1");
    }

    #[test]
    fn echo_gives_back_what_came() {
        let (mut client, server) = connected();
        thread::spawn(move || echo(server));
        client.write_all(b"ping").unwrap();
        let mut answer = [0; 4];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"ping");
    }
}
