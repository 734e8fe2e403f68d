//! The part of the configuration about NBD clients: listeners, TLS, and who may open what.
//!
//! Invariants: a port that other machines reach has TLS, unless the file says that it shall not; TLS is asked of a
//! listener only if there is a certificate, and names of clients only if there is somebody who certifies them.

use super::reader::{Document, Span, Table};
use super::{ConfigError, HostPort, absolute};
use lockstep_engine::{Access, NamePattern, Origin, TlsPolicy};
use std::net::IpAddr;
use std::path::PathBuf;

/// Keys of `[tls]`.
pub(super) const TLS_KEYS: &[&str] = &["cert-file", "key-file", "client-ca-file", "client-certificates"];

const LISTENERS_MAX: usize = 16;
const LIST_ENTRIES_MAX: usize = 1024;
const SOCKET_MODE_DEFAULT: u32 = 0o660;

/// Where NBD clients are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NbdPlace {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP port.
    Tcp(HostPort),
}

/// A listener for NBD clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NbdListener {
    /// Where.
    pub(crate) place: NbdPlace,
    /// What it does about TLS.
    pub(crate) tls: TlsPolicy,
}

/// The NBD listeners of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NbdEntry {
    /// At least one.
    pub(crate) listeners: Vec<NbdListener>,
    /// Permission bits of unix sockets.
    pub(crate) socket_mode: u32,
    /// Group that they are given to.
    pub(crate) socket_group: Option<String>,
}

/// `[tls]`: what the daemon shows to clients, and asks of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsEntry {
    /// Its certificate, and those that lead to one that clients know.
    pub(crate) cert_file: PathBuf,
    /// The key of its certificate.
    pub(crate) key_file: PathBuf,
    /// Certificates of those who certify clients; `None`: clients are not asked for a certificate.
    pub(crate) client_ca_file: Option<PathBuf>,
    /// A client without a certificate is let in, as far as allow lists do.
    pub(crate) client_certificates_optional: bool,
}

/// `[tls]`, if it is there.
pub(super) fn read_tls(
    document: &Document<'_>,
    top: &mut Table<'_, '_>,
) -> Result<Option<TlsEntry>, ConfigError> {
    let Some(mut table) = top.table("tls", "[tls]", TLS_KEYS)? else { return Ok(None) };
    let (cert_file, span) = table.required_string("cert-file")?;
    let cert_file = absolute(document, "cert-file", cert_file, span)?;
    let (key_file, span) = table.required_string("key-file")?;
    let key_file = absolute(document, "key-file", key_file, span)?;
    let client_ca_file = match table.string("client-ca-file")? {
        Some((path, span)) => Some(absolute(document, "client-ca-file", path, span)?),
        None => None,
    };
    let client_certificates_optional = match table.string("client-certificates")? {
        None => false,
        Some((_, span)) if client_ca_file.is_none() => {
            let message = "needs a client-ca-file: certificates of those who certify clients";
            return Err(document.value_error("client-certificates", message, span));
        }
        Some((text, _)) if text == "optional" => true,
        Some((text, _)) if text == "required" => false,
        Some((text, span)) => {
            let message = format!("\"{text}\" is not possible; allowed: \"optional\", \"required\"");
            return Err(document.value_error("client-certificates", &message, span));
        }
    };
    Ok(Some(TlsEntry { cert_file, key_file, client_ca_file, client_certificates_optional }))
}

/// The listeners of `[node.NAME]`.
pub(super) fn read_listeners(
    document: &Document<'_>,
    table: &mut Table<'_, '_>,
    node: &str,
    has_tls: bool,
) -> Result<NbdEntry, ConfigError> {
    let tcp_tls = read_policy(document, table, has_tls)?;
    let socket_mode = read_mode(document, table)?;
    let socket_group = read_group(document, table)?;
    let places = match table.strings("nbd", "[\"unix:/run/lockstep/nbd.sock\"]")? {
        None => vec![(NbdPlace::Unix(PathBuf::from(super::DEFAULT_NBD_SOCKET)), 0..0)],
        Some((list, span)) if list.is_empty() || list.len() > LISTENERS_MAX => {
            let message = format!("1 to {LISTENERS_MAX} listeners are allowed; without the key there is one");
            return Err(document.value_error("nbd", &message, span));
        }
        Some((list, _)) => {
            let place = |(text, span): (String, Span)| Ok((read_place(document, &text, &span)?, span));
            list.into_iter().map(place).collect::<Result<_, _>>()?
        }
    };
    let if_possible = if has_tls { TlsPolicy::Optional } else { TlsPolicy::Off };
    let mut listeners = Vec::new();
    for (place, span) in places {
        let tls = match (&place, tcp_tls) {
            (NbdPlace::Unix(_), _) => if_possible,
            (NbdPlace::Tcp(_), Some(said)) => said,
            (NbdPlace::Tcp(address), None) if address.is_loopback() => if_possible,
            (NbdPlace::Tcp(_), None) if has_tls => TlsPolicy::Required,
            (NbdPlace::Tcp(address), None) => return Err(unprotected(document, address, node, span)),
        };
        listeners.push(NbdListener { place, tls });
    }
    Ok(NbdEntry { listeners, socket_mode, socket_group })
}

