//! Lists of revoked certificates (CRLs): read, held against the authorities, and seen to change.
//!
//! A list is signed by its authority, and holds until its next update. One that is over is not believed, and neither is any
//! certificate while it is in force: who keeps a newer list from a host must not be able to undo a revocation by waiting. An
//! authority without a list has revoked nobody; so two authorities can be changed over one after the other.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::certificate::date;
use super::error::IdentityError;
use super::identity::read_file;

/// The list's name where it lies beside the CA's certificate; QEMU's folders of certificates have the same.
pub(crate) const CRL_NAME: &str = "ca-crl.pem";

/// Where a host's list of revoked certificates lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CrlFile {
    /// In this file, which has to be there.
    Required(PathBuf),
    /// In this file, if it is there.
    IfThere(PathBuf),
}

impl CrlFile {
    /// `ca-crl.pem` beside the CA's certificate, if it is there.
    #[must_use]
    pub fn beside(ca: &Path) -> Self {
        Self::IfThere(ca.with_file_name(CRL_NAME))
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Required(path) | Self::IfThere(path) => path,
        }
    }
}

/// What tells one version of a file from another: device, inode, length, and time of the last change in seconds and
/// nanoseconds. `None` where there is no file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp(Option<(u64, u64, u64, i64, i64)>);

impl Stamp {
    pub(super) fn of(path: &Path) -> Self {
        let stamp = |it: fs::Metadata| (it.dev(), it.ino(), it.len(), it.ctime(), it.ctime_nsec());
        Self(fs::metadata(path).ok().map(stamp))
    }

    pub(super) const fn is_there(self) -> bool {
        self.0.is_some()
    }
}

/// The lists that are in force.
#[derive(Clone, Debug, Default)]
pub(super) struct Lists {
    /// As they were read.
    pub(super) ders: Vec<CertificateRevocationListDer<'static>>,
    /// When the first of them has to be replaced, in seconds since 1970.
    pub(super) next_update_unix: Option<i64>,
}

impl Lists {
    /// Reads the lists of these authorities.
    ///
    /// # Errors
    /// When the file is missing and has to be there, is no list, is another authority's, or is over.
    pub(super) fn read(
        file: &CrlFile,
        authorities: &[CertificateDer<'static>],
        now_unix: i64,
    ) -> Result<Self, IdentityError> {
        let path = file.path();
        if matches!(file, CrlFile::IfThere(_)) && !Stamp::of(path).is_there() {
            return Ok(Self::default());
        }
        let damaged = |found: String| {
            let expected = "lists of revoked certificates";
            IdentityError::Pem { path: path.to_owned(), expected, found }
        };
        let text = read_file(path)?;
        let ders: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&text).collect();
        let ders = ders.map_err(|error| damaged(error.to_string()))?;
        if ders.is_empty() {
            return Err(damaged("none".to_owned()));
        }
        let mut next_update_unix: Option<i64> = None;
        for der in &ders {
            let Ok((_, list)) = CertificateRevocationList::from_der(der) else {
                return Err(damaged("a damaged one".to_owned()));
            };
            if !is_of_one(&list, authorities) {
                let found = list.issuer().to_string().chars().take(200).collect();
                return Err(IdentityError::CrlForeign { path: path.to_owned(), found });
            }
            let Some(until) = list.next_update().map(|time| time.timestamp()) else {
                return Err(damaged("one that does not say until when it holds".to_owned()));
            };
            if until < now_unix {
                return Err(IdentityError::CrlOver { path: path.to_owned(), until: date(until) });
            }
            next_update_unix = Some(next_update_unix.map_or(until, |first| first.min(until)));
        }
        Ok(Self { ders, next_update_unix })
    }
}

/// Whether one of these authorities has the name that signed the list. The signature itself is checked whenever a
/// certificate of that authority is.
fn is_of_one(
    list: &CertificateRevocationList<'_>,
    authorities: &[CertificateDer<'static>],
) -> bool {
    authorities.iter().any(|authority| {
        X509Certificate::from_der(authority)
            .is_ok_and(|(_, authority)| authority.subject().as_raw() == list.issuer().as_raw())
    })
}
