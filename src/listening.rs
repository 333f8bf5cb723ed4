//! The listening socket, and the greeting that says where it is.

use std::{
    io::{self, IsTerminal, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    thread,
};

use rejoin::{Config, config::LogKind};
use tokio::net::{TcpListener, TcpSocket};

/// How many connections may wait to be accepted, as far as the system allows (`net.core.somaxconn`). When a
/// server comes back, all its clients reconnect at once; a client that finds the queue full tries again a
/// second later.
const BACKLOG: u32 = 65_535;

/// # Errors
/// If the address is not free, or not of this machine.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    bind(address)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Without this, connections of a server that has just ended would keep the address in use.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Logs the address, and prints on a terminal the commands with which the server can be tried.
pub fn greet(address: SocketAddr, config: &Config) {
    let log = match &config.log {
        LogKind::Memory => "memory".to_owned(),
        LogKind::Redis(redis) => format!("redis {redis}"),
    };
    tracing::info!(%address, log, version = env!("CARGO_PKG_VERSION"), "listening");
    let is_open = config.authority().is_open();
    if is_open && !address.ip().is_loopback() {
        tracing::warn!(
            "--insecure-open: every client that reaches this address may publish and subscribe, \
             under an address, or under a name that --allowed-host lists"
        );
    }
    if config.has_short_secret() {
        tracing::warn!("--jwt-secret has less than 32 bytes and can be guessed: use it only for development");
    }
    if io::stdout().is_terminal() {
        print(greeting(address, is_open));
    }
}

/// The commands are for a person. Programs read the log.
fn greeting(address: SocketAddr, is_open: bool) -> String {
    let url = reachable(address);
    if !is_open {
        // No topic can be named here: each client may use those that it is granted.
        return format!(
            "Rejoin listens on http://{address}\n\n  \
             look     http://{url}/#topic=TOPIC&token=TOKEN\n\n"
        );
    }
    format!(
        "Rejoin listens on http://{address}\n\n  \
         listen   curl -N -H 'Accept: text/event-stream' http://{url}/topics/demo\n  \
         publish  curl -d 'hello' http://{url}/topics/demo\n  \
         look     http://{url}/\n\n"
    )
}

/// Prints on a thread of its own, because a terminal may be stopped. A failure is ignored, because the log has the
/// address too.
fn print(greeting: String) {
    let print = move || drop(io::stdout().write_all(greeting.as_bytes()));
    drop(thread::Builder::new().spawn(print));
}

/// The address under which this machine can reach the server: a client cannot connect to "all addresses".
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greeting_names_an_address_that_can_be_connected_to() {
        for (listen, url) in [
            ("127.0.0.1:7070", "http://127.0.0.1:7070/"),
            ("0.0.0.0:7070", "http://127.0.0.1:7070/"),
            ("[::]:7070", "http://[::1]:7070/"),
        ] {
            let greeting = greeting(listen.parse().expect("an address"), true);
            assert!(greeting.lines().skip(2).take(3).all(|line| line.contains(url)), "{listen}: {greeting}");
        }
    }

    #[test]
    fn the_greeting_shows_only_commands_that_the_server_accepts() {
        let greeting = |is_open| greeting("127.0.0.1:7070".parse().expect("an address"), is_open);
        assert!(greeting(true).contains("curl -d 'hello'") && !greeting(true).contains("TOKEN"));
        let closed = greeting(false);
        assert!(!closed.contains("demo") && closed.contains("7070/#topic=TOPIC&token=TOKEN"), "{closed}");
    }
}
