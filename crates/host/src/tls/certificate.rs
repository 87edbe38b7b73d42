//! What a certificate says: whose it is, and from when to when.

use std::fmt;

use rustls::pki_types::CertificateDer;
use sterna_model::HostName;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

use super::error::TlsError;

/// From when to when a certificate holds, in seconds since 1970 (UTC).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    /// The first second.
    pub not_before_unix: i64,
    /// The last second.
    pub not_after_unix: i64,
}

impl Validity {
    /// Of the certificate in these bytes (DER).
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let validity = parsed.validity();
        Some(Self {
            not_before_unix: validity.not_before.timestamp(),
            not_after_unix: validity.not_after.timestamp(),
        })
    }

    /// Whether `now_unix`, in seconds since 1970, lies within.
    #[must_use]
    pub const fn holds_at(self, now_unix: i64) -> bool {
        self.not_before_unix <= now_unix && now_unix <= self.not_after_unix
    }

    /// Whole days from `now_unix` to the end; negative when it is over.
    #[must_use]
    pub const fn days_left(self, now_unix: i64) -> i64 {
        self.not_after_unix.saturating_sub(now_unix).div_euclid(86_400)
    }
}

impl fmt::Display for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", date(self.not_before_unix), date(self.not_after_unix))
    }
}

/// A day as people write it (2026-11-22), of seconds since 1970.
pub(super) fn date(unix: i64) -> String {
    match ASN1Time::from_timestamp(unix) {
        Ok(time) => time.to_datetime().date().to_string(),
        Err(_) => format!("{unix} s since 1970"),
    }
}

/// The name of the host that these certificates, end-entity first, belong to: its one DNS name.
///
/// They must have been verified before: this only reads them.
///
/// # Errors
/// When there is no certificate, or its subject alternative names are not exactly one DNS name that is a host name.
pub fn peer_name(certificates: &[CertificateDer<'_>]) -> Result<HostName, TlsError> {
    let first = certificates.first().ok_or(TlsError::PeerHasNoCertificate)?;
    let names = dns_names(first);
    let name = match names.as_slice() {
        [name] => name.parse::<HostName>().ok(),
        _ => None,
    };
    name.ok_or_else(|| TlsError::PeerNames { found: quoted(&names) })
}

/// The DNS names of a certificate; none when it has none, or is no certificate.
pub(crate) fn dns_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
    let dns = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(dns).collect()
}

/// Names for an error message: a few of them, cut, in quotes.
pub(crate) fn quoted(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    let short = |name: &String| format!("{:?}", name.chars().take(80).collect::<String>());
    let mut shown = names.iter().take(4).map(short).collect::<Vec<_>>().join(", ");
    if names.len() > 4 {
        shown.push_str(&format!(" and {} more", names.len() - 4));
    }
    shown
}
