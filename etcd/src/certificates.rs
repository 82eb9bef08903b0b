//! What an etcd is trusted by, and what this host shows it: files beside godwit's configuration.
//!
//! etcd has certificates of an authority, as its own tools do (`etcdctl --cacert --cert --key`), and not keys pinned one by one.

use crate::error::EtcdError;
use rustls::crypto::ring::default_provider;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

/// Whom this host believes to be etcd.
const AUTHORITY: &str = "etcd-ca.pem";
/// Who this host is, and its key.
const CLIENT: (&str, &str) = ("etcd-client.pem", "etcd-client.key");

/// How TLS is spoken, by the files in `dir`.
pub(crate) fn tls(dir: &Path) -> Result<TlsConfig, EtcdError> {
    let authority = certificates(&dir.join(AUTHORITY))?;
    let builder = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(default_provider()))
        .root_certs(RootCerts::new_with_certs(&authority));
    let (certificate, key) = (dir.join(CLIENT.0), dir.join(CLIENT.1));
    if !certificate.exists() {
        return Ok(builder.build());
    }
    let shown = ClientCert::new_with_certs(&certificates(&certificate)?, private_key(&key)?);
    Ok(builder.client_cert(Some(shown)).build())
}

fn wrong(path: &Path, reason: impl Into<String>) -> EtcdError {
    EtcdError::Certificate { path: path.to_owned(), reason: reason.into() }
}

fn read(path: &Path) -> Result<Vec<u8>, EtcdError> {
    std::fs::read(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => wrong(path, "is missing"),
        _ => wrong(path, format!("cannot be read ({error})")),
    })
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, EtcdError> {
    let pem = read(path)?;
    let found = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(Ok(certificate)),
        Ok(_) => None,
        Err(error) => Some(Err(wrong(path, format!("is no PEM ({error})")))),
    });
    let found: Vec<_> = found.collect::<Result<_, _>>()?;
    if found.is_empty() { Err(wrong(path, "has no certificate")) } else { Ok(found) }
}

fn private_key(path: &Path) -> Result<PrivateKey<'static>, EtcdError> {
    let mode = std::fs::metadata(path).map(|meta| meta.permissions().mode() & 0o777).unwrap_or(0);
    if mode & 0o077 != 0 {
        return Err(wrong(path, format!("can be read by others (mode {mode:o}; `chmod 600` it)")));
    }
    PrivateKey::from_pem(&read(path)?).map_err(|_| wrong(path, "has no private key"))
}
