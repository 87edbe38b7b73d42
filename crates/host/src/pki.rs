//! A small certificate authority for a few hosts: `sterna pki init`, `sterna pki issue` and `sterna pki revoke`.
//!
//! ```text
//!   DIR/ca-cert.pem  DIR/ca-key.pem                                   the authority; the key stays where it is made
//!   DIR/HOST/ca-cert.pem                                              goes to HOST, as /etc/sterna/pki
//!            server-cert.pem  server-key.pem                          serves both directions of an agent
//!            client-cert.pem  client-key.pem                          for clients only
//!   DIR/ca-crl.pem                                                    what was revoked; goes to every host, beside its CA
//! ```
//!
//! File names are those that QEMU expects in its own PKI directories. Keys are ECDSA P-256, readable by their owner only.
//! Files appear whole or not at all, under a name that was free: nothing but the list of revoked certificates, which only
//! grows, is ever replaced.

mod revoke;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use sterna_model::HostName;

pub use revoke::{Revoked, revoke};

use crate::tls::{CRL_NAME as CRL, CrlFile, IdentityError, TlsFiles, TlsIdentity};

const DAY: Duration = Duration::from_secs(86_400);
/// How long an authority lasts.
const CA_DAYS: u32 = 3650;
/// How long a host's certificate lasts.
const HOST_DAYS: u32 = 825;
/// Certificates hold from a day ago: hosts' clocks differ.
const EARLIER_DAYS: u32 = 1;

const CA_CERT: &str = "ca-cert.pem";
const CA_KEY: &str = "ca-key.pem";

