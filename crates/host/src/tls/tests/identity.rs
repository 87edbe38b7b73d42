//! Identities that are of no use: found when they are loaded, and named.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, SanType, date_time_ymd};

use super::authority::Authority;
use crate::tls::{IdentityError, TlsFiles, TlsIdentity};

/// The error, after checking that it names the file.
fn wrong(files: &TlsFiles, culprit: &Path) -> IdentityError {
    let error = TlsIdentity::load(files).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(culprit.to_str().unwrap()) && text.contains("expected"), "{text}");
    error
}

fn wrong_certificate(change: impl FnOnce(&mut CertificateParams)) -> IdentityError {
    let authority = Authority::new();
    let files = authority.files("beta", change);
    wrong(&files, &files.certificate)
}

#[test]
fn a_right_one_tells_its_name_and_dates() {
    let authority = Authority::new();
    let files = authority.files("beta", |_| {});
    let identity = TlsIdentity::load_for(&"beta".parse().unwrap(), &files).unwrap();
    assert_eq!(identity.name().as_str(), "beta");
    assert_eq!(identity.validity().to_string(), "2020-01-01 to 2100-01-01");
    assert_eq!(identity.validity().days_left(4_102_444_800 - 86_400), 1);
    assert_eq!(identity.validity().days_left(4_102_444_801), -1);
    assert!(identity.ca_validity().not_after_unix > identity.validity().not_after_unix);
    let other = TlsIdentity::load_for(&"gamma".parse().unwrap(), &files).unwrap_err();
    assert!(matches!(other, IdentityError::OtherHost { .. }), "{other}");
}

#[test]
fn files_that_are_missing_or_no_pem() {
    let authority = Authority::new();
    let right = authority.files("beta", |_| {});
    let missing = authority.folder.path().join("missing.pem");
    let text = authority.folder.path().join("text.pem");
    let broken = authority.folder.path().join("broken.pem");
    let large = authority.folder.path().join("large.pem");
    fs::write(&text, "not PEM\n").unwrap();
    fs::write(&broken, "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n").unwrap();
    fs::write(&large, vec![b'\n'; 300 * 1024]).unwrap();
    for path in [&text, &broken, &large] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let swaps: [fn(&TlsFiles, &Path) -> TlsFiles; 3] = [
        |files, path| TlsFiles { ca: path.to_owned(), ..files.clone() },
        |files, path| TlsFiles { certificate: path.to_owned(), ..files.clone() },
        |files, path| TlsFiles { key: path.to_owned(), ..files.clone() },
    ];
    for swap in swaps {
        let error = wrong(&swap(&right, &missing), &missing);
        assert!(matches!(error, IdentityError::Read { .. }), "{error}");
        let error = wrong(&swap(&right, &text), &text);
        assert!(matches!(error, IdentityError::Pem { .. }), "{error}");
        let error = wrong(&swap(&right, &broken), &broken);
        assert!(matches!(error, IdentityError::Pem { .. }), "{error}");
        let error = wrong(&swap(&right, &large), &large);
        assert!(matches!(error, IdentityError::Size { .. }), "{error}");
    }
}

#[test]
fn a_key_that_others_can_read() {
    let authority = Authority::new();
    let files = authority.files("beta", |_| {});
    for (mode, fine) in
        [(0o600, true), (0o400, true), (0o640, true), (0o644, false), (0o660, false)]
    {
        fs::set_permissions(&files.key, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(TlsIdentity::load(&files).is_ok(), fine, "{mode:o}");
    }
    let error = wrong(&files, &files.key);
    assert!(matches!(error, IdentityError::KeyExposed { mode: 0o660, .. }), "{error}");
}

#[test]
fn a_key_of_another_certificate() {
    let authority = Authority::new();
    let (beta, gamma) = (authority.files("beta", |_| {}), authority.files("gamma", |_| {}));
    let files = TlsFiles { key: gamma.key.clone(), ..beta };
    let error = wrong(&files, &gamma.key);
    assert!(matches!(error, IdentityError::KeyMismatch { .. }), "{error}");
}

#[test]
fn a_certificate_out_of_its_time() {
    let over = wrong_certificate(|params| params.not_after = date_time_ymd(2024, 3, 1));
    assert!(over.to_string().ends_with("hold today, found 2020-01-01 to 2024-03-01"), "{over}");
    let early = wrong_certificate(|params| params.not_before = date_time_ymd(2099, 1, 1));
    assert!(matches!(early, IdentityError::NotValidNow { .. }), "{early}");
}

#[test]
fn a_certificate_without_exactly_one_host_name() {
    let none = wrong_certificate(|params| params.subject_alt_names.clear());
    assert!(none.to_string().ends_with("found none"), "{none}");
    let two = wrong_certificate(|params| {
        params.subject_alt_names.push(SanType::DnsName("gamma".try_into().unwrap()));
    });
    assert!(two.to_string().ends_with(r#"found "beta", "gamma""#), "{two}");
    let any = wrong_certificate(|params| {
        params.subject_alt_names = vec![SanType::DnsName("*.example".try_into().unwrap())];
    });
    assert!(matches!(any, IdentityError::Names { .. }), "{any}");
}

#[test]
fn a_certificate_for_one_direction_only() {
    let server = wrong_certificate(|params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    assert!(server.to_string().contains("serve as a client's"), "{server}");
    let client = wrong_certificate(|params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    assert!(client.to_string().contains("serve as a server's"), "{client}");
}

#[test]
fn a_certificate_of_another_authority() {
    let (one, other) = (Authority::new(), Authority::new());
    let files = TlsFiles { ca: other.files("x", |_| {}).ca, ..one.files("beta", |_| {}) };
    let error = wrong(&files, &files.certificate);
    assert!(matches!(error, IdentityError::Untrusted { .. }), "{error}");
}

#[test]
fn an_authority_that_is_over() {
    let authority = Authority::with(|params| params.not_after = date_time_ymd(2024, 3, 1));
    let files = authority.files("beta", |_| {});
    let error = wrong(&files, &files.ca);
    assert!(matches!(error, IdentityError::NotValidNow { .. }), "{error}");
    // Beside one that holds, it is only left out.
    let new = Authority::new();
    let files = new.files("beta", |_| {});
    fs::write(&files.ca, [authority.pem.as_str(), new.pem.as_str()].concat()).unwrap();
    assert!(TlsIdentity::load(&files).is_ok());
}
