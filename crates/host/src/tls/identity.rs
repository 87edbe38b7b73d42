//! Who this host is: its certificate and key, and the CAs whose certificates it believes.
//!
//! What is wrong with the files is found when they are loaded, not when the first peer connects: the certificate is put
//! through the same verification that a peer would make, in both roles.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, DnsName, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use sterna_model::HostName;

use super::ALPN;
use super::certificate::{Validity, dns_names, quoted};
use super::error::IdentityError;

/// Bytes in a certificate or key file, at most.
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// Where an identity lies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// Certificates of the CAs that peers may be signed by.
    pub ca: PathBuf,
    /// This host's certificate, then intermediate ones if there are any.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// This host's identity, ready for connections in both directions.
#[derive(Clone, Debug)]
pub struct TlsIdentity {
    name: HostName,
    validity: Validity,
    ca_validity: Validity,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// What was read, before it is verified.
struct Parts<'a> {
    files: &'a TlsFiles,
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl TlsIdentity {
    /// Reads and verifies the identity in these files.
    ///
    /// # Errors
    /// When a file is missing, is not what it should be, holds a key that others can read, or when a peer would not
    /// believe the certificate.
    pub fn load(files: &TlsFiles) -> Result<Self, IdentityError> {
        let now_unix = now_unix();
        let (roots, ca_validity) = read_roots(&files.ca, now_unix)?;
        let certificates = read_certificates(&files.certificate)?;
        let key = read_key(&files.key)?;
        let (name, validity) = describe(&files.certificate, &certificates, now_unix)?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let roots = Arc::new(roots);
        let parts = Parts { files, provider, roots, certificates, key };
        let client = parts.client_config(&name)?;
        let server = parts.server_config()?;
        Ok(Self { name, validity, ca_validity, client, server })
    }

    /// The same, and checks that it is the identity of the host `name`.
    ///
    /// # Errors
    /// As [`load`](Self::load), and when the certificate names another host.
    pub fn load_for(name: &HostName, files: &TlsFiles) -> Result<Self, IdentityError> {
        let identity = Self::load(files)?;
        if identity.name != *name {
            let (path, expected) = (files.certificate.clone(), name.clone());
            return Err(IdentityError::OtherHost { path, expected, found: identity.name });
        }
        Ok(identity)
    }

    /// The host's name, as its certificate says it.
    #[must_use]
    pub const fn name(&self) -> &HostName {
        &self.name
    }

    /// When the host's certificate holds.
    #[must_use]
    pub const fn validity(&self) -> Validity {
        self.validity
    }

    /// When the CA's certificate holds; of several, the one that ends last.
    #[must_use]
    pub const fn ca_validity(&self) -> Validity {
        self.ca_validity
    }

    /// For connections that this host makes. The peer's name is given for each connection.
    #[must_use]
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }

    /// For connections that others make to this host.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }
}

impl Parts<'_> {
    fn client_config(&self, name: &HostName) -> Result<Arc<ClientConfig>, IdentityError> {
        let verifier = WebPkiServerVerifier::builder_with_provider(
            Arc::clone(&self.roots),
            Arc::clone(&self.provider),
        )
        .build()
        .map_err(|error| self.setup(&self.files.ca, &error))?;
        let server_name = server_name(name).ok_or_else(|| IdentityError::Names {
            path: self.files.certificate.clone(),
            found: quoted(&[name.to_string()]),
        })?;
        let (first, rest) = self.chain();
        verifier
            .verify_server_cert(first, rest, &server_name, &[], UnixTime::now())
            .map_err(|error| self.untrusted("as a server's", &error))?;
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| self.setup(&self.files.certificate, &error))?
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(self.certificates.clone(), self.key.clone_key())
            .map_err(|error| self.key_error(&error))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }

    fn server_config(&self) -> Result<Arc<ServerConfig>, IdentityError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(
            Arc::clone(&self.roots),
            Arc::clone(&self.provider),
        )
        .build()
        .map_err(|error| self.setup(&self.files.ca, &error))?;
        let (first, rest) = self.chain();
        verifier
            .verify_client_cert(first, rest, UnixTime::now())
            .map_err(|error| self.untrusted("as a client's", &error))?;
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| self.setup(&self.files.certificate, &error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.certificates.clone(), self.key.clone_key())
            .map_err(|error| self.key_error(&error))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // No tickets: besides resumption, they would lie unread at clients that only write, and closing a socket with
        // unread bytes resets it, which can destroy what the peer has not read yet.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Arc::new(config))
    }

    fn chain(&self) -> (&CertificateDer<'static>, &[CertificateDer<'static>]) {
        // There is at least one: `read_certificates` gives no empty list.
        (&self.certificates[0], &self.certificates[1..])
    }

    fn untrusted(&self, purpose: &'static str, error: &rustls::Error) -> IdentityError {
        let (path, ca) = (self.files.certificate.clone(), self.files.ca.clone());
        IdentityError::Untrusted { path, ca, purpose, error: error.to_string() }
    }

    fn key_error(&self, error: &rustls::Error) -> IdentityError {
        let (key, certificate) = (self.files.key.clone(), self.files.certificate.clone());
        match error {
            rustls::Error::InconsistentKeys(_) => IdentityError::KeyMismatch { key, certificate },
            other => self.setup(&key, other),
        }
    }

    fn setup(&self, path: &Path, error: &dyn std::error::Error) -> IdentityError {
        IdentityError::Setup { path: path.to_owned(), error: error.to_string() }
    }
}

