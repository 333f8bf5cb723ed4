//! The listening sockets of a server, and what each of them serves.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
};

use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::unix_listener::Unix;
use crate::config::{Config, Listen};

/// How many connections may wait to be accepted, as far as the system allows (`net.core.somaxconn`). When a
/// server comes back, all its clients reconnect at once; a client that finds the queue full tries again a
/// second later.
pub const BACKLOG: u16 = u16::MAX;

/// The routes that a listener has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    Everything,
    /// Everything but the routes of operators.
    Public,
}

/// A socket that accepts connections. A Unix socket removes its file when this is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    is_plain: bool,
    serves: Serves,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(Unix),
}

/// All listeners of a server.
#[derive(Debug)]
pub struct Listeners(pub(super) Vec<Listener>);

impl Listeners {
    /// Binds all that the settings name. If there is one for operators, the others serve the public alone.
    ///
    /// # Errors
    /// If one of them cannot be bound: which one, and why.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn bind(config: &Config) -> io::Result<Self> {
        let public = if config.admin_listen.is_some() { Serves::Public } else { Serves::Everything };
        let bind = |(setting, listen): (&str, &Listen)| {
            let serves = if setting == "listen" { public } else { Serves::Everything };
            Listener::bind(listen, serves).map_err(|error| {
                let remedy = remedy(listen, error.kind());
                io::Error::new(
                    error.kind(),
                    format!("cannot listen on {listen} (--{setting}): {error}{remedy}"),
                )
            })
        };
        config.listeners().map(bind).collect::<io::Result<_>>().map(Self)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Listener> {
        self.0.iter()
    }
}

impl Listener {
    fn bind(listen: &Listen, serves: Serves) -> io::Result<Self> {
        let (socket, is_plain) = match listen {
            Listen::Tcp { address, is_plain } => (Socket::Tcp(tcp(*address)?), *is_plain),
            Listen::Unix(unix) => (Socket::Unix(Unix::bind(unix)?), true),
        };
        Ok(Self { socket, is_plain, serves })
    }

    /// True if it speaks plain HTTP, also if a certificate is configured.
    pub fn is_plain(&self) -> bool {
        self.is_plain
    }

    pub fn serves(&self) -> Serves {
        self.serves
    }

    /// The address at which it listens. With port 0 that is the port that the system chose.
    ///
    /// # Errors
    /// If the system does not know the socket any more.
    pub fn address(&self) -> io::Result<Listen> {
        Ok(match &self.socket {
            Socket::Tcp(tcp) => Listen::Tcp { address: tcp.local_addr()?, is_plain: self.is_plain },
            Socket::Unix(unix) => Listen::Unix(unix.socket().clone()),
        })
    }

    /// The next connection, and the address of its peer. One of a Unix socket has none.
    ///
    /// # Cancel safety
    /// Dropping this loses no connection.
    pub(super) async fn accept(&self) -> io::Result<(TcpStream, Option<IpAddr>)> {
        match &self.socket {
            Socket::Tcp(tcp) => tcp.accept().await.map(|(socket, from)| (socket, Some(from.ip()))),
            Socket::Unix(unix) => {
                let socket = OwnedFd::from(unix.accept().await?.into_std()?);
                // The system reads and writes both kinds of socket by the same calls, so the rest of the server need
                // not know of two.
                Ok((TcpStream::from_std(socket.into())?, None))
            }
        }
    }
}

/// The words for an operator who may not have this address.
fn remedy(listen: &Listen, kind: ErrorKind) -> &'static str {
    match listen {
        Listen::Tcp { address, .. } if kind == ErrorKind::PermissionDenied && address.port() < 1024 => {
            "; a port below 1024 needs root, or the capability CAP_NET_BIND_SERVICE"
        }
        _ => "",
    }
}

fn tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Without this, connections of a server that has just ended would keep the address in use.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG.into())
}

/// A socket of the caller: it serves everything, and speaks TLS if a certificate is configured.
impl From<TcpListener> for Listener {
    fn from(tcp: TcpListener) -> Self {
        Self { socket: Socket::Tcp(tcp), is_plain: false, serves: Serves::Everything }
    }
}

impl From<TcpListener> for Listeners {
    fn from(tcp: TcpListener) -> Self {
        Self(vec![tcp.into()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_needs_a_right_is_told_which() {
        let told = |text: &str, kind| remedy(&text.parse().expect("an address"), kind);
        assert!(told(":443", ErrorKind::PermissionDenied).contains("CAP_NET_BIND_SERVICE"));
        assert_eq!(told(":443", ErrorKind::AddrInUse), "");
        assert_eq!(told(":7070", ErrorKind::PermissionDenied), "");
        assert_eq!(told("unix:/run/s", ErrorKind::PermissionDenied), "");
    }
}