const KEY_MODE: u32 = 0o600;
const CERT_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o700;

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// There is one already; it is never overwritten.
    #[error("expected no {path}, found one: remove it first if it is to be replaced", path = path.display())]
    Exists {
        /// What is there.
        path: PathBuf,
    },
    /// The authority's files are missing.
    #[error("expected the authority's {path}: {error}; `sterna pki init` makes one", path = path.display())]
    NoAuthority {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The authority's files are not what they should be.
    #[error("expected the authority's {what} in {path}: {error}", path = path.display())]
    BadAuthority {
        /// The file.
        path: PathBuf,
        /// A certificate or a key.
        what: &'static str,
        /// What is wrong.
        error: rcgen::Error,
    },
    /// There is no folder of this host, or it lacks a certificate.
    #[error("expected the host's {path}: {error}; only certificates that are there can be revoked", path = path.display())]
    NoHost {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A file that `sterna pki` has made is not what it was.
    #[error("expected a {what} (PEM) in {path}, found something else", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
    },
    /// A name that cannot stand in a certificate.
    #[error("expected a host name that can stand in a certificate, found {host}")]
    Name {
        /// The name.
        host: HostName,
    },
    /// A certificate could not be made.
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// What was made is of no use: the authority's key and certificate do not belong together, or it is expired.
    #[error("expected the new certificate to be valid: {0}")]
    Unusable(Box<IdentityError>),
    /// The system refuses a file.
    #[error("writing {path}: {error}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

/// Makes a certificate authority in `directory`, which is made if it is not there.
///
/// # Errors
/// When there is one already, or the system refuses.
pub fn init(directory: &Path) -> Result<(), PkiError> {
    let (cert_path, key_path) = (directory.join(CA_CERT), directory.join(CA_KEY));
    must_be_free(&cert_path)?;
    must_be_free(&key_path)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    // Two authorities must not have one name: peers could then not tell which one is missing.
    let id = params.key_identifier(&key);
    let id: String = id[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    let name = format!("Sterna CA {id}");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, CA_DAYS);
    let certificate = params.self_signed(&key)?;
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(directory)
        .map_err(|error| unwritten(directory, error))?;
    write_new(&key_path, &key.serialize_pem(), KEY_MODE)?;
    write_new(&cert_path, &certificate.pem(), CERT_MODE)?;
    sync_directory(directory)
}

/// Makes the directory `directory`/`host` with the certificates of a host, signed by the authority in `directory`.
/// Gives its path.
///
/// # Errors
/// When there is no authority, the host has certificates already, its name cannot stand in a certificate, or the system
/// refuses.
pub fn issue(directory: &Path, host: &HostName) -> Result<PathBuf, PkiError> {
    let target = directory.join(host.as_str());
    must_be_free(&target)?;
    let Authority { certificate: ca_cert, issuer } = authority(directory)?;
    let both = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let (server_cert, server_key) = leaf(host, &issuer, &both)?;
    let (client_cert, client_key) = leaf(host, &issuer, &both[1..])?;

    let draft = Draft::new(directory, host)?;
    write_new(&draft.path.join(CA_CERT), &ca_cert, CERT_MODE)?;
    write_new(&draft.path.join("server-cert.pem"), &server_cert, CERT_MODE)?;
    write_new(&draft.path.join("server-key.pem"), &server_key, KEY_MODE)?;
    write_new(&draft.path.join("client-cert.pem"), &client_cert, CERT_MODE)?;
    write_new(&draft.path.join("client-key.pem"), &client_key, KEY_MODE)?;
    let crl = directory.join(CRL);
    if must_be_free(&crl).is_err() {
        write_new(&draft.path.join(CRL), &read_authority(&crl)?, CERT_MODE)?;
    }
    sync_directory(&draft.path)?;
    TlsIdentity::load_for(host, &files(&draft.path))
        .map_err(|error| PkiError::Unusable(Box::new(error)))?;
    draft.publish(&target)?;
    sync_directory(directory)?;
    Ok(target)
}

/// Who signs.
struct Authority {
    /// Its certificate, as PEM.
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

fn authority(directory: &Path) -> Result<Authority, PkiError> {
    let (cert_path, key_path) = (directory.join(CA_CERT), directory.join(CA_KEY));
    let certificate = read_authority(&cert_path)?;
    let key = read_authority(&key_path)?;
    let bad = |path: PathBuf, what| move |error| PkiError::BadAuthority { path, what, error };
    let key = KeyPair::from_pem(&key).map_err(bad(key_path, "private key"))?;
    let issuer =
        Issuer::from_ca_cert_pem(&certificate, key).map_err(bad(cert_path, "certificate"))?;
    Ok(Authority { certificate, issuer })
}

/// The files of an agent's identity in a directory that [`issue`] made.
#[must_use]
pub fn files(directory: &Path) -> TlsFiles {
    TlsFiles {
        ca: directory.join(CA_CERT),
        certificate: directory.join("server-cert.pem"),
        key: directory.join("server-key.pem"),
        crl: CrlFile::beside(&directory.join(CA_CERT)),
    }
}

/// A certificate and its key, as PEM.
fn leaf(
    host: &HostName,
    issuer: &Issuer<'_, KeyPair>,
    purposes: &[ExtendedKeyUsagePurpose],
) -> Result<(String, String), PkiError> {
    let unusable = |_| PkiError::Name { host: host.clone() };
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::DnsName(host.as_str().try_into().map_err(unusable)?)];
    params.distinguished_name.push(DnType::CommonName, host.as_str());
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = purposes.to_vec();
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, HOST_DAYS);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn set_validity(params: &mut CertificateParams, days: u32) {
    let now = SystemTime::now();
    params.not_before = (now - DAY * EARLIER_DAYS).into();
    params.not_after = (now + DAY * days).into();
}

/// A directory that is being filled; it is removed again unless it was published.
struct Draft {
    path: PathBuf,
    published: bool,
}

impl Draft {
    fn new(directory: &Path, host: &HostName) -> Result<Self, PkiError> {
        let path = directory.join(format!(".{host}.{}", std::process::id()));
        DirBuilder::new()
            .mode(DIRECTORY_MODE)
            .create(&path)
            .map_err(|error| unwritten(&path, error))?;
        Ok(Self { path, published: false })
    }

    fn publish(mut self, target: &Path) -> Result<(), PkiError> {
        rename_to_free(&self.path, target)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published {
            // What made us give up is reported; a leftover draft is harmless.
            _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn must_be_free(path: &Path) -> Result<(), PkiError> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(unwritten(path, error)),
        Ok(_) => Err(PkiError::Exists { path: path.to_owned() }),
    }
}

fn read_authority(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|error| PkiError::NoAuthority { path: path.to_owned(), error })
}

/// Makes a file that is there whole, with this mode, or not at all; never in the place of another.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    publish(path, text, mode, rename_to_free)
}

/// The same for what everybody may read, in the place of another if there is one.
fn replace(path: &Path, text: &str) -> Result<(), PkiError> {
    publish(path, text, CERT_MODE, |draft, path| {
        fs::rename(draft, path).map_err(|error| unwritten(path, error))
    })
}

fn publish(
    path: &Path,
    text: &str,
    mode: u32,
    rename: impl FnOnce(&Path, &Path) -> Result<(), PkiError>,
) -> Result<(), PkiError> {
    let draft = path.with_extension(format!("{}.draft", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(KEY_MODE).open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()
    };
    let result =
        write().map_err(|error| unwritten(path, error)).and_then(|()| rename(&draft, path));
    if result.is_err() {
        // The error that counts is the first one.
        _ = fs::remove_file(&draft);
    }
    result
}

fn rename_to_free(from: &Path, to: &Path) -> Result<(), PkiError> {
    renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE).map_err(|error| match error {
        rustix::io::Errno::EXIST => PkiError::Exists { path: to.to_owned() },
        other => unwritten(to, other.into()),
    })
}

fn sync_directory(path: &Path) -> Result<(), PkiError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| unwritten(path, error))
}

