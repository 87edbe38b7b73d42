//! What goes wrong with identities and connections: who is to blame, what was expected and found, and what helps.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError, Error as RustlsError};
use sterna_model::{HostName, Refusal};

use super::certificate::Validity;

/// Whose thing is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Blame {
    /// This host: its files, its clock, its configuration.
    Here,
    /// The peer: its certificate, its software, its behaviour.
    Peer,
    /// What lies between, or either of them.
    Link,
}

/// Why this host's certificates are of no use. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Missing, or not readable by this user.
    #[error("expected to read {path}: {error}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Too long to be what it should be.
    #[error("expected {path} to have at most {limit_bytes} bytes, found more", path = path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit_bytes: u64,
    },
    /// Not what it should be.
    #[error("expected {expected} (PEM) in {path}, found {found}", path = path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        expected: &'static str,
        /// What is in it.
        found: String,
    },
    /// The private key can be read, or changed, by others.
    #[error(
        "expected a private key that only its owner can read (mode 0600) in {path}, found mode {mode:04o}",
        path = path.display()
    )]
    KeyExposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The key is another certificate's.
    #[error(
        "expected the key in {key} to be that of the certificate in {certificate}, found another",
        key = key.display(), certificate = certificate.display()
    )]
    KeyMismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
    /// Over, or not begun.
    #[error(
        "expected the certificate in {path} to hold today, found {validity}",
        path = path.display()
    )]
    NotValidNow {
        /// The file.
        path: PathBuf,
        /// When it holds.
        validity: Validity,
    },
    /// Not one name.
    #[error(
        "expected exactly one DNS name that is a host name in the certificate {path}, found {found}",
        path = path.display()
    )]
    Names {
        /// The file.
        path: PathBuf,
        /// The names in it.
        found: String,
    },
    /// Another host's certificate.
    #[error(
        "expected the certificate in {path} to be that of {expected}, found that of {found}",
        path = path.display()
    )]
    OtherHost {
        /// The file.
        path: PathBuf,
        /// The name in the configuration.
        expected: HostName,
        /// The name in the certificate.
        found: HostName,
    },
    /// Peers would not take it.
    #[error(
        "expected the certificate in {path} to be signed by a CA in {ca} and to serve {purpose}: {error}",
        path = path.display(), ca = ca.display()
    )]
    Untrusted {
        /// The certificate's file.
        path: PathBuf,
        /// The CA's file.
        ca: PathBuf,
        /// In which role it failed.
        purpose: &'static str,
        /// What the verification says.
        error: String,
    },
    /// Its authority has taken it back.
    #[error(
        "expected the certificate in {path} not to be revoked, found it in {crl}: issue a new one (sterna pki issue)",
        path = path.display(), crl = crl.display()
    )]
    Revoked {
        /// The certificate's file.
        path: PathBuf,
        /// The list's.
        crl: PathBuf,
    },
    /// A list of revoked certificates by nobody that we know.
    #[error(
        "expected lists of revoked certificates of our CAs in {path}, found one of {found}: copy the ca-crl.pem that lies beside the CA's key",
        path = path.display()
    )]
    CrlForeign {
        /// The list's file.
        path: PathBuf,
        /// Who issued it.
        found: String,
    },
    /// A list of revoked certificates that had to be replaced by now.
    #[error(
        "expected a list of revoked certificates that holds today in {path}, found one until {until}: renew it (sterna pki revoke DIR) and copy ca-crl.pem to every host",
        path = path.display()
    )]
    CrlOver {
        /// The list's file.
        path: PathBuf,
        /// Its last day.
        until: String,
    },
    /// The TLS library refuses it.
    #[error("expected a TLS configuration from {path}: {error}", path = path.display())]
    Setup {
        /// The file that it was made of.
        path: PathBuf,
        /// What the library says.
        error: String,
    },
}

