//! The authority's list of revoked certificates: made, added to, renewed.
//!
//! The list holds serial numbers, so that a host's name can get new certificates while its old ones stay revoked. It is
//! replaced as a whole, never changed in place.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use sterna_model::HostName;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::{CRL, DAY, PkiError, authority, must_be_free, replace, sync_directory, unwritten};

/// How long a list holds. As long as a host's certificate: none that it has to speak of at its end is older.
const CRL_DAYS: u32 = 825;

/// A list that was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Revoked {
    /// The list.
    pub path: PathBuf,
    /// Certificates that it revokes and the one before did not.
    pub added: usize,
    /// Certificates that it revokes.
    pub total: usize,
    /// Days that it holds.
    pub days: u32,
}

/// Serial number to when it was revoked, in seconds since 1970.
type Entries = BTreeMap<Vec<u8>, u64>;

/// Adds the certificates in `directory`/`host` to the list in `directory`/ca-crl.pem, which is made if it is not there.
/// Without a host the list is only renewed.
///
/// # Errors
/// When there is no authority or no such host's folder, a certificate or the list before cannot be read, or the system
/// refuses. The list before is then as it was.
pub fn revoke(directory: &Path, host: Option<&HostName>) -> Result<Revoked, PkiError> {
    let issuer = authority(directory)?;
    let path = directory.join(CRL);
    let (mut entries, number) = read_list(&path)?;
    let before = entries.len();
    let now = SystemTime::now();
    if let Some(host) = host {
        let now_unix = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        for serial in serials_of(&directory.join(host.as_str()))? {
            entries.entry(serial).or_insert(now_unix);
        }
    }
    let entry = |(serial, at_unix): (&Vec<u8>, &u64)| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: (UNIX_EPOCH + Duration::from_secs(*at_unix)).into(),
        reason_code: Some(RevocationReason::Unspecified),
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: (now - DAY).into(),
        next_update: (now + DAY * CRL_DAYS).into(),
        crl_number: SerialNumber::from(number.saturating_add(1)),
        issuing_distribution_point: None,
        revoked_certs: entries.iter().map(entry).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    replace(&path, &params.signed_by(&issuer.issuer)?.pem()?)?;
    sync_directory(directory)?;
    let total = entries.len();
    Ok(Revoked { path, added: total - before, total, days: CRL_DAYS })
}

/// What the list says by now, and its number; nothing where there is none.
fn read_list(path: &Path) -> Result<(Entries, u64), PkiError> {
    if must_be_free(path).is_ok() {
        return Ok((Entries::new(), 0));
    }
    let damaged =
        || PkiError::Damaged { path: path.to_owned(), what: "list of revoked certificates" };
    let text = fs::read(path).map_err(|error| unwritten(path, error))?;
    let der = CertificateRevocationListDer::from_pem_slice(&text).map_err(|_| damaged())?;
    let (_, list) = CertificateRevocationList::from_der(&der).map_err(|_| damaged())?;
    let entries = list.iter_revoked_certificates().map(|entry| {
        let at_unix = u64::try_from(entry.revocation_date.timestamp()).unwrap_or_default();
        (entry.raw_serial().to_vec(), at_unix)
    });
    let bytes = list.crl_number().map(|number| number.to_bytes_be()).unwrap_or_default();
    let number = bytes.iter().fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
    Ok((entries.collect(), number))
}

/// The serial numbers of a host's certificates.
fn serials_of(folder: &Path) -> Result<Vec<Vec<u8>>, PkiError> {
    let read = |name: &str| {
        let path = folder.join(name);
        let damaged = || PkiError::Damaged { path: path.clone(), what: "certificate" };
        let text =
            fs::read(&path).map_err(|error| PkiError::NoHost { path: path.clone(), error })?;
        let der = CertificateDer::from_pem_slice(&text).map_err(|_| damaged())?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| damaged())?;
        Ok(certificate.raw_serial().to_vec())
    };
    ["server-cert.pem", "client-cert.pem"].into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{files, init, issue};
    use super::*;
    use crate::tls::{IdentityError, TlsIdentity, test_folder};

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    #[test]
    fn a_list_grows_and_goes_along_with_what_is_issued() {
        let folder = test_folder();
        let pki = folder.path();
        init(pki).unwrap();
        let alpha = issue(pki, &host("alpha")).unwrap();
        let beta = issue(pki, &host("beta")).unwrap();
        assert!(!alpha.join(CRL).exists());
        let revoked = revoke(pki, Some(&host("alpha"))).unwrap();
        assert_eq!((revoked.added, revoked.total), (2, 2));
        assert_eq!(revoke(pki, Some(&host("alpha"))).unwrap().added, 0, "it is revoked already");
        let revoked = revoke(pki, Some(&host("beta"))).unwrap();
        assert_eq!((revoked.added, revoked.total), (2, 4));
        assert_eq!(revoke(pki, None).unwrap().total, 4, "renewed as it was");
        assert_eq!(read_list(&pki.join(CRL)).unwrap().1, 4, "each list has the next number");
        let gamma = issue(pki, &host("gamma")).unwrap();
        assert!(gamma.join(CRL).exists());
        TlsIdentity::load(&files(&gamma)).unwrap();
        // Those that are revoked see it when they get the list.
        fs::copy(pki.join(CRL), beta.join(CRL)).unwrap();
        let error = TlsIdentity::load(&files(&beta)).unwrap_err();
        assert!(matches!(error, IdentityError::Revoked { .. }), "{error}");
        // A name gets new certificates, and the old ones stay revoked.
        fs::rename(&beta, pki.join("old")).unwrap();
        let beta = issue(pki, &host("beta")).unwrap();
        TlsIdentity::load(&files(&beta)).unwrap();
    }

    #[test]
    fn what_cannot_be_revoked_leaves_the_list_alone() {
        let folder = test_folder();
        let pki = folder.path();
        let error = revoke(pki, None).unwrap_err();
        assert!(error.to_string().contains("sterna pki init"), "{error}");
        init(pki).unwrap();
        issue(pki, &host("alpha")).unwrap();
        revoke(pki, Some(&host("alpha"))).unwrap();
        let before = fs::read(pki.join(CRL)).unwrap();
        let error = revoke(pki, Some(&host("nobody"))).unwrap_err();
        assert!(
            matches!(&error, PkiError::NoHost { path, .. } if path.starts_with(pki.join("nobody")))
        );
        fs::write(pki.join("alpha/client-cert.pem"), "nonsense").unwrap();
        let error = revoke(pki, Some(&host("alpha"))).unwrap_err();
        assert!(matches!(error, PkiError::Damaged { .. }), "{error}");
        assert_eq!(fs::read(pki.join(CRL)).unwrap(), before);
        fs::write(pki.join(CRL), "nonsense").unwrap();
        let error = revoke(pki, None).unwrap_err();
        assert!(matches!(error, PkiError::Damaged { .. }), "{error}");
        assert_eq!(fs::read(pki.join(CRL)).unwrap(), b"nonsense", "who knows what it was");
    }
}