fn unwritten(path: &Path, error: io::Error) -> PkiError {
    PkiError::Write { path: path.to_owned(), error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::test_folder;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o7777
    }

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    fn names(directory: &Path) -> Vec<String> {
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string();
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(name).map(Result::unwrap).collect();
        names.sort();
        names
    }

    #[test]
    fn files_and_modes_are_as_promised() {
        let folder = test_folder();
        let directory = folder.path().join("deep/pki");
        init(&directory).unwrap();
        assert_eq!(names(&directory), ["ca-cert.pem", "ca-key.pem"]);
        assert_eq!(mode(&directory), 0o700);
        assert_eq!(mode(&directory.join("ca-key.pem")), 0o600);
        assert_eq!(mode(&directory.join("ca-cert.pem")), 0o644);
        let alpha = issue(&directory, &host("alpha")).unwrap();
        assert_eq!(alpha, directory.join("alpha"));
        assert_eq!(names(&directory), ["alpha", "ca-cert.pem", "ca-key.pem"]);
        assert_eq!(mode(&alpha), 0o700);
        let expected = [
            "ca-cert.pem",
            "client-cert.pem",
            "client-key.pem",
            "server-cert.pem",
            "server-key.pem",
        ];
        assert_eq!(names(&alpha), expected);
        for name in expected {
            let wanted = if name.ends_with("key.pem") { 0o600 } else { 0o644 };
            assert_eq!(mode(&alpha.join(name)), wanted, "{name}");
        }
        let text = |path: PathBuf| fs::read_to_string(path).unwrap();
        assert_eq!(text(alpha.join("ca-cert.pem")), text(directory.join("ca-cert.pem")));
    }

    #[test]
    fn what_is_issued_is_an_identity_for_its_time() {
        let folder = test_folder();
        init(folder.path()).unwrap();
        let alpha = issue(folder.path(), &host("alpha.example")).unwrap();
        let identity = TlsIdentity::load_for(&host("alpha.example"), &files(&alpha)).unwrap();
        let now = i64::try_from(
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs(),
        )
        .unwrap();
        assert!((823..=825).contains(&identity.validity().days_left(now)));
        assert!((3648..=3650).contains(&identity.ca_validity().days_left(now)));
        let client = TlsFiles {
            certificate: alpha.join("client-cert.pem"),
            key: alpha.join("client-key.pem"),
            ..files(&alpha)
        };
        let error = TlsIdentity::load(&client).unwrap_err().to_string();
        assert!(
            error.contains("serve as a server's"),
            "a client's certificate serves no agent: {error}"
        );
    }

    #[test]
    fn nothing_is_overwritten() {
        let folder = test_folder();
        init(folder.path()).unwrap();
        let text = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        let before = (text(CA_CERT), text(CA_KEY));
        assert!(matches!(init(folder.path()), Err(PkiError::Exists { .. })));
        fs::remove_file(folder.path().join(CA_CERT)).unwrap();
        assert!(matches!(init(folder.path()), Err(PkiError::Exists { .. })), "the key is left");
        fs::write(folder.path().join(CA_CERT), &before.0).unwrap();
        issue(folder.path(), &host("alpha")).unwrap();
        let key = text("alpha/server-key.pem");
        assert!(matches!(issue(folder.path(), &host("alpha")), Err(PkiError::Exists { .. })));
        assert_eq!((text("alpha/server-key.pem"), text(CA_KEY)), (key, before.1));
        assert_eq!(names(folder.path()), ["alpha", "ca-cert.pem", "ca-key.pem"]);
    }

    #[test]
    fn an_authority_that_is_missing_or_mixed_up_issues_nothing() {
        let (one, other) = (test_folder(), test_folder());
        let none = issue(one.path(), &host("alpha")).unwrap_err();
        assert!(none.to_string().contains("sterna pki init"), "{none}");
        init(one.path()).unwrap();
        init(other.path()).unwrap();
        fs::copy(other.path().join(CA_KEY), one.path().join(CA_KEY)).unwrap();
        let mixed = issue(one.path(), &host("alpha")).unwrap_err();
        assert!(matches!(mixed, PkiError::Unusable(_)), "{mixed}");
        fs::write(one.path().join(CA_KEY), "nonsense").unwrap();
        let broken = issue(one.path(), &host("alpha")).unwrap_err();
        assert!(matches!(broken, PkiError::BadAuthority { .. }), "{broken}");
        assert_eq!(names(one.path()), ["ca-cert.pem", "ca-key.pem"]);
    }

    #[test]
    fn a_name_that_no_certificate_can_carry_issues_nothing() {
        let folder = test_folder();
        init(folder.path()).unwrap();
        for wrong in ["a..b", "10.0.0.1", "ends-"] {
            let error = issue(folder.path(), &host(wrong)).unwrap_err();
            assert!(matches!(error, PkiError::Name { .. } | PkiError::Unusable(_)), "{error}");
        }
        assert_eq!(names(folder.path()), ["ca-cert.pem", "ca-key.pem"]);
    }
}
