//! The addresses to listen on.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

/// The system takes no longer name of a Unix socket.
const MAX_PATH_BYTES: usize = 107;
/// The user and the group of the server may connect, and no other user of the machine: a Unix socket counts as
/// loopback, so a server without keys lets everyone who can connect do everything.
const DEFAULT_MODE: u32 = 0o660;

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    Tcp {
        address: SocketAddr,
        /// Plain HTTP, also if a certificate is configured.
        is_plain: bool,
    },
    /// It always speaks plain HTTP.
    Unix(UnixSocket),
}

/// A Unix socket, and who may connect to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixSocket {
    /// Absolute, so that it means the same file from every folder.
    pub path: PathBuf,
    pub mode: u32,
    /// A name or a number. `None` is the user of the process.
    pub user: Option<String>,
    /// A name or a number. `None` is the group of the process.
    pub group: Option<String>,
}

impl Listen {
    /// True if only this machine can reach it.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Tcp { address, .. } => address.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }

    /// True if it speaks plain HTTP, also if a certificate is configured.
    pub fn is_plain(&self) -> bool {
        match self {
            Self::Tcp { is_plain, .. } => *is_plain,
            Self::Unix(_) => true,
        }
    }

    /// True if both cannot be listened on at once. With port 0 each gets a free port of its own.
    pub fn clashes_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unix(one), Self::Unix(other)) => one.path == other.path,
            (Self::Tcp { address: one, .. }, Self::Tcp { address: other, .. }) => {
                let is_covered = one.ip() == other.ip()
                    || one.is_ipv4() == other.is_ipv4()
                        && (one.ip().is_unspecified() || other.ip().is_unspecified());
                one.port() != 0 && one.port() == other.port() && is_covered
            }
            _ => false,
        }
    }
}

impl FromStr for Listen {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(socket) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(socket.parse()?));
        }
        if text.starts_with("https://") {
            return Err(
                "leave https:// out: with --tls-cert or --tls-acme each address without http:// speaks TLS",
            );
        }
        let (is_plain, address) = match text.strip_prefix("http://") {
            Some(address) => (true, address),
            None => (false, text),
        };
        Ok(Self::Tcp { address: tcp(address)?, is_plain })
    }
}

fn tcp(text: &str) -> Result<SocketAddr, &'static str> {
    let wrong = "expected an address and a port, for example 127.0.0.1:7070, [::1]:7070, localhost:7070, \
                 or :7070 for all IPv4 addresses; or a Unix socket, unix:/run/rejoin.sock";
    // No name is looked up: a name server could then say on which addresses the server listens.
    let ip = match text.rsplit_once(':') {
        Some(("", _)) => Ipv4Addr::UNSPECIFIED,
        Some(("localhost", _)) => Ipv4Addr::LOCALHOST,
        _ => return text.parse().map_err(|_| wrong),
    };
    let port = text.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).ok_or(wrong)?;
    Ok(SocketAddr::from((ip, port)))
}

impl FromStr for UnixSocket {
    type Err = &'static str;

    /// `/path?mode=0660&user=NAME&group=NAME`, of which all but the path may be missing.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        // As the URL of a Redis has it: unix:///path.
        let path = path.strip_prefix("//").unwrap_or(path);
        if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
            return Err("expected a Unix socket with an absolute path, for example unix:/run/rejoin.sock");
        }
        if path.len() > MAX_PATH_BYTES {
            return Err("the path of a Unix socket may have at most 107 bytes");
        }
        let mut socket =
            Self { path: Path::new(path).to_owned(), mode: DEFAULT_MODE, user: None, group: None };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("mode", mode)) => socket.mode = octal(mode)?,
                Some(("user", name)) if !name.is_empty() => socket.user = Some(name.to_owned()),
                Some(("group", name)) if !name.is_empty() => socket.group = Some(name.to_owned()),
                _ => {
                    return Err("a Unix socket takes only mode=0660, user=NAME and group=NAME after its ?, \
                                joined by &");
                }
            }
        }
        Ok(socket)
    }
}

fn octal(text: &str) -> Result<u32, &'static str> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or("mode: expected the permissions as an octal number, for example 0660")
}

/// As the log and the messages name it.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { address, .. } => address.fmt(f),
            Self::Unix(socket) => write!(f, "unix:{}", socket.path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(text: &str) -> Listen {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn unix(text: &str) -> UnixSocket {
        let Listen::Unix(socket) = listen(text) else { panic!("{text} is no Unix socket") };
        socket
    }

    #[test]
    fn only_a_scheme_makes_an_address_plain() {
        for (text, is_plain) in [(":7070", false), ("http://:7070", true), ("http://localhost:7070", true)] {
            let Listen::Tcp { address, is_plain: found } = listen(text) else { panic!("{text}") };
            assert_eq!((address.port(), found), (7070, is_plain), "{text}");
            assert_eq!(listen(text).is_plain(), is_plain);
        }
        assert!(listen("unix:/a").is_plain());
        let told = "https://:7070".parse::<Listen>().expect_err("another scheme");
        assert!(told.starts_with("leave https:// out"), "{told}");
    }

    #[test]
    fn a_unix_socket_has_a_path_and_may_name_who_connects() {
        let plain = unix("unix:/run/a.sock");
        assert_eq!((plain.path.to_str(), plain.mode), (Some("/run/a.sock"), 0o660));
        assert_eq!((plain.user, plain.group), (None, None));
        assert_eq!(unix("unix:///run/a.sock").path, Path::new("/run/a.sock"));
        let whole = unix("unix:/run/a.sock?mode=600&user=rejoin&group=33");
        assert_eq!(
            (whole.mode, whole.user.as_deref(), whole.group.as_deref()),
            (0o600, Some("rejoin"), Some("33"))
        );
        assert_eq!(listen("unix:/run/a.sock?mode=0666").to_string(), "unix:/run/a.sock");
        let long = format!("unix:/{}", "a".repeat(MAX_PATH_BYTES));
        for wrong in [
            "unix:",
            "unix:a.sock",
            "unix:/run/",
            "unix:/a?mode=0o660",
            "unix:/a?mode=1777",
            "unix:/a?mode=rw",
            "unix:/a?group=",
            "unix:/a?owner=b",
            &long,
        ] {
            assert!(wrong.parse::<Listen>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn two_listeners_clash_if_one_address_is_that_of_the_other_or_covers_it() {
        for (one, other, clash) in [
            ("127.0.0.1:1", "localhost:1", true),
            ("127.0.0.1:1", "http://127.0.0.1:1", true),
            (":1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("127.0.0.1:1", "[::1]:1", false),
            ("unix:/a", "unix:///a?mode=600", true),
            ("unix:/a", "unix:/b", false),
            ("unix:/a", ":1", false),
        ] {
            assert_eq!(listen(one).clashes_with(&listen(other)), clash, "{one} {other}");
            assert_eq!(listen(other).clashes_with(&listen(one)), clash, "{other} {one}");
        }
    }
}
