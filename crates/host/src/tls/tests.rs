//! Real handshakes over loopback, with certificates of every kind of wrong.

pub(crate) mod authority;
mod data;
mod handshake;
mod identity;
mod revocation;

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsStream;

use super::{Connection, LinkOptions, TlsError, TlsIdentity};

fn options() -> LinkOptions {
    let handshake_limit = Duration::from_secs(5);
    LinkOptions { handshake_limit, ..LinkOptions::default() }
}

/// Runs a test on a runtime of its own.
fn run<T>(test: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap().block_on(test)
}

/// The two ends of a TCP connection on loopback.
async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

/// A connection from one to the other, as each of them sees it.
async fn pair(
    client: &TlsIdentity,
    server: &TlsIdentity,
    called: &str,
) -> (Result<Connection, TlsError>, Result<Connection, TlsError>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let called = called.parse().unwrap();
    let accept = async {
        let (socket, _) = listener.accept().await.unwrap();
        Connection::accept(socket, server, options()).await
    };
    let both =
        async { tokio::join!(Connection::connect(address, client, &called, options()), accept) };
    tokio::time::timeout(Duration::from_secs(20), both).await.expect("both ends to come to an end")
}

/// What a client learns when it reads the first answer of a server that did not take it.
async fn first_answer(connection: Result<Connection, TlsError>) -> TlsError {
    use tokio::io::AsyncReadExt;
    match connection {
        Err(error) => error,
        Ok(connection) => {
            let mut stream: TlsStream<TcpStream> = connection.into_stream();
            match stream.read(&mut [0; 16]).await {
                Err(error) => TlsError::of_io(error, None),
                Ok(count) => panic!("expected the server's refusal, found {count} bytes"),
            }
        }
    }
}
