//! Files that serve and files that do not; certificates for these tests and for the terminator's.

use super::*;
use crate::failure::CONFIG;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, date_time_ymd,
};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// Somebody who certifies others.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(super) pem: String,
}

/// A certificate, and its key.
pub(super) struct Identity {
    pub(super) cert_pem: String,
    pub(super) key_pem: String,
}

impl Authority {
    pub(super) fn new() -> Self {
        Self::until(2999)
    }

    /// Whose own certificate ends with this year.
    fn until(year: i32) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = date_time_ymd(year, 12, 31);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(super) fn certify(&self, common_name: &str, dns_names: &[&str]) -> Identity {
        self.certify_until(2999, common_name, dns_names)
    }

    fn certify_until(&self, year: i32, common_name: &str, dns_names: &[&str]) -> Identity {
        let names: Vec<String> = dns_names.iter().map(|&name| name.into()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_after = date_time_ymd(year, 12, 31);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        let cert_pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Identity { cert_pem, key_pem: key.serialize_pem() }
    }
}

/// A folder with files of TLS.
pub(super) struct Folder(tempfile::TempDir);

impl Folder {
    pub(super) fn new(identity: &Identity, client_ca: &str) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write("cert.pem", &identity.cert_pem, 0o644);
        folder.write("key.pem", &identity.key_pem, 0o600);
        folder.write("clients.pem", client_ca, 0o644);
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &str, mode: u32) {
        let path = self.path(name);
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    pub(super) fn load(&self, with_clients: bool, optional: bool) -> Result<Arc<ServerConfig>, Failure> {
        let (cert, key, clients) = (self.path("cert.pem"), self.path("key.pem"), self.path("clients.pem"));
        let files = Files {
            cert: ("cert-file", &cert),
            key: ("key-file", &key),
            client_ca: with_clients.then_some(("client-ca-file", clients.as_path())),
            client_certificates_optional: optional,
        };
        files.load()
    }

    /// All files are named at start, and what is wrong with this one.
    #[track_caller]
    fn refused(&self, file: &str, words: &[&str]) {
        let failure = self.load(true, false).expect_err("files that cannot serve");
        assert_eq!(failure.code, CONFIG, "{failure}");
        let path = self.path(file).display().to_string();
        for word in words.iter().chain([&path.as_str()]) {
            assert!(failure.message.contains(word), "lacks {word:?}: {failure}");
        }
    }
}

#[test]
fn files_that_fit_are_taken() {
    let authority = Authority::new();
    let folder = Folder::new(&authority.certify("server", &["localhost"]), &authority.pem);
    folder.load(false, false).unwrap();
    folder.load(true, false).unwrap();
    folder.load(true, true).unwrap();
    folder.write("key.pem", &authority.certify("server", &["localhost"]).key_pem, 0o400);
    folder.refused("key.pem", &["not the key of the certificate", "cert.pem"]);
}

#[test]
fn a_file_that_cannot_serve_is_named() {
    let authority = Authority::new();
    let good = authority.certify("server", &["localhost"]);
    let folder = || Folder::new(&good, &authority.pem);
    for file in ["cert.pem", "key.pem", "clients.pem"] {
        let folder = folder();
        std::fs::remove_file(folder.path(file)).unwrap();
        folder.refused(file, &["No such file"]);
        for (content, words) in [("", ["in it"]), ("no PEM\n", ["in it"]), ("-----BEGIN CERT", ["PEM"])] {
            folder.write(file, content, 0o600);
            folder.refused(file, &words);
        }
        folder.write(file, &"x".repeat(2 << 20), 0o600);
        folder.refused(file, &["too large"]);
    }
    for mode in [0o640, 0o604, 0o644] {
        let folder = folder();
        folder.write("key.pem", &good.key_pem, mode);
        folder.refused("key.pem", &["lets others read it", "chmod 0600"]);
    }
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for file in ["cert.pem", "clients.pem"] {
        let folder = folder();
        folder.write(file, broken, 0o600);
        folder.refused(file, &["cannot be read"]);
    }
}

#[test]
fn what_has_expired_is_refused() {
    let authority = Authority::new();
    let old = authority.certify_until(2020, "server", &["localhost"]);
    Folder::new(&old, &authority.pem).refused("cert.pem", &["expired on", "2020"]);
    let good = authority.certify("server", &["localhost"]);
    let past = Authority::until(2021);
    Folder::new(&good, &past.pem).refused("clients.pem", &["expired on", "2021"]);
    // One of several may have expired.
    Folder::new(&good, &format!("{}{}", past.pem, authority.pem)).load(true, false).unwrap();
}

#[test]
fn names_of_a_certificate() {
    let authority = Authority::new();
    let names = |identity: &Identity| {
        let der = CertificateDer::from_pem_slice(identity.cert_pem.as_bytes()).unwrap();
        names::of_certificate(&der)
    };
    assert_eq!(
        names(&authority.certify("vm1", &["a.example", "b.example"])),
        ["a.example", "b.example", "vm1"]
    );
    assert_eq!(names(&authority.certify("a.example", &["a.example"])), ["a.example"]);
    assert_eq!(names(&authority.certify("only a name", &[])), ["only a name"]);
    assert_eq!(
        names(&authority.certify("two\nlines", &[])),
        [""; 0],
        "nothing that could forge a line of the log"
    );
    assert_eq!(names(&authority.certify("", &[])), [""; 0]);
    assert_eq!(names::of_certificate(b"no certificate"), [""; 0]);
}
