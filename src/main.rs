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

/// What is free goes back to the system, also when nothing happens that would find it.
#[unsafe(export_name = "malloc_conf")]
static MALLOC_CONF: &[u8] = b"background_thread:true,dirty_decay_ms:3000,muzzy_decay_ms:3000\0";

/// How many connections may wait to be accepted, as far as the system allows (`net.core.somaxconn`): when a
/// server comes back all its clients do, and one for whom there is no room tries again a second later.
const BACKLOG: u32 = 65_535;

const UNKNOWN_VARIABLE: &str = "there is no setting of this name, so the variable says nothing";

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

/// Everything is checked before anything is bound, and all that is wrong is told at once.
fn settings(flags: &Flags, read: impl FnMut(&Path) -> std::io::Result<String>) -> Result<Settings, ExitCode> {
    Settings::read(flags, |name| std::env::var(name).ok(), read).map_err(|mistakes| {
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
            tracing::warn!(connections = left, "ended before all had left");
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
    // Before it says that it is there, so that nobody ends it out of order.
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
        never = logging::tell_what_is_left_out() => never,
    }
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A server that ended a moment ago must not keep the next one from its address.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Says where the server is, and what to type to see it work.
fn greet(address: SocketAddr, config: &Config) {
    let log = match &config.log {
        LogKind::Memory => "memory".to_owned(),
        LogKind::Redis(redis) => format!("redis {redis}"),
    };
    tracing::info!(%address, log, version = env!("CARGO_PKG_VERSION"), "listening");
    let is_open = config.authority().is_open();
    if is_open && !address.ip().is_loopback() {
        tracing::warn!(
            "--insecure-open: whoever reaches this address may publish and subscribe, \
             with a Host that is a loopback name or the host of an --allowed-origin"
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
    // Whether anybody reads it or not: the log has it too.
    let _ = std::io::stdout().write_all(greeting.as_bytes());
}

/// Where it can be reached from this machine: nobody can connect to all addresses at once.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// Each connection is a descriptor: take as many as the system gives.
fn raise_descriptor_limit() {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => tracing::debug!(limit, "file descriptors"),
        Err(error) => tracing::warn!(%error, "cannot raise the limit of file descriptors"),
    }
}

/// The first signal asks everybody to leave; the second does not wait for it.
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
                false => tracing::info!(signal, "asked to end"),
                true => tracing::warn!(signal, "asked to end at once"),
            }
            end(&shutdown);
        }
    })
}