/// A host's name as TLS checks it: always as a DNS name, also when it looks like an address.
pub(crate) fn server_name(name: &HostName) -> Option<ServerName<'static>> {
    DnsName::try_from(name.as_str().to_owned()).ok().map(ServerName::DnsName)
}

/// Seconds since 1970.
pub(crate) fn now_unix() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn describe(
    path: &Path,
    certificates: &[CertificateDer<'static>],
    now_unix: i64,
) -> Result<(HostName, Validity), IdentityError> {
    let first = &certificates[0];
    let path = || path.to_owned();
    let Some(validity) = Validity::of(first) else {
        let found = "a damaged one".to_owned();
        return Err(IdentityError::Pem { path: path(), expected: "a certificate", found });
    };
    if !validity.holds_at(now_unix) {
        return Err(IdentityError::NotValidNow { path: path(), validity });
    }
    let names = dns_names(first);
    match names.as_slice() {
        [name] => name.parse().ok(),
        _ => None,
    }
    .map(|name| (name, validity))
    .ok_or_else(|| IdentityError::Names { path: path(), found: quoted(&names) })
}

/// The CAs that hold now; an old one may stay in the file while hosts change over to a new one.
fn read_roots(path: &Path, now_unix: i64) -> Result<(RootCertStore, Validity), IdentityError> {
    let mut roots = RootCertStore::empty();
    let mut latest: Option<Validity> = None;
    let mut over: Option<Validity> = None;
    for certificate in read_certificates(path)? {
        let damaged = |found| IdentityError::Pem {
            path: path.to_owned(),
            expected: "CA certificates",
            found,
        };
        let validity = Validity::of(&certificate).ok_or_else(|| damaged("a damaged one".into()))?;
        if !validity.holds_at(now_unix) {
            over = Some(validity);
            continue;
        }
        roots.add(certificate).map_err(|error| damaged(error.to_string()))?;
        if latest.is_none_or(|latest| latest.not_after_unix < validity.not_after_unix) {
            latest = Some(validity);
        }
    }
    match (latest, over) {
        (Some(latest), _) => Ok((roots, latest)),
        (None, Some(validity)) => {
            Err(IdentityError::NotValidNow { path: path.to_owned(), validity })
        }
        (None, None) => Err(none_found(path, "CA certificates")),
    }
}

/// At least one certificate.
fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let text = read(path, &File::open(path).map_err(|error| unreadable(path, error))?)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(certificates) if certificates.is_empty() => Err(none_found(path, "a certificate")),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(IdentityError::Pem {
            path: path.to_owned(),
            expected: "a certificate",
            found: error.to_string(),
        }),
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    let file = File::open(path).map_err(|error| unreadable(path, error))?;
    // The mode of the file that was opened, not of what the path may name by now.
    let metadata = file.metadata().map_err(|error| unreadable(path, error))?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o027 != 0 {
        return Err(IdentityError::KeyExposed { path: path.to_owned(), mode });
    }
    PrivateKeyDer::from_pem_slice(&read(path, &file)?).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => none_found(path, "a private key"),
        other => IdentityError::Pem {
            path: path.to_owned(),
            expected: "a private key",
            found: other.to_string(),
        },
    })
}

fn read(path: &Path, file: &File) -> Result<Vec<u8>, IdentityError> {
    let mut text = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(|error| unreadable(path, error))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(IdentityError::Size { path: path.to_owned(), limit_bytes: MAX_FILE_BYTES });
    }
    Ok(text)
}

fn unreadable(path: &Path, error: std::io::Error) -> IdentityError {
    IdentityError::Read { path: path.to_owned(), error }
}

fn none_found(path: &Path, expected: &'static str) -> IdentityError {
    IdentityError::Pem { path: path.to_owned(), expected, found: "none".to_owned() }
}