/// Why a connection was not made, or ended.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Nobody answers there.
    #[error("expected to connect to {address}: {error}")]
    Connect {
        /// Where.
        address: String,
        /// What the system says.
        error: io::Error,
    },
    /// Too slow.
    #[error("expected {step} within {limit_ms} ms, found nothing", limit_ms = limit.as_millis())]
    Timeout {
        /// What took too long.
        step: &'static str,
        /// How long it was given.
        limit: Duration,
    },
    /// A name that no certificate can carry.
    #[error("expected a host name that can stand in a certificate, found {name}")]
    Name {
        /// The name.
        name: HostName,
    },
    /// The peer's certificate is not of a CA that we know.
    #[error("expected the peer's certificate to be signed by our CA, found another issuer")]
    PeerUnknownCa,
    /// The peer's certificate is over, or not begun: or a clock is wrong.
    #[error("expected the peer's certificate to hold now: {problem}")]
    PeerNotValidNow {
        /// What the verification says, with times.
        problem: String,
    },
    /// Somebody else answers.
    #[error("expected {expected} to answer, found a certificate for {found}")]
    PeerIsOther {
        /// Who was called.
        expected: HostName,
        /// Who answered.
        found: String,
    },
    /// The peer's certificate does not name one host.
    #[error(
        "expected exactly one DNS name that is a host name in the peer's certificate, found {found}"
    )]
    PeerNames {
        /// The names in it.
        found: String,
    },
    /// The peer showed no certificate.
    #[error("expected the peer to show a certificate, found none")]
    PeerHasNoCertificate,
    /// The peer's certificate was taken back.
    #[error(
        "expected a peer whose certificate is not revoked, found it in our list of revoked ones"
    )]
    PeerRevoked,
    /// Our list of revoked certificates had to be replaced by now, so that no certificate can be believed.
    #[error("expected our list of revoked certificates to hold now: {problem}")]
    CrlOver {
        /// What the verification says, with times.
        problem: String,
    },
    /// Our own certificate was taken back, says the peer.
    #[error("expected the peer to accept our certificate, found that it lists it as revoked")]
    RevokedByPeer,
    /// The peer's certificate is wrong in another way.
    #[error("expected a usable certificate from the peer: {problem}")]
    PeerCertificate {
        /// What the verification says.
        problem: String,
    },
    /// The peer does not speak TLS 1.3, or not `sterna/1`.
    #[error("expected the peer to speak TLS 1.3 and the protocol sterna/1: {problem}")]
    PeerIncompatible {
        /// What is missing.
        problem: String,
    },
    /// What arrived is no TLS, or broken.
    #[error("expected TLS from the peer, found something else: {problem}")]
    PeerGarbage {
        /// What is wrong with it.
        problem: String,
    },
    /// The peer did not take us.
    #[error("expected the peer to accept our certificate, found that it refuses: {alert}")]
    RefusedByPeer {
        /// The alert that it sent.
        alert: String,
    },
    /// The connection ended without a farewell: bytes may be missing.
    #[error("expected more from the peer, found the connection cut off")]
    Truncated,
    /// The system reports an error on the socket.
    #[error("on the connection to the peer: {0}")]
    Io(io::Error),
}

