//! The greeting, which says where the server listens.

use std::{
    io::{self, IsTerminal, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    thread,
};

use rejoin::{
    Config, Listeners,
    config::{Listen, LogKind},
    http::Serves,
};

/// Logs each address, and prints on a terminal the commands with which the server can be tried.
///
/// # Errors
/// If the system does not know a socket any more.
pub fn greet(listeners: &Listeners, config: &Config) -> io::Result<()> {
    let log = match &config.log {
        LogKind::Memory => "memory".to_owned(),
        LogKind::Redis(redis) => format!("redis {redis}"),
    };
    let speaks_tls = config.speaks_tls();
    let listens = listeners.iter().map(|one| Ok((plain_unless(speaks_tls, one.address()?), one.serves())));
    let listens: Vec<_> = listens.collect::<io::Result<_>>()?;
    for (address, serves) in &listens {
        let serves = if *serves == Serves::Public { "public" } else { "everything" };
        let (url, log, version) = (url(address), &log, env!("CARGO_PKG_VERSION"));
        tracing::info!(%address, url, serves, log, version, "listening");
    }
    let is_open = config.authority().is_open();
    if is_open && listens.iter().any(|(address, _)| !address.is_loopback()) {
        tracing::warn!(
            "--insecure-open: every client that reaches this address may publish and subscribe, \
             under an address, or under a name that --allowed-host lists"
        );
    }
    if config.has_short_secret() {
        tracing::warn!("--jwt-secret has less than 32 bytes and can be guessed: use it only for development");
    }
    if io::stdout().is_terminal() {
        print(greeting(&listens, is_open));
    }
    Ok(())
}

/// The same address. If the server speaks no TLS, each of them is plain.
fn plain_unless(speaks_tls: bool, listen: Listen) -> Listen {
    match listen {
        Listen::Tcp { address, is_plain } => Listen::Tcp { address, is_plain: is_plain || !speaks_tls },
        unix => unix,
    }
}

/// The commands are for a person. Programs read the log.
fn greeting(listens: &[(Listen, Serves)], is_open: bool) -> String {
    let mut greeting = String::new();
    for (listen, serves) in listens {
        let what = match serves {
            Serves::Everything => "",
            Serves::Public => ", without the routes of operators",
        };
        greeting += &format!("Rejoin listens on {}{what}\n", url(listen));
    }
    greeting += "\n";
    let public = &listens[0].0;
    let for_operators =
        listens.iter().find(|(_, serves)| *serves == Serves::Everything).map(|(listen, _)| listen);
    // No topic can be named if there are credentials: each client may use those that it is granted.
    if is_open {
        let (read, write) = (curl(public, "-N -H 'Accept: text/event-stream'"), curl(public, "-d 'hello'"));
        greeting += &format!("  listen   {read}/topics/demo\n  publish  {write}/topics/demo\n");
    }
    // A browser opens no Unix socket.
    if let Some(Listen::Tcp { address, is_plain }) = for_operators {
        let part = if is_open { "" } else { "#topic=TOPIC&token=TOKEN" };
        greeting += &format!("  look     {}://{}/{part}\n", scheme(*is_plain), reachable(*address));
    }
    greeting + "\n"
}

fn scheme(is_plain: bool) -> &'static str {
    if is_plain { "http" } else { "https" }
}

/// The address as it is given to a client.
fn url(listen: &Listen) -> String {
    match listen {
        Listen::Tcp { address, is_plain } => format!("{}://{address}", scheme(*is_plain)),
        Listen::Unix(_) => listen.to_string(),
    }
}

/// A command of curl up to the path.
fn curl(listen: &Listen, options: &str) -> String {
    match listen {
        Listen::Tcp { address, is_plain } => {
            format!("curl {options} {}://{}", scheme(*is_plain), reachable(*address))
        }
        Listen::Unix(socket) => {
            format!("curl {options} --unix-socket '{}' http://localhost", socket.path.display())
        }
    }
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

    fn greeted(listens: &[(&str, Serves)], is_open: bool) -> String {
        let parsed = |text: &str| plain_unless(false, text.parse().expect("an address"));
        let listens: Vec<_> = listens.iter().map(|(text, serves)| (parsed(text), *serves)).collect();
        greeting(&listens, is_open)
    }

    #[test]
    fn the_greeting_names_an_address_that_can_be_connected_to() {
        for (listen, url) in [
            ("127.0.0.1:7070", "http://127.0.0.1:7070/"),
            ("0.0.0.0:7070", "http://127.0.0.1:7070/"),
            ("[::]:7070", "http://[::1]:7070/"),
        ] {
            let greeting = greeted(&[(listen, Serves::Everything)], true);
            assert!(greeting.lines().skip(2).take(3).all(|line| line.contains(url)), "{listen}: {greeting}");
        }
    }

    #[test]
    fn the_greeting_names_each_address_and_looks_where_the_console_is() {
        let all =
            [("127.0.0.1:1", Serves::Public), ("unix:/a", Serves::Public), ("[::1]:2", Serves::Everything)];
        let greeting = greeted(&all, true);
        for told in ["on http://127.0.0.1:1, without", "on unix:/a, without", "on http://[::1]:2\n"] {
            assert!(greeting.contains(told), "{told}: {greeting}");
        }
        assert!(greeting.contains("look     http://[::1]:2/\n"), "{greeting}");
        let unix = greeted(&[("unix:/a", Serves::Everything)], true);
        assert!(
            unix.contains("--unix-socket '/a' http://localhost/topics/demo") && !unix.contains("look"),
            "{unix}"
        );
    }

    #[test]
    fn the_greeting_has_https_where_tls_is_spoken() {
        let listens = ["127.0.0.1:1", "http://127.0.0.1:2"]
            .map(|text| (plain_unless(true, text.parse().expect("an address")), Serves::Everything));
        let greeting = greeting(&listens, true);
        for told in ["on https://127.0.0.1:1\n", "on http://127.0.0.1:2\n", "look     https://127.0.0.1:1/\n"]
        {
            assert!(greeting.contains(told), "{told}: {greeting}");
        }
    }

    #[test]
    fn the_greeting_shows_only_commands_that_the_server_accepts() {
        let greeting = |is_open| greeted(&[("127.0.0.1:7070", Serves::Everything)], is_open);
        assert!(greeting(true).contains("curl -d 'hello'") && !greeting(true).contains("TOKEN"));
        let closed = greeting(false);
        assert!(!closed.contains("demo") && closed.contains("7070/#topic=TOPIC&token=TOKEN"), "{closed}");
    }
}
