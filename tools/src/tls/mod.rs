//! TLS towards NBD clients: the files that say who we are and who clients may be, and the terminator that does it.
//!
//! Invariants: files are read once, at start, and one that cannot serve (missing, readable by others, no certificate in
//! it, expired, a key of another certificate) keeps the daemon from starting, with the file's name and what to do.
//! Sessions are not resumed: each connection is a full handshake, and a client that is not certified any more gets in
//! nowhere.

mod names;
mod terminator;

pub(crate) use terminator::{CONNECTION_BYTES, Terminator};

use crate::config::TlsEntry;
use crate::failure::Failure;
use crate::secret::open_private;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use std::fmt::Display;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// Largest file that is read: no chain of certificates comes near it.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The files, and how each is called where it was named.
#[derive(Debug)]
pub(crate) struct Files<'a> {
    /// Our certificate, and those that lead to one that clients know.
    pub(crate) cert: (&'a str, &'a Path),
    /// Its key.
    pub(crate) key: (&'a str, &'a Path),
    /// Certificates of those who certify clients.
    pub(crate) client_ca: Option<(&'a str, &'a Path)>,
    /// Clients without a certificate are let in.
    pub(crate) client_certificates_optional: bool,
}

impl<'a> Files<'a> {
    /// As `[tls]` says.
    pub(crate) fn of(entry: &'a TlsEntry) -> Self {
        Self {
            cert: ("[tls] cert-file", &entry.cert_file),
            key: ("[tls] key-file", &entry.key_file),
            client_ca: entry.client_ca_file.as_deref().map(|path| ("[tls] client-ca-file", path)),
            client_certificates_optional: entry.client_certificates_optional,
        }
    }

    /// Reads and checks all of them.
    pub(crate) fn load(&self) -> Result<Arc<ServerConfig>, Failure> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = certificates(self.cert)?;
        for certificate in &chain {
            if let Some(when) = expired(certificate, self.cert)? {
                return Err(wrong(self.cert, format!("a certificate in it expired on {when}; renew it")));
            }
        }
        let key = private_key(self.key)?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| Failure::generic(format!("TLS: {error}")))?;
        let builder = match self.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => builder.with_client_cert_verifier(self.verifier(file, provider)?),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| {
            let next = format!("it is not the key of the certificate in {}", self.cert.1.display());
            wrong(self.key, format!("{error}: {next}, or not of a kind that TLS can use"))
        })?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    fn verifier(
        &self,
        file: (&str, &Path),
        provider: Arc<rustls::crypto::CryptoProvider>,
    ) -> Result<Arc<dyn ClientCertVerifier>, Failure> {
        let mut roots = RootCertStore::empty();
        let mut last_expiry = None;
        for certificate in certificates(file)? {
            match expired(&certificate, file)? {
                Some(when) => last_expiry = Some(when),
                None => roots.add(certificate).map_err(|error| wrong(file, error))?,
            }
        }
        if let (true, Some(when)) = (roots.is_empty(), last_expiry) {
            return Err(wrong(
                file,
                format!("no certificate in it is valid, the last expired on {when}; renew it"),
            ));
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let builder =
            if self.client_certificates_optional { builder.allow_unauthenticated() } else { builder };
        builder.build().map_err(|error| wrong(file, error))
    }
}

fn wrong((what, path): (&str, &Path), why: impl Display) -> Failure {
    Failure::config(format!("{what} {}: {why}", path.display()))
}

fn certificates(file: (&str, &Path)) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let opened = std::fs::File::open(file.1).map_err(|error| wrong(file, error))?;
    let pem = read(file, opened)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(certificates) if certificates.is_empty() => {
            Err(wrong(file, "there is no certificate in it; PEM is needed (BEGIN CERTIFICATE)"))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(wrong(file, format!("it is no PEM file: {error}"))),
    }
}

fn private_key(file: (&str, &Path)) -> Result<PrivateKeyDer<'static>, Failure> {
    let opened = open_private(file.1).map_err(|why| wrong(file, why))?;
    let pem = read(file, opened)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
        wrong(
            file,
            format!("there is no key in it that can be used: {error}; PEM without a password is needed"),
        )
    })
}

fn read(file: (&str, &Path), opened: std::fs::File) -> Result<Vec<u8>, Failure> {
    let mut content = Vec::new();
    opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut content).map_err(|error| wrong(file, error))?;
    match content.len() as u64 > FILE_BYTES_MAX {
        true => Err(wrong(file, "it is too large for a file of certificates or keys")),
        false => Ok(content),
    }
}

/// When a certificate expired, if it has.
fn expired(certificate: &CertificateDer<'_>, file: (&str, &Path)) -> Result<Option<String>, Failure> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| wrong(file, format!("a certificate in it cannot be read: {error}")))?;
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let end = parsed.validity().not_after;
    let is_over = u64::try_from(end.timestamp()).is_ok_and(|end_s| end_s < since_1970.as_secs());
    Ok(is_over.then(|| end.to_string()))
}

#[cfg(test)]
mod tests;