impl TlsError {
    /// Whose thing is wrong.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::Name { .. }
            | Self::RefusedByPeer { .. }
            | Self::RevokedByPeer
            | Self::CrlOver { .. } => Blame::Here,
            Self::Connect { .. } | Self::Timeout { .. } | Self::Truncated | Self::Io(_) => {
                Blame::Link
            }
            _ => Blame::Peer,
        }
    }

    /// Whether trying again, without changing anything, can help.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self.blame(), Blame::Link)
    }

    /// The error as a refusal: with a code for scripts and what the user can do.
    #[must_use]
    pub fn to_refusal(&self) -> Refusal {
        let (code, remedy) = self.code_and_remedy();
        Refusal::new(code, self.to_string(), remedy)
    }

    const fn code_and_remedy(&self) -> (&'static str, &'static str) {
        match self {
            Self::Connect { .. } => {
                ("peer-unreachable", "check the peer's address, that its agent runs, and firewalls")
            }
            Self::Timeout { .. } => ("peer-silent", "check the link and the load of the peer"),
            Self::Name { .. } => ("peer-name-unusable", "rename the host: letters, digits and '-'"),
            Self::PeerUnknownCa => {
                ("peer-unknown-ca", "issue both hosts' certificates from the same CA (sterna pki)")
            }
            Self::PeerNotValidNow { .. } => (
                "peer-certificate-expired",
                "issue a new certificate for the peer (sterna pki issue), or set the clocks right",
            ),
            Self::PeerRevoked => (
                "peer-revoked",
                "issue a new certificate for the peer (sterna pki issue) if it is still trusted",
            ),
            Self::CrlOver { .. } => (
                "crl-expired",
                "renew the list (sterna pki revoke DIR) and copy ca-crl.pem to every host",
            ),
            Self::RevokedByPeer => (
                "certificate-revoked",
                "issue a new certificate for this host (sterna pki issue) if it is still trusted",
            ),
            Self::PeerIsOther { .. } => (
                "peer-name-mismatch",
                "correct the peer's address or name in the configuration; the name is the one in its certificate",
            ),
            Self::PeerNames { .. } | Self::PeerCertificate { .. } => (
                "peer-certificate-unusable",
                "issue a new certificate for the peer (sterna pki issue)",
            ),
            Self::PeerHasNoCertificate => {
                ("peer-no-certificate", "configure [tls] at the peer; only agents may connect here")
            }
            Self::PeerIncompatible { .. } => {
                ("peer-incompatible", "upgrade the peer, and check that the port is its agent's")
            }
            Self::PeerGarbage { .. } => {
                ("peer-not-tls", "check that address and port are those of the peer's agent")
            }
            Self::RefusedByPeer { .. } => (
                "refused-by-peer",
                "check this host's certificate: same CA as the peer's, not expired, and the peer's log",
            ),
            Self::Truncated | Self::Io(_) => ("link-failed", "check the link, and try again"),
        }
    }

    /// The error that a TLS library's one stands for, on a connection to `expected` if we called somebody.
    pub(crate) fn of_rustls(error: RustlsError, expected: Option<&HostName>) -> Self {
        match error {
            RustlsError::InvalidCertificate(problem) => Self::of_certificate(problem, expected),
            RustlsError::NoCertificatesPresented => Self::PeerHasNoCertificate,
            RustlsError::AlertReceived(alert) => Self::of_alert(alert),
            RustlsError::PeerIncompatible(problem) => {
                Self::PeerIncompatible { problem: format!("{problem:?}") }
            }
            RustlsError::NoApplicationProtocol => {
                Self::PeerIncompatible { problem: "no protocol name in common".to_owned() }
            }
            other => Self::PeerGarbage { problem: other.to_string() },
        }
    }

    /// The error of a socket or of the library inside an error of the system.
    pub(crate) fn of_io(error: io::Error, expected: Option<&HostName>) -> Self {
        if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<RustlsError>()) {
            return Self::of_rustls(tls.clone(), expected);
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Io(error),
        }
    }

    fn of_certificate(problem: CertificateError, expected: Option<&HostName>) -> Self {
        match problem {
            // A CA of the same name but with another key fails at the signature.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::PeerUnknownCa,
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => {
                Self::PeerNotValidNow { problem: problem.to_string() }
            }
            CertificateError::Revoked => Self::PeerRevoked,
            CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. } => {
                Self::CrlOver { problem: problem.to_string() }
            }
            CertificateError::NotValidForNameContext { ref presented, .. } => match expected {
                Some(expected) => Self::PeerIsOther {
                    expected: expected.clone(),
                    found: super::certificate::quoted(presented),
                },
                None => Self::PeerCertificate { problem: problem.to_string() },
            },
            other => Self::PeerCertificate { problem: other.to_string() },
        }
    }

    fn of_alert(alert: AlertDescription) -> Self {
        match alert {
            AlertDescription::ProtocolVersion
            | AlertDescription::NoApplicationProtocol
            | AlertDescription::HandshakeFailure => {
                Self::PeerIncompatible { problem: format!("it answers {alert:?}") }
            }
            AlertDescription::CertificateRevoked => Self::RevokedByPeer,
            // The last one: a CA of the same name but with another key fails at the signature.
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError => Self::RefusedByPeer { alert: in_words(alert) },
            other => Self::PeerGarbage { problem: format!("it answers {other:?}") },
        }
    }
}

/// What a peer means by refusing our certificate; the alert's name is for those who look it up.
fn in_words(alert: AlertDescription) -> String {
    let words = match alert {
        AlertDescription::CertificateExpired => "it holds the certificate for expired",
        AlertDescription::UnknownCA => {
            "it does not know our CA, or its list of revoked certificates is out of date"
        }
        AlertDescription::DecryptError => "it finds another CA's signature",
        AlertDescription::UnsupportedCertificate => "the certificate does not serve this purpose",
        AlertDescription::CertificateRequired => "it saw no certificate",
        AlertDescription::AccessDenied => "it denies us access",
        _ => "it cannot use the certificate",
    };
    format!("{words} ({alert:?})")
}
