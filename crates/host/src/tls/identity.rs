//! Who this host is: its certificate and key, and the CAs whose certificates it believes.
//!
//! What is wrong with the files is found when they are loaded, not when the first peer connects: the certificate is put
//! through the same verification that a peer would make, in both roles.
//!
//! Lists of revoked certificates are the only part that changes while an agent runs: each connection looks whether their
//! file is another one by now. One that cannot be read leaves the lists before in force, and the log says so.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, DnsName, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};
use sterna_model::HostName;

use super::ALPN;
use super::certificate::{Validity, dns_names, quoted};
use super::error::IdentityError;
use super::revocation::{CrlFile, Lists, Stamp};

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
    /// Certificates that are revoked.
    pub crl: CrlFile,
}

/// This host's identity, ready for connections in both directions.
#[derive(Clone, Debug)]
pub struct TlsIdentity {
    name: HostName,
    validity: Validity,
    ca_validity: Validity,
    parts: Arc<Parts>,
    current: Arc<Mutex<Current>>,
}

/// What was read once.
struct Parts {
    files: TlsFiles,
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    /// The CAs' certificates, those that are over too: lists of theirs may be about.
    authorities: Vec<CertificateDer<'static>>,
    server_name: ServerName<'static>,
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("files", &self.files).finish_non_exhaustive()
    }
}

/// What connections are made with, as long as the lists of revoked certificates stay as they are.
#[derive(Debug)]
struct Current {
    seen: Stamp,
    lists: Lists,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl TlsIdentity {
    /// Reads and verifies the identity in these files.
    ///
    /// # Errors
    /// When a file is missing, is not what it should be, holds a key that others can read, or when a peer would not
    /// believe the certificate.
    pub fn load(files: &TlsFiles) -> Result<Self, IdentityError> {
        let now_unix = now_unix();
        let authorities = read_certificates(&files.ca)?;
        let (roots, ca_validity) = choose_roots(&files.ca, &authorities, now_unix)?;
        let certificates = read_certificates(&files.certificate)?;
        let key = read_key(&files.key)?;
        let (name, validity) = describe(&files.certificate, &certificates, now_unix)?;
        let server_name = server_name(&name).ok_or_else(|| IdentityError::Names {
            path: files.certificate.clone(),
            found: quoted(&[name.to_string()]),
        })?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let (files, roots) = (files.clone(), Arc::new(roots));
        let parts = Parts { files, provider, roots, authorities, server_name, certificates, key };
        let current = Arc::new(Mutex::new(parts.read_current(now_unix)?));
        Ok(Self { name, validity, ca_validity, parts: Arc::new(parts), current })
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

    /// Until when the lists of revoked certificates hold that are in force, in seconds since 1970; `None` without lists.
    #[must_use]
    pub fn crl_until_unix(&self) -> Option<i64> {
        self.with_current(|current| current.lists.next_update_unix)
    }

    /// For connections that this host makes. The peer's name is given for each connection.
    #[must_use]
    pub fn client_config(&self) -> Arc<ClientConfig> {
        self.with_current(|current| Arc::clone(&current.client))
    }

    /// For connections that others make to this host.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.with_current(|current| Arc::clone(&current.server))
    }

    /// Looks at what is in force, after looking whether it still is.
    fn with_current<T>(&self, look: impl FnOnce(&Current) -> T) -> T {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        self.parts.refresh(&mut current);
        look(&current)
    }
}

impl Parts {
    /// Takes the lists of revoked certificates over if they are others by now.
    fn refresh(&self, current: &mut Current) {
        let path = self.files.crl.path();
        let stamp = Stamp::of(path);
        if stamp == current.seen {
            return;
        }
        // Also of one that cannot be used: it is not to be read again for every connection.
        current.seen = stamp;
        if !stamp.is_there() {
            tracing::error!(path = %path.display(), "the list of revoked certificates is gone; what it said stays in force until the agent ends");
            return;
        }
        match self.read_current(now_unix()) {
            Ok(read) => {
                tracing::info!(path = %path.display(), "the list of revoked certificates was read anew");
                *current = read;
            }
            Err(error) => {
                tracing::error!(%error, "the new list of revoked certificates cannot be used; the one before stays in force");
            }
        }
    }

    fn read_current(&self, now_unix: i64) -> Result<Current, IdentityError> {
        // Before it is read: what changes while we read is then seen to have changed.
        let seen = Stamp::of(self.files.crl.path());
        let lists = Lists::read(&self.files.crl, &self.authorities, now_unix)?;
        let (client, server) = (self.client_config(&lists)?, self.server_config(&lists)?);
        Ok(Current { seen, lists, client, server })
    }

    fn client_config(&self, lists: &Lists) -> Result<Arc<ClientConfig>, IdentityError> {
        let (roots, provider) = (Arc::clone(&self.roots), Arc::clone(&self.provider));
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider)
            .with_crls(lists.ders.iter().cloned())
            .allow_unknown_revocation_status()
            .enforce_revocation_expiration()
            .build()
            .map_err(|error| self.setup(self.culprit(lists), &error))?;
        let (first, rest) = self.chain();
        verifier
            .verify_server_cert(first, rest, &self.server_name, &[], UnixTime::now())
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

    fn server_config(&self, lists: &Lists) -> Result<Arc<ServerConfig>, IdentityError> {
        let (roots, provider) = (Arc::clone(&self.roots), Arc::clone(&self.provider));
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
            .with_crls(lists.ders.iter().cloned())
            .allow_unknown_revocation_status()
            .enforce_revocation_expiration()
            .build()
            .map_err(|error| self.setup(self.culprit(lists), &error))?;
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

    /// The file that a verifier fails for: the CAs were looked at when they were read.
    fn culprit(&self, lists: &Lists) -> &Path {
        if lists.ders.is_empty() { &self.files.ca } else { self.files.crl.path() }
    }

    fn chain(&self) -> (&CertificateDer<'static>, &[CertificateDer<'static>]) {
        // There is at least one: `read_certificates` gives no empty list.
        (&self.certificates[0], &self.certificates[1..])
    }

    fn untrusted(&self, purpose: &'static str, error: &rustls::Error) -> IdentityError {
        let (path, ca) = (self.files.certificate.clone(), self.files.ca.clone());
        if let rustls::Error::InvalidCertificate(CertificateError::Revoked) = error {
            let crl = self.files.crl.path().to_owned();
            return IdentityError::Revoked { path, crl };
        }
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
fn choose_roots(
    path: &Path,
    authorities: &[CertificateDer<'static>],
    now_unix: i64,
) -> Result<(RootCertStore, Validity), IdentityError> {
    let mut roots = RootCertStore::empty();
    let mut latest: Option<Validity> = None;
    let mut over: Option<Validity> = None;
    for certificate in authorities {
        let damaged = |found| IdentityError::Pem {
            path: path.to_owned(),
            expected: "CA certificates",
            found,
        };
        let validity = Validity::of(certificate).ok_or_else(|| damaged("a damaged one".into()))?;
        if !validity.holds_at(now_unix) {
            over = Some(validity);
            continue;
        }
        roots.add(certificate.clone()).map_err(|error| damaged(error.to_string()))?;
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
    let text = read_file(path)?;
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

/// A file of certificates or lists.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, IdentityError> {
    read(path, &File::open(path).map_err(|error| unreadable(path, error))?)
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
