//! Certificates for tests, in folders as libnbd and QEMU want them: `ca-cert.pem`, `client-cert.pem`, `client-key.pem`.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Last year of certificates that are valid.
const YEAR_VALID: i32 = 2999;
const YEAR_PAST: i32 = 2021;

/// Somebody who certifies others.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// One of this name.
    pub fn new(name: &str) -> Authority {
        let mut params = params(name, &[], YEAR_VALID);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// Writes its own certificate, and gives its path.
    pub fn write(&self, file: &Path) -> PathBuf {
        fs::write(file, &self.pem).expect("write a certificate");
        file.to_path_buf()
    }

    /// `server-cert.pem` and `server-key.pem`, for localhost and 127.0.0.1.
    pub fn write_server(&self, dir: &Path) {
        let params = params("server", &["localhost", "127.0.0.1"], YEAR_VALID);
        self.certify(params, ExtendedKeyUsagePurpose::ServerAuth, &dir.join("server"));
    }

    /// A new folder in `dir` for a client that trusts this authority, and has no certificate.
    pub fn client(&self, dir: &Path, name: &str) -> PathBuf {
        let folder = dir.join(name);
        fs::create_dir(&folder).expect("a folder");
        self.write(&folder.join("ca-cert.pem"));
        folder
    }

    /// Certifies the client of such a folder, by names; or it was certified once.
    pub fn certify_client(&self, folder: &Path, common_name: &str, dns_names: &[&str], expired: bool) {
        let params = params(common_name, dns_names, if expired { YEAR_PAST } else { YEAR_VALID });
        self.certify(params, ExtendedKeyUsagePurpose::ClientAuth, &folder.join("client"));
    }

    fn certify(&self, mut params: CertificateParams, purpose: ExtendedKeyUsagePurpose, stem: &Path) {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        let path = |end: &str| PathBuf::from(format!("{}-{end}.pem", stem.display()));
        fs::write(path("cert"), cert).expect("write a certificate");
        fs::write(path("key"), key.serialize_pem()).expect("write a key");
        fs::set_permissions(path("key"), fs::Permissions::from_mode(0o600)).expect("mode of a key");
    }
}

fn params(common_name: &str, names: &[&str], last_year: i32) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|&name| name.into()).collect();
    let mut params = CertificateParams::new(names).expect("names of a certificate");
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_after = date_time_ymd(last_year, 12, 31);
    params.not_before = date_time_ymd(2020, 1, 1);
    params
}
