//! Handshakes: right ones, and each kind of peer that must not get in.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::authority::Authority;
use super::{first_answer, options, pair, run, sockets};
use crate::tls::{Blame, Connection, LinkOptions, TlsError, TlsFiles};

#[test]
fn two_hosts_of_one_authority_know_each_other() {
    run(async {
        let authority = Authority::new();
        let (alpha, beta) = (authority.identity("alpha"), authority.identity("beta"));
        let (client, server) = pair(&alpha, &beta, "beta").await;
        let (mut client, mut server) = (client.unwrap(), server.unwrap());
        assert_eq!((client.peer().as_str(), server.peer().as_str()), ("beta", "alpha"));
        client.stream().write_all(b"hello").await.unwrap();
        client.stream().flush().await.unwrap();
        let mut read = [0; 5];
        server.stream().read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"hello");
        let (_, tls) = server.stream().get_ref();
        assert_eq!(tls.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    });
}

#[test]
fn hosts_of_different_authorities_refuse_each_other() {
    run(async {
        let (one, other) = (Authority::new(), Authority::new());
        let (client, server) = pair(&one.identity("alpha"), &other.identity("beta"), "beta").await;
        let error = client.unwrap_err();
        assert!(matches!(error, TlsError::PeerUnknownCa), "{error}");
        assert_eq!(error.blame(), Blame::Peer);
        assert_eq!(error.to_refusal().code, "peer-unknown-ca");
        let error = server.unwrap_err();
        assert!(matches!(error, TlsError::RefusedByPeer { .. }), "{error}");
    });
}

#[test]
fn a_client_of_another_authority_learns_it_with_the_first_answer() {
    run(async {
        let (one, other) = (Authority::new(), Authority::new());
        // It believes the server, but the server does not believe it.
        let mut files = other.files("alpha", |_| {});
        files.ca = both_authorities(&one, &other);
        let alpha = crate::tls::TlsIdentity::load(&files).unwrap();
        let (client, server) = pair(&alpha, &one.identity("beta"), "beta").await;
        assert!(matches!(server.unwrap_err(), TlsError::PeerUnknownCa));
        let error = first_answer(client).await;
        assert!(matches!(error, TlsError::RefusedByPeer { .. }), "{error}");
        assert_eq!(error.blame(), Blame::Here);
    });
}

fn both_authorities(one: &Authority, other: &Authority) -> std::path::PathBuf {
    let path = one.folder.path().join("both.pem");
    std::fs::write(&path, [one.pem.as_str(), other.pem.as_str()].concat()).unwrap();
    path
}

#[test]
fn somebody_else_at_the_address_is_named() {
    run(async {
        let authority = Authority::new();
        let alpha = authority.identity("alpha");
        let (client, server) = pair(&alpha, &authority.identity("gamma"), "beta").await;
        let error = client.unwrap_err().to_string();
        assert!(error.contains("expected beta") && error.contains("gamma"), "{error}");
        assert!(server.is_err());
    });
}

#[test]
fn a_peer_is_called_by_its_name_and_never_by_its_address() {
    run(async {
        let authority = Authority::new();
        let alpha = authority.identity("alpha");
        let address = "127.0.0.1".parse().unwrap();
        let error = Connection::connect("127.0.0.1:9", &alpha, &address, options()).await;
        assert!(matches!(error, Err(TlsError::Name { .. })), "{error:?}");
    });
}

/// A client that our own code would not let be: it shows what it is told to, or nothing.
async fn foreign_client(
    files: &TlsFiles,
    shows: bool,
    version: &'static SupportedProtocolVersion,
    alpn: &[u8],
) -> (TlsError, std::io::Error) {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&files.ca).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    let certificate = CertificateDer::from_pem_file(&files.certificate).unwrap();
    let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
    let mut config = match shows {
        true => builder.with_client_auth_cert(vec![certificate], key).unwrap(),
        false => builder.with_no_client_auth(),
    };
    config.alpn_protocols = if alpn.is_empty() { vec![] } else { vec![alpn.to_vec()] };
    let authority_server = TlsConnector::from(Arc::new(config));
    let (ours, theirs) = sockets().await;
    let beta = crate::tls::TlsIdentity::load(files).unwrap();
    let (accepted, failed) = tokio::join!(Connection::accept(ours, &beta, options()), async {
        let name = ServerName::try_from("beta").unwrap();
        let mut stream = authority_server.connect(name, theirs).await?;
        let count = stream.read(&mut [0; 16]).await?;
        panic!("expected a refusal, found {count} bytes")
    });
    let failed: std::io::Result<()> = failed;
    (accepted.unwrap_err(), failed.unwrap_err())
}

#[test]
fn a_client_without_a_certificate_stays_out() {
    run(async {
        let files = Authority::new();
        let files = (files.files("beta", |_| {}), files);
        let (error, _) =
            foreign_client(&files.0, false, &rustls::version::TLS13, super::super::ALPN).await;
        assert!(matches!(error, TlsError::PeerHasNoCertificate), "{error}");
    });
}

#[test]
fn a_client_that_speaks_only_tls_1_2_stays_out() {
    run(async {
        let authority = Authority::new();
        let files = authority.files("beta", |_| {});
        let (error, theirs) =
            foreign_client(&files, true, &rustls::version::TLS12, super::super::ALPN).await;
        assert!(matches!(error, TlsError::PeerIncompatible { .. }), "{error}");
        assert!(theirs.to_string().contains("ProtocolVersion"), "{theirs}");
    });
}

