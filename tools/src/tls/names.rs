//! The names in a client's certificate, for the allow lists. Pure.

use x509_parser::extensions::GeneralName;

/// Names of a certificate: the DNS names of its subject alternative names, and its common name. One with a character
/// that is not to be printed is none.
pub(super) fn of_certificate(der: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(der) else { return Vec::new() };
    let alternatives = certificate.subject_alternative_name().ok().flatten();
    let alternatives = alternatives.iter().flat_map(|extension| &extension.value.general_names);
    let dns = alternatives.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(*name),
        _ => None,
    });
    let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    let mut names: Vec<String> = Vec::new();
    for name in dns.chain(common).filter(|name| !name.is_empty() && !name.contains(char::is_control)) {
        if !names.iter().any(|known| known == name) {
            names.push(name.into());
        }
    }
    names
}
