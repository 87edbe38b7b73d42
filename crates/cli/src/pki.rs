//! `sterna pki`: the certificates that hosts trust each other by, made here without an agent.

use std::path::Path;

use serde::Serialize;
use sterna_host::pki::{self, PkiError};
use sterna_model::HostName;

use crate::console::Console;

/// A directory that was filled, as JSON.
#[derive(Serialize)]
struct Made {
    directory: String,
}

/// Makes a certificate authority and tells what is next.
///
/// # Errors
/// There is one already, or the directory cannot be written to.
pub(crate) fn init(directory: &Path, console: &mut Console) -> Result<(), PkiError> {
    pki::init(directory)?;
    let shown = directory.display();
    console.value(&Made { directory: shown.to_string() }, || {
        format!(
            "made {shown}/ca-cert.pem and {shown}/ca-key.pem; keep the key on this machine\n\
             next: sterna pki issue {shown} HOST"
        )
    });
    Ok(())
}

/// Issues a host's certificates and tells what is next.
///
/// # Errors
/// There is no authority, the host has certificates already, or the directory cannot be written to.
pub(crate) fn issue(
    directory: &Path,
    host: &HostName,
    console: &mut Console,
) -> Result<(), PkiError> {
    let made = pki::issue(directory, host)?;
    let shown = made.display();
    console.value(&Made { directory: shown.to_string() }, || {
        format!("made {shown}; copy it to {host} as /etc/sterna/pki")
    });
    Ok(())
}

/// A list of revoked certificates, as JSON.
#[derive(Serialize)]
struct List {
    list: String,
    added: usize,
    total: usize,
    days: u32,
}

/// Revokes a host's certificates, or renews the list of revoked ones, and tells what is next.
///
/// # Errors
/// There is no authority or no such host's folder, or the directory cannot be written to.
pub(crate) fn revoke(
    directory: &Path,
    host: Option<&HostName>,
    console: &mut Console,
) -> Result<(), PkiError> {
    let made = pki::revoke(directory, host)?;
    let list = made.path.display().to_string();
    let (added, total, days) = (made.added, made.total, made.days);
    console.value(&List { list: list.clone(), added, total, days }, || {
        format!(
            "made {list}: {total} certificates are revoked, {added} of them now; it holds for {days} days\n\
             next: copy it to every host as /etc/sterna/pki/ca-crl.pem; agents read it anew by themselves"
        )
    });
    Ok(())
}
