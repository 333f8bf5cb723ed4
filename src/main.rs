//! The program: parse everything, bind, serve, drain.

mod cli;
mod logging;
mod reload;

use std::{
    fs,
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    process::ExitCode,
    sync::Arc,
};

use clap::Parser;
use rejoin::{
    Config, Drained, Server, Shutdown,
    config::{Flags, LogKind, Settings},
};
use tokio::{
    net::{TcpListener, TcpSocket},
    signal::unix::{SignalKind, signal},
};

use self::reload::Sources;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Free memory goes back to the system in the background, also while the server is idle.
#[expect(unsafe_code, reason = "the allocator looks for a symbol of this name")]
#[unsafe(export_name = "malloc_conf")]
static MALLOC_CONF: &[u8] = b"background_thread:true,dirty_decay_ms:3000,muzzy_decay_ms:3000\0";

/// How many connections may wait to be accepted, as far as the system allows (`net.core.somaxconn`). When a
/// server comes back, all its clients reconnect at once; a client that finds the queue full tries again a
/// second later.
const BACKLOG: u32 = 65_535;

const UNKNOWN_VARIABLE: &str = "there is no setting of this name; the variable is ignored";

fn main() -> ExitCode {
    match cli::Cli::parse().into_command() {
        cli::Command::Serve(flags) => {
            let mut sources = Sources::default();
            settings(&flags, |path| sources.read(path))
                .map_or_else(|code| code, |settings| serve(flags, settings, sources))
        }
        cli::Command::Config(flags) => settings(&flags, |path| fs::read_to_string(path))
            .map_or_else(|code| code, |settings| show(&settings)),
        cli::Command::Pub(publish) => cli::run(publish.run()),
        cli::Command::Sub(subscribe) => cli::run(subscribe.run()),
        cli::Command::Key(key) => key.run().report(),
        cli::Command::Token(token) => settings(&token.flags(), |path| fs::read_to_string(path))
            .map_or_else(|code| code, |settings| token.run(&settings.config.authority()).report()),
        cli::Command::Bench(bench) => cli::run(bench.run()),
        cli::Command::Completions(completions) => completions.run().report(),
    }
}

/// Checks all settings before the server binds anything, and reports all mistakes at once.
fn settings(flags: &Flags, read: impl FnMut(&Path) -> std::io::Result<String>) -> Result<Settings, ExitCode> {
    Settings::read(flags, |name| std::env::var_os(name), read).map_err(|mistakes| {
        mistakes.iter().for_each(|mistake| eprintln!("error: {mistake}"));
        ExitCode::from(2)
    })
}

fn show(settings: &Settings) -> ExitCode {
    for name in rejoin::config::unknown_variables() {
        eprintln!("warning: {name}: {UNKNOWN_VARIABLE}");
    }
    cli::print(settings.show()).report()
}

fn serve(flags: Flags, settings: Settings, sources: Sources) -> ExitCode {
    logging::start(settings.config.log_level);
    for name in rejoin::config::unknown_variables() {
        tracing::warn!(name, "{UNKNOWN_VARIABLE}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(run(flags, settings, sources))) {
        Ok(Drained::Completely) => ExitCode::SUCCESS,
        Ok(Drained::Partly(left)) => {
            tracing::warn!(
                connections = left,
                "ended with connections open: the shutdown grace expired, or a second signal came"
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(flags: Flags, settings: Settings, sources: Sources) -> std::io::Result<Drained> {
    let config = Arc::new(settings.config.clone());
    let shutdown = Shutdown::new();
    // The handler is ready before the server reports that it listens, so no signal ends the process out of
    // order.
    tokio::spawn(end_on_signal(shutdown.clone())?);
    raise_descriptor_limit();
    let listener = listen(config.listen).map_err(|error| {
        std::io::Error::new(error.kind(), format!("cannot listen on {}: {error}", config.listen))
    })?;
    let server = Server::start(config.clone(), shutdown).await?;
    greet(listener.local_addr()?, &config);
    let app = server.app().clone();
    tokio::select! {
        served = server.serve(listener) => served,
        Err(error) = reload::follow(&app, flags, settings, sources) => Err(error),
        never = logging::report_dropped_lines() => never,
    }
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Without this, connections of a server that has just ended would keep the address in use.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Logs the address, and prints commands with which the server can be tried.
fn greet(address: SocketAddr, config: &Config) {
    let log = match &config.log {
        LogKind::Memory => "memory".to_owned(),
        LogKind::Redis(redis) => format!("redis {redis}"),
    };
    tracing::info!(%address, log, version = env!("CARGO_PKG_VERSION"), "listening");
    let is_open = config.authority().is_open();
    if is_open && !address.ip().is_loopback() {
        tracing::warn!(
            "--insecure-open: every client that reaches this address may publish and subscribe, \
             if its Host is a loopback name or the host of an --allowed-origin"
        );
    }
    let url = reachable(address);
    let shown = if is_open { "" } else { " -H 'Authorization: Bearer TOKEN'" };
    let greeting = format!(
        "Rejoin listens on http://{address}\n\n  \
         listen   curl -N{shown} -H 'Accept: text/event-stream' http://{url}/topics/demo\n  \
         publish  curl{shown} -d 'hello' http://{url}/topics/demo\n  \
         look     http://{url}/\n\n"
    );
    // A failure is ignored, because the log has the address too.
    let _ = std::io::stdout().write_all(greeting.as_bytes());
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

/// Each connection needs a descriptor, so take as many as the system gives.
fn raise_descriptor_limit() {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => tracing::debug!(limit, "file descriptors"),
        Err(error) => tracing::warn!(%error, "cannot raise the limit of file descriptors"),
    }
}

/// The first signal begins a drain; the second ends the server at once.
fn end_on_signal(shutdown: Shutdown) -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        for end in [Shutdown::drain, Shutdown::end] {
            let signal = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            match shutdown.is_draining() {
                false => tracing::info!(signal, "received a signal: draining"),
                true => tracing::warn!(signal, "received another signal: ending at once"),
            }
            end(&shutdown);
        }
    })
}