#[test]
fn a_client_of_another_protocol_or_none_stays_out() {
    run(async {
        let authority = Authority::new();
        let files = authority.files("beta", |_| {});
        for alpn in [&b"h2"[..], b"sterna/2", b""] {
            let (error, _) = foreign_client(&files, true, &rustls::version::TLS13, alpn).await;
            assert!(matches!(error, TlsError::PeerIncompatible { .. }), "{error}");
        }
    });
}

#[test]
fn an_expired_peer_is_told_apart() {
    run(async {
        let authority = Authority::new();
        let alpha = authority.identity("alpha");
        let files = authority.files("beta", |params| {
            params.not_after = rcgen::date_time_ymd(2024, 3, 1);
        });
        let chain = vec![CertificateDer::from_pem_file(&files.certificate).unwrap()];
        let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
        let config =
            rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(chain, key)
                .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let beta = "beta".parse().unwrap();
        let (connected, _) =
            tokio::join!(Connection::connect(address, &alpha, &beta, options()), async {
                let (socket, _) = listener.accept().await.unwrap();
                TlsAcceptor::from(Arc::new(config)).accept(socket).await
            });
        let error = connected.unwrap_err();
        assert!(matches!(error, TlsError::PeerNotValidNow { .. }), "{error}");
        assert_eq!(error.to_refusal().code, "peer-certificate-expired");
    });
}

#[test]
fn garbage_is_no_handshake() {
    run(async {
        let beta = Authority::new();
        let beta = (beta.identity("beta"), beta).0;
        let hostile: [&[u8]; 5] = [
            b"GET / HTTP/1.1\r\n\r\n",
            &[0; 64],
            &[0xff; 6000],
            &[0x16, 3, 1, 0xff, 0xff, 0, 0],
            &[0x16, 3, 1, 0, 4, 1, 0, 0, 0],
        ];
        for bytes in hostile {
            let (mut theirs, ours) = sockets().await;
            theirs.write_all(bytes).await.unwrap();
            theirs.shutdown().await.unwrap();
            let error = Connection::accept(ours, &beta, options()).await.unwrap_err();
            assert!(matches!(error, TlsError::PeerGarbage { .. } | TlsError::Truncated), "{error}");
        }
    });
}

#[test]
fn whoever_says_nothing_or_too_little_is_let_go_in_time() {
    run(async {
        let authority = Authority::new();
        let beta = authority.identity("beta");
        let handshake_limit = Duration::from_millis(300);
        let options = LinkOptions { handshake_limit, ..options() };
        for drips in [false, true] {
            let (mut theirs, ours) = sockets().await;
            let began = Instant::now();
            let drip = async {
                // One byte at a time keeps a socket's own timeout from ever firing.
                for byte in [0x16_u8, 3, 1, 1, 0].into_iter().chain([1; 60]) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    if drips && theirs.write_all(&[byte]).await.is_err() {
                        break;
                    }
                }
            };
            let accept = Connection::accept(ours, &beta, options);
            let error = tokio::select! {
                accepted = accept => accepted.unwrap_err(),
                () = drip => panic!("expected a time-out"),
            };
            assert!(matches!(error, TlsError::Timeout { .. }), "{error}");
            assert!(began.elapsed() < Duration::from_secs(2));
            assert!(error.is_transient());
        }
    });
}

#[test]
fn a_server_that_says_nothing_is_given_up_in_time() {
    run(async {
        let authority = Authority::new();
        let alpha = authority.identity("alpha");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let beta = "beta".parse().unwrap();
        let handshake_limit = Duration::from_millis(200);
        let options = LinkOptions { handshake_limit, ..options() };
        let error = Connection::connect(address, &alpha, &beta, options).await.unwrap_err();
        assert!(matches!(error, TlsError::Timeout { .. }), "{error}");
        drop(listener);
        let error = Connection::connect(address, &alpha, &beta, options).await.unwrap_err();
        assert!(matches!(error, TlsError::Connect { .. }), "{error}");
    });
}

#[test]
fn the_handshake_leaves_nothing_unread_at_the_client() {
    run(async {
        let authority = Authority::new();
        let (alpha, beta) = (authority.identity("alpha"), authority.identity("beta"));
        let (client, server) = pair(&alpha, &beta, "beta").await;
        let (client, _server) = (client.unwrap(), server.unwrap());
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut socket = client.into_blocking().unwrap().handle().unwrap().into_socket();
        socket.set_nonblocking(true).unwrap();
        let error = socket.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    });
}

#[test]
fn a_certificate_for_two_hosts_is_nobodys() {
    let authority = Authority::new();
    let files = authority.files("beta", |params| {
        params.subject_alt_names.push(rcgen::SanType::DnsName("gamma".try_into().unwrap()));
    });
    let certificate = CertificateDer::from_pem_file(&files.certificate).unwrap();
    let error = crate::tls::peer_name(&[certificate]).unwrap_err().to_string();
    assert!(error.contains("\"beta\", \"gamma\""), "{error}");
    assert!(matches!(crate::tls::peer_name(&[]), Err(TlsError::PeerHasNoCertificate)));
}
