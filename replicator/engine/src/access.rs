//! Who may open an export: lists of addresses, and of names that a client's certificate must bear.
//!
//! Pure. An empty list allows everybody. A client that may not open an export is not told that it exists; one that
//! lacks nothing but TLS is told that.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// The lists of one export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Where clients may come from; empty: from anywhere.
    pub origins: Vec<Origin>,
    /// Names of which a client's certificate must have one; empty: no certificate is asked for.
    pub names: Vec<NamePattern>,
}

/// A place that clients come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This machine, by a unix socket.
    Unix,
    /// A network, or one address.
    Network(IpNet),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix => f.write_str("unix"),
            Self::Network(network) => network.fmt(f),
        }
    }
}

/// A name, or any name with one more label in front of a common end: `*.example`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(String);

impl NamePattern {
    /// `None` if it is empty, or has a `*` anywhere but as its first label.
    pub fn parse(text: &str) -> Option<Self> {
        let fixed = text.strip_prefix("*.").unwrap_or(text);
        (!fixed.is_empty() && !fixed.contains(['*', '\0'])).then(|| Self(text.into()))
    }

    /// Byte by byte: what is the same name for a resolver may be another client's here.
    fn matches(&self, name: &str) -> bool {
        match self.0.strip_prefix("*.") {
            None => self.0 == name,
            Some(end) => name
                .split_once('.')
                .is_some_and(|(label, rest)| !label.is_empty() && label != "*" && rest == end),
        }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A client, as far as it is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guest<'a> {
    /// `None`: by a unix socket.
    pub(crate) address: Option<IpAddr>,
    /// Names in its certificate; `None` without TLS.
    pub(crate) names: Option<&'a [String]>,
}

/// Whether a client may open an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    Granted,
    /// Not without TLS.
    NeedsTls,
    /// No, for this reason, which is for the log.
    Denied(String),
}

impl Access {
    /// Whether these lists let a client in.
    pub(crate) fn admit(&self, guest: Guest<'_>) -> Admission {
        let is_inside = |origin: &Origin| match (origin, guest.address) {
            (Origin::Unix, None) => true,
            // An IPv4 client of an IPv6 socket has its own address, whatever form it comes in.
            (Origin::Network(network), Some(address)) => network.contains(&address.to_canonical()),
            _ => false,
        };
        if !self.origins.is_empty() && !self.origins.iter().any(is_inside) {
            return Admission::Denied("its address is not in the list of addresses (allow)".into());
        }
        let Some(names) = guest.names else {
            return if self.names.is_empty() { Admission::Granted } else { Admission::NeedsTls };
        };
        if self.names.is_empty()
            || names.iter().any(|name| self.names.iter().any(|known| known.matches(name)))
        {
            return Admission::Granted;
        }
        Admission::Denied(match names {
            [] => "it has no certificate, and there is a list of names (allow-names)".into(),
            names => format!(
                "its certificate is for {}, which is not in the list of names (allow-names)",
                names.join(", ")
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(origins: &[&str], names: &[&str]) -> Access {
        let origin = |text: &&str| match *text {
            "unix" => Origin::Unix,
            text => Origin::Network(text.parse().unwrap()),
        };
        Access {
            origins: origins.iter().map(origin).collect(),
            names: names.iter().map(|name| NamePattern::parse(name).unwrap()).collect(),
        }
    }

    fn admit(access: &Access, address: &str, names: Option<&[&str]>) -> Admission {
        let address = (address != "unix").then(|| address.parse().unwrap());
        let names: Option<Vec<String>> = names.map(|names| names.iter().map(|&name| name.into()).collect());
        access.admit(Guest { address, names: names.as_deref() })
    }

    #[test]
    fn no_lists_let_everybody_in() {
        let open = Access::default();
        for address in ["unix", "10.0.0.1", "fd00::1"] {
            assert_eq!(admit(&open, address, None), Admission::Granted);
            assert_eq!(admit(&open, address, Some(&[])), Admission::Granted);
        }
    }

    #[test]
    fn addresses() {
        let list = access(&["10.0.0.0/24", "fd00::/8", "192.168.7.9/32"], &[]);
        let granted = ["10.0.0.0", "10.0.0.255", "::ffff:10.0.0.7", "fd12::1", "192.168.7.9"];
        let denied =
            ["10.0.1.0", "9.255.255.255", "::ffff:10.0.1.0", "fe80::1", "192.168.7.8", "::1", "unix"];
        for address in granted {
            assert_eq!(admit(&list, address, None), Admission::Granted, "{address}");
        }
        for address in denied {
            assert!(matches!(admit(&list, address, None), Admission::Denied(_)), "{address}");
        }
        let local = access(&["unix"], &[]);
        assert_eq!(admit(&local, "unix", None), Admission::Granted);
        assert!(matches!(admit(&local, "127.0.0.1", None), Admission::Denied(_)));
    }

    #[test]
    fn names_need_tls_and_match_exactly() {
        let list = access(&[], &["vm1.example", "*.cluster.example"]);
        assert_eq!(admit(&list, "unix", None), Admission::NeedsTls);
        for name in ["vm1.example", "a.cluster.example"] {
            assert_eq!(admit(&list, "unix", Some(&["other", name])), Admission::Granted, "{name}");
        }
        for name in [
            "",
            "vm1",
            "vm1.example.",
            "VM1.example",
            "vm1.example.org",
            "xvm1.example",
            "cluster.example",
            ".cluster.example",
            "*.cluster.example",
            "a.b.cluster.example",
            "acluster.example",
        ] {
            let Admission::Denied(why) = admit(&list, "unix", Some(&[name])) else {
                panic!("{name:?} got in")
            };
            assert!(why.contains(name) && why.contains("allow-names"), "{why}");
        }
        let Admission::Denied(why) = admit(&list, "unix", Some(&[])) else { panic!("no name got in") };
        assert!(why.contains("no certificate"), "{why}");
    }

    #[test]
    fn both_lists_must_agree() {
        let list = access(&["10.0.0.0/8"], &["vm1"]);
        assert_eq!(admit(&list, "10.1.1.1", Some(&["vm1"])), Admission::Granted);
        assert_eq!(admit(&list, "10.1.1.1", None), Admission::NeedsTls);
        assert!(matches!(admit(&list, "11.1.1.1", Some(&["vm1"])), Admission::Denied(_)));
        // Who may not come from there is not told that TLS would help.
        assert!(matches!(admit(&list, "11.1.1.1", None), Admission::Denied(_)));
    }

    #[test]
    fn patterns_have_one_star_in_front() {
        for good in ["vm1", "vm1.example", "*.example", "CN with spaces"] {
            assert_eq!(NamePattern::parse(good).unwrap().to_string(), good);
        }
        for bad in ["", "*", "*.", "*.*.example", "vm*.example", "*vm.example", "a.*.example", "a\0"] {
            assert_eq!(NamePattern::parse(bad), None, "{bad:?}");
        }
    }
}
