//! Revoked certificates: in both directions, taken over while the agent runs, and lists that are of no use.

use std::fs;

use super::authority::Authority;
use super::{first_answer, pair, run};
use crate::tls::{Blame, CrlFile, IdentityError, TlsError, TlsFiles, TlsIdentity};

/// Alpha and beta of one authority, and gamma, whose certificate the authority has revoked.
fn hosts(authority: &Authority) -> [TlsFiles; 3] {
    let hosts = ["alpha", "beta", "gamma"].map(|host| authority.files(host, |_| {}));
    authority.publish(&authority.crl(&[&hosts[2]], 2100));
    hosts
}

/// Who does not know of any list.
fn unaware(files: &TlsFiles) -> TlsIdentity {
    let crl = CrlFile::IfThere(files.ca.with_file_name("nowhere.pem"));
    TlsIdentity::load(&TlsFiles { crl, ..files.clone() }).unwrap()
}

#[test]
fn a_revoked_host_gets_in_nowhere_and_is_called_by_nobody() {
    run(async {
        let authority = Authority::new();
        let [alpha, beta, gamma] = hosts(&authority);
        let (alpha, beta, gamma) = (
            TlsIdentity::load(&alpha).unwrap(),
            TlsIdentity::load(&beta).unwrap(),
            unaware(&gamma),
        );
        let (client, server) = pair(&alpha, &beta, "beta").await;
        assert!(client.is_ok() && server.is_ok(), "others are as before");

        let (client, server) = pair(&gamma, &beta, "beta").await;
        let error = server.unwrap_err();
        assert!(matches!(error, TlsError::PeerRevoked), "{error}");
        assert_eq!(
            (error.blame(), error.to_refusal().code.as_str()),
            (Blame::Peer, "peer-revoked")
        );
        let error = first_answer(client).await;
        assert!(matches!(error, TlsError::RevokedByPeer), "{error}");
        assert_eq!(error.to_refusal().code, "certificate-revoked");
        assert!(!error.is_transient());

        let (client, server) = pair(&alpha, &gamma, "gamma").await;
        let error = client.unwrap_err();
        assert!(matches!(error, TlsError::PeerRevoked), "{error}");
        assert!(matches!(server.unwrap_err(), TlsError::RevokedByPeer));
    });
}

#[test]
fn a_list_that_changes_counts_from_the_next_connection() {
    run(async {
        let authority = Authority::new();
        let [alpha, beta] = ["alpha", "beta"].map(|host| authority.files(host, |_| {}));
        let (client, server) = (unaware(&alpha), TlsIdentity::load(&beta).unwrap());
        assert!(pair(&client, &server, "beta").await.1.is_ok(), "there is no list");
        authority.publish(&authority.crl(&[&alpha], 2100));
        let refused = pair(&client, &server, "beta").await.1;
        assert!(matches!(refused, Err(TlsError::PeerRevoked)), "{refused:?}");
        // What cannot be read, or is gone, changes nothing: a revocation is not undone by a damaged file.
        authority.publish("half a li");
        let refused = pair(&client, &server, "beta").await.1;
        assert!(matches!(refused, Err(TlsError::PeerRevoked)), "{refused:?}");
        fs::remove_file(authority.crl_path()).unwrap();
        let refused = pair(&client, &server, "beta").await.1;
        assert!(matches!(refused, Err(TlsError::PeerRevoked)), "{refused:?}");
        authority.publish(&authority.crl(&[], 2100));
        assert!(pair(&client, &server, "beta").await.1.is_ok(), "the newest list counts");
    });
}

#[test]
fn lists_of_no_use_are_found_at_the_start() {
    let authority = Authority::new();
    let [alpha, _, gamma] = hosts(&authority);
    let text = |files: &TlsFiles| {
        let error = TlsIdentity::load(files).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("expected"), "{text}");
        (error, text)
    };
    let (error, _) = text(&gamma);
    assert!(matches!(error, IdentityError::Revoked { .. }), "{error}");
    authority.publish(&authority.crl(&[], 2025));
    let (error, words) = text(&alpha);
    assert!(matches!(error, IdentityError::CrlOver { .. }), "{error}");
    assert!(words.contains("2025-01-01") && words.contains("sterna pki revoke"), "{words}");
    authority.publish("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n");
    assert!(matches!(text(&alpha).0, IdentityError::Pem { .. }));
    authority.publish("");
    assert!(matches!(text(&alpha).0, IdentityError::Pem { .. }));
    let stranger = Authority::with(|params| {
        params.distinguished_name.push(rcgen::DnType::CommonName, "a stranger");
    });
    authority.publish(&stranger.crl(&[], 2100));
    let (error, words) = text(&alpha);
    assert!(matches!(error, IdentityError::CrlForeign { .. }), "{error}");
    assert!(words.contains("a stranger"), "{words}");
    // Of the same name, but not signed by our authority.
    authority.publish(&Authority::new().crl(&[], 2100));
    let error = TlsIdentity::load(&alpha).unwrap_err();
    assert!(error.to_string().to_lowercase().contains("signature"), "{error}");
    fs::remove_file(authority.crl_path()).unwrap();
    TlsIdentity::load(&alpha).unwrap();
    let required = TlsFiles { crl: CrlFile::Required(authority.crl_path()), ..alpha };
    assert!(matches!(text(&required).0, IdentityError::Read { .. }));
}

#[test]
fn a_list_that_ends_while_the_agent_runs_lets_nobody_in() {
    run(async {
        let authority = Authority::new();
        let [alpha, beta] = ["alpha", "beta"].map(|host| authority.files(host, |_| {}));
        let soon = std::time::SystemTime::now() + std::time::Duration::from_secs(2);
        authority.publish(&authority.crl_until(&[], soon));
        let (alpha, beta) = (TlsIdentity::load(&alpha).unwrap(), unaware(&beta));
        tokio::time::sleep(std::time::Duration::from_millis(3200)).await;
        let (client, server) = pair(&alpha, &beta, "beta").await;
        let error = client.unwrap_err();
        assert!(matches!(error, TlsError::CrlOver { .. }), "{error}");
        let refusal = error.to_refusal();
        assert_eq!(refusal.code, "crl-expired");
        assert!(refusal.remedy.contains("sterna pki revoke DIR"), "{refusal}");
        assert_eq!(error.blame(), Blame::Here);
        let told = server.unwrap_err().to_string();
        assert!(told.contains("out of date"), "{told}");
    });
}
