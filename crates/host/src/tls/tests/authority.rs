//! Certificates for the tests, right and wrong.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, RevokedCertParams, SerialNumber,
    date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::tls::{CrlFile, TlsFiles, TlsIdentity};

/// A folder that goes away with the test.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sterna-tls-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// An authority, and a folder for what it signs.
pub(super) struct Authority {
    pub(super) pem: String,
    issuer: Issuer<'static, KeyPair>,
    pub(super) folder: Folder,
}

impl Authority {
    pub(super) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(super) fn with(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "a test's authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key), folder: Folder::new() }
    }

    /// The files of a host's identity; `change` makes it wrong.
    pub(super) fn files(
        &self,
        host: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> TlsFiles {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2100, 1, 1);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        self.write(host, &certificate.pem(), &key.serialize_pem())
    }

    pub(super) fn identity(&self, host: &str) -> TlsIdentity {
        TlsIdentity::load(&self.files(host, |_| {})).unwrap()
    }

    /// Where all its hosts look for a list of revoked certificates.
    pub(super) fn crl_path(&self) -> PathBuf {
        self.folder.path().join("crl.pem")
    }

    /// A list that revokes these certificates and holds until this year begins.
    pub(super) fn crl(&self, revoked: &[&TlsFiles], until_year: i32) -> String {
        self.crl_until(revoked, date_time_ymd(until_year, 1, 1).into())
    }

    /// The same, until this very second.
    pub(super) fn crl_until(&self, revoked: &[&TlsFiles], until: SystemTime) -> String {
        let revoked_certs = revoked.iter().map(|files| {
            let der = CertificateDer::from_pem_file(&files.certificate).unwrap();
            let (_, certificate) = X509Certificate::from_der(&der).unwrap();
            RevokedCertParams {
                serial_number: SerialNumber::from_slice(certificate.raw_serial()),
                revocation_time: date_time_ymd(2024, 1, 1),
                reason_code: None,
                invalidity_date: None,
            }
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: until.into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// Puts a list where all its hosts look.
    pub(super) fn publish(&self, crl: &str) {
        let draft = self.folder.path().join("crl.draft");
        fs::write(&draft, crl).unwrap();
        fs::rename(draft, self.crl_path()).unwrap();
    }

    fn write(&self, host: &str, certificate: &str, key: &str) -> TlsFiles {
        let file = |name: &str, text: &str, mode| {
            let path = self.folder.path().join(format!("{host}-{name}.pem"));
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        TlsFiles {
            ca: file("ca", &self.pem, 0o644),
            certificate: file("cert", certificate, 0o644),
            key: file("key", key, 0o600),
            crl: CrlFile::IfThere(self.crl_path()),
        }
    }
}
