//! Who does not come as far as a name: garbage, plaintext, silence, half handshakes, and certificates that count for nothing.

use std::time::Duration;

use sterna_host::pki;
use sterna_host::tls::TlsIdentity;
use sterna_wire::Role;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::bench::Bench;
use crate::caller::Caller;
use crate::{Result, expect, run};

/// The agent gives a handshake 10 s.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(15);

#[test]
fn whoever_speaks_no_tls_is_let_go() -> Result<()> {
    run(async {
        let bench = Bench::start("")?;
        let before = bench.usage()?;
        let mut all = JoinSet::new();
        let says: [&[u8]; 8] = [
            b"GET / HTTP/1.1\r\nHost: beta\r\n\r\n",
            b"{\"execute\": \"qmp_capabilities\"}\r\n",
            &[0; 4096],
            &[0xff; 70_000],
            // Records of TLS: too long, an empty one, half a ClientHello, an alert.
            &[0x16, 3, 1, 0xff, 0xff, 0, 0, 0],
            &[0x16, 3, 1, 0, 0],
            &[0x16, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3, 9, 9, 9],
            &[0x15, 3, 3, 0, 2, 2, 40],
        ];
        for bytes in says {
            all.spawn(says_and_waits(bench.address().to_owned(), bytes.to_vec()));
        }
        all.spawn(says_and_waits(bench.address().to_owned(), Vec::new()));
        all.spawn(drips(bench.address().to_owned()));
        bench.serves("gamma", Duration::from_secs(5)).await?;
        while let Some(ended) = all.join_next().await {
            ended??;
        }
        bench
            .is_well(
                before,
                &["turned away", "127.0.0.1", "found something else", "within 10000 ms"],
            )
            .await
    })
}

/// Says something and waits until the agent has had enough.
async fn says_and_waits(address: String, bytes: Vec<u8>) -> Result<()> {
    let mut socket = TcpStream::connect(&address).await?;
    // It may be closed before all of it is written.
    let _ = socket.write_all(&bytes).await;
    let read = async { while socket.read(&mut [0; 512]).await.is_ok_and(|count| count > 0) {} };
    let start = bytes.get(..8).unwrap_or(&bytes);
    tokio::time::timeout(HANDSHAKE_LIMIT, read)
        .await
        .map_err(|_| format!("a connection that said {start:?} was kept").into())
}

/// A byte at a time, each in good time.
async fn drips(address: String) -> Result<()> {
    let mut socket = TcpStream::connect(&address).await?;
    let drip = async {
        let record = [0x16_u8, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
        for byte in record.into_iter().chain(std::iter::repeat(9)) {
            if socket.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let kept = |_| "a connection that drips was kept".into();
    tokio::time::timeout(HANDSHAKE_LIMIT, drip).await.map_err(kept)
}

#[test]
fn certificates_that_count_for_nothing() -> Result<()> {
    run(async {
        let bench = Bench::start("")?;
        let before = bench.usage()?;
        // Of our authority, but nobody's peer.
        let refusal = Caller::refused(&bench, &bench.identity("delta")?, Role::Check).await?;
        expect(refusal.code == "peer-not-allowed", "peer-not-allowed", &refusal)?;
        // Of an authority that has given itself our peer's name, and trusts ours.
        let pki = bench.folder().join("pki");
        let foreign = bench.folder().join("foreign");
        pki::init(&foreign)?;
        let mut files = pki::files(&pki::issue(&foreign, &"alpha".parse()?)?);
        let both = [std::fs::read(pki.join("ca-cert.pem"))?, std::fs::read(&files.ca)?].concat();
        files.ca = bench.folder().join("both.pem");
        std::fs::write(&files.ca, both)?;
        let error = Caller::refused(&bench, &TlsIdentity::load(&files)?, Role::Check).await;
        let error = error.err().map(|error| error.to_string()).unwrap_or_default();
        expect(error.contains("does not know our CA"), "a refusal", &error)?;
        bench.serves("alpha", Duration::from_secs(5)).await?;
        // Revoked while the agent runs.
        let alpha = bench.identity("alpha")?;
        pki::revoke(&pki, Some(&"alpha".parse()?))?;
        std::fs::copy(pki.join("ca-crl.pem"), pki.join("beta/ca-crl.pem"))?;
        let error = Caller::refused(&bench, &alpha, Role::Check).await;
        let error = error.err().map(|error| error.to_string()).unwrap_or_default();
        expect(error.contains("revoked"), "a refusal as revoked", &error)?;
        let said = ["delta was refused", "signed by our CA", "read anew", "list of revoked ones"];
        bench.is_well(before, &said).await
    })
}