fn unprotected(document: &Document<'_>, address: &HostPort, node: &str, span: Span) -> ConfigError {
    let message = format!(
        "{address} can be reached from other machines, and NBD without TLS has neither encryption nor authentication: \
         whoever reaches the port can read and overwrite the volume. Give the daemon a certificate, by a table [tls] \
         with cert-file and key-file; or, if that network is trusted, write tls = \"off\" into [node.{node}]; or \
         listen on \"unix:/PATH\" or \"127.0.0.1:10809\""
    );
    document.value_error("nbd", &message, span)
}

fn read_policy(
    document: &Document<'_>,
    table: &mut Table<'_, '_>,
    has_tls: bool,
) -> Result<Option<TlsPolicy>, ConfigError> {
    let Some((text, span)) = table.string("tls")? else { return Ok(None) };
    let policy = match text.as_str() {
        "off" => return Ok(Some(TlsPolicy::Off)),
        "optional" => TlsPolicy::Optional,
        "required" => TlsPolicy::Required,
        _ => {
            let message = format!("\"{text}\" is not possible; allowed: \"off\", \"optional\", \"required\"");
            return Err(document.value_error("tls", &message, span));
        }
    };
    if !has_tls {
        let message = format!("\"{text}\" needs a certificate: a table [tls] with cert-file and key-file");
        return Err(document.value_error("tls", &message, span));
    }
    Ok(Some(policy))
}

fn read_mode(document: &Document<'_>, table: &mut Table<'_, '_>) -> Result<u32, ConfigError> {
    let Some((text, span)) = table.string("nbd-mode")? else { return Ok(SOCKET_MODE_DEFAULT) };
    let is_octal = (3..=4).contains(&text.len()) && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    match u32::from_str_radix(&text, 8) {
        Ok(mode) if is_octal && mode <= 0o777 => Ok(mode),
        _ => {
            let message = format!("\"{text}\" is no mode; allowed: \"0000\" to \"0777\", in octal digits");
            Err(document.value_error("nbd-mode", &message, span))
        }
    }
}

fn read_group(document: &Document<'_>, table: &mut Table<'_, '_>) -> Result<Option<String>, ConfigError> {
    let Some((text, span)) = table.string("nbd-group")? else { return Ok(None) };
    if text.is_empty() || text.contains(['\0', ':', ' ']) {
        let message = format!("\"{text}\" is no name of a group, for example \"kvm\"");
        return Err(document.value_error("nbd-group", &message, span));
    }
    Ok(Some(text))
}

fn read_place(document: &Document<'_>, text: &str, span: &Span) -> Result<NbdPlace, ConfigError> {
    let place = match text.strip_prefix("unix:") {
        Some(path) if path.starts_with('/') => Some(NbdPlace::Unix(PathBuf::from(path))),
        Some(_) => None,
        None => HostPort::parse(text.strip_prefix("tcp:").unwrap_or(text)).map(NbdPlace::Tcp),
    };
    place.ok_or_else(|| {
        let message = format!("\"{text}\" is no listener; allowed: \"unix:/ABSOLUTE/PATH\" or \"HOST:PORT\"");
        document.value_error("nbd", &message, span.clone())
    })
}

/// The allow lists of a `[[resource]]`.
pub(super) fn read_access(
    document: &Document<'_>,
    table: &mut Table<'_, '_>,
    tls: Option<&TlsEntry>,
) -> Result<Access, ConfigError> {
    let mut access = Access::default();
    if let Some((list, span)) = table.strings("allow", "[\"10.0.0.0/24\", \"unix\"]")? {
        check_length(document, "allow", list.len(), &span)?;
        for (text, span) in list {
            let origin = read_origin(&text).map_err(|why| document.value_error("allow", &why, span))?;
            access.origins.push(origin);
        }
    }
    if let Some((list, span)) = table.strings("allow-names", "[\"vm1.example\"]")? {
        check_length(document, "allow-names", list.len(), &span)?;
        if tls.is_none_or(|tls| tls.client_ca_file.is_none()) {
            let message =
                "needs a table [tls] with a client-ca-file: the names are those of clients' certificates";
            return Err(document.value_error("allow-names", message, span));
        }
        for (text, span) in list {
            let pattern = NamePattern::parse(&text).ok_or_else(|| {
                let message = format!("\"{text}\" is no name; allowed: \"vm1.example\" or \"*.example\"");
                document.value_error("allow-names", &message, span)
            })?;
            access.names.push(pattern);
        }
    }
    Ok(access)
}

fn check_length(
    document: &Document<'_>,
    key: &'static str,
    entries: usize,
    span: &Span,
) -> Result<(), ConfigError> {
    if (1..=LIST_ENTRIES_MAX).contains(&entries) {
        return Ok(());
    }
    let message = format!("1 to {LIST_ENTRIES_MAX} entries are allowed; without the key everybody is");
    Err(document.value_error(key, &message, span.clone()))
}

fn read_origin(text: &str) -> Result<Origin, String> {
    if text == "unix" {
        return Ok(Origin::Unix);
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Origin::Network(address.into()));
    }
    let network: ipnet::IpNet = text
        .parse()
        .map_err(|_| format!("\"{text}\" is no network; allowed: \"10.0.0.0/24\", \"fd00::/8\", \"unix\""))?;
    match network.trunc() {
        whole if whole == network => Ok(Origin::Network(network)),
        whole => Err(format!("\"{text}\" is an address in a network; allowed: the network, \"{whole}\"")),
    }
}
