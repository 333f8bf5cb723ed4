//! The program as a process: what it prints when it starts, and how signals end it.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
};

use crate::{
    ask::{Ask, get, publish, within},
    reader::Socket,
    support::{Server, program::Program, redis::free_port},
};

/// `script` gives the program a terminal, on which Ctrl-C ends it. `timeout` ends it if the test fails before that.
/// `exec` leaves no shell behind that Ctrl-C would end too.
#[tokio::test]
async fn the_greeting_is_for_a_terminal_and_a_pipe_gets_none() {
    let serve = format!("exec timeout --foreground 60 {} --listen 127.0.0.1:0", env!("CARGO_BIN_EXE_rejoin"));
    let mut greeted = Command::new("script")
        .args(["--quiet", "--return", "--command", &serve, "/dev/null"])
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("util-linux has it");
    let mut keys = greeted.stdin.take().expect("a pipe");
    let mut shown = BufReader::new(greeted.stdout.take().expect("a pipe")).lines();
    let until_greeted = async {
        while !shown.next_line().await.expect("text").expect("a line").contains("Rejoin listens on http://") {
        }
    };
    within("the greeting", until_greeted).await;
    keys.write_all(b"\x03").await.expect("sent");
    let until_closed = async { while let Ok(Some(_)) = shown.next_line().await {} };
    within("the end of the output", until_closed).await;
    assert!(within("the end", greeted.wait()).await.expect("it ends").success());

    let program = Program::start(&[]).await;
    publish(&program.server, "a", "x").await;
    let ended = program.terminate().await;
    assert_eq!(ended.out, "", "{ended:?}");
}

#[tokio::test]
async fn a_server_that_cannot_serve_does_not_greet() {
    let output = Command::new(env!("CARGO_BIN_EXE_rejoin"))
        .args(["--listen", "127.0.0.1:0", "--state", "/nowhere/at/all"])
        .output()
        .await
        .expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("error: --state /nowhere/at/all: "), "{told}");
    assert_eq!(output.stdout, b"");
}

/// The log used to say that the grace was over, although most of it was left.
#[tokio::test]
async fn a_second_signal_ends_at_once_and_the_log_says_so() {
    let mut program = Program::start(&["--drain-grace", "1h"]).await;
    let mut request = TcpStream::connect(program.server.addr).await.expect("a connection");
    let head =
        "POST /topics/a HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n";
    request.write_all(head.as_bytes()).await.expect("sent");
    let mut answer = [0; 12];
    request.read_exact(&mut answer).await.expect("it waits for the body");
    assert_eq!(&answer, b"HTTP/1.1 100");

    program.send_sigterm();
    program.until_logged("\"draining\"").await;
    program.send_sigterm();
    let ended = program.ended().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.log.contains("ending at once"), "{ended:?}");
    assert!(!ended.log.contains("grace was over"), "{ended:?}");
}

#[tokio::test]
async fn the_log_line_names_the_store_without_credentials() {
    for (arguments, kept) in [
        (&[][..], r#""log":"memory""#),
        // There is no Redis at this address, so the server waits for it.
        (&["--log", "redis://me:hush@127.0.0.1:1/0"], r#""log":"redis "#),
    ] {
        let mut program = Program::start(arguments).await;
        program.until_logged("\"listening\"").await;
        let ended = program.terminate().await;
        assert!(ended.log.contains(kept) && !ended.log.contains("hush"), "{ended:?}");
    }
}

/// A file on a full disk: every write to it fails.
fn full() -> Stdio {
    std::fs::File::options().write(true).open("/dev/full").expect("a device").into()
}

/// A server on a free port, which it cannot tell if its log is lost.
pub fn serving(arguments: &[&str], stdout: Stdio, stderr: Stdio) -> (Child, Server) {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let child = Command::new(env!("CARGO_BIN_EXE_rejoin"))
        .env_clear()
        .args(["--listen", &address.to_string()])
        .args(arguments)
        .stdout(stdout)
        .stderr(stderr)
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    (child, Server::elsewhere(address))
}

/// Resolves once the server accepts connections.
pub async fn until_listening(server: &Server) {
    let trying = async {
        while TcpStream::connect(server.addr).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("the server to listen", trying).await;
}

/// A greeting that could not be printed once caused a panic.
#[tokio::test]
async fn a_full_disk_for_logs_stops_nothing() {
    for is_log_full in [true, false] {
        let (stdout, stderr) = if is_log_full { (Stdio::null(), full()) } else { (full(), Stdio::null()) };
        let (_child, server) = serving(&["--log-level", "trace", "--access-log", "combined"], stdout, stderr);
        until_listening(&server).await;
        publish(&server, "a", "x").await;
        assert_eq!(get(&server, "/health/ready").answer().await.status, 200, "{is_log_full}");
    }
}

#[tokio::test]
async fn a_closed_output_is_no_panic() {
    for arguments in [&["config"][..], &["--help"], &["completions", "bash"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_rejoin")).args(arguments).stdout(full()).output().await;
        let output = output.expect("it runs");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() != Some(101) && !told.contains("panicked"), "{arguments:?}: {told}");
    }
}

#[tokio::test]
async fn all_clients_can_reconnect_at_once() {
    let most = std::fs::read_to_string("/proc/sys/net/core/somaxconn")
        .ok()
        .and_then(|most| most.trim().parse().ok());
    let program = Program::start(&[]).await;
    rustix::process::kill_process(program.pid(), rustix::process::Signal::STOP).expect("it runs");
    let mut connections = Vec::new();
    for _ in 0..most.unwrap_or(128).min(1_000) {
        let connection = TcpStream::connect(program.server.addr);
        connections.push(within("room for a connection", connection).await.expect("a connection"));
    }
    rustix::process::kill_process(program.pid(), rustix::process::Signal::CONT).expect("it runs");
    assert_eq!(get(&program.server, "/health/live").answer().await.status, 200);
}

/// A laptop was suspended, or a container paused. The server then dropped every WebSocket, because it had heard
/// nothing for two heartbeats.
#[tokio::test]
async fn a_stopped_server_does_not_blame_its_clients() {
    let program = Program::start(&["--heartbeat", "1s"]).await;
    let mut socket = Socket::open(&program.server, "/topics/a").await;
    let stop = async {
        rustix::process::kill_process(program.pid(), rustix::process::Signal::STOP).expect("it runs");
        tokio::time::sleep(Duration::from_secs(4)).await;
        rustix::process::kill_process(program.pid(), rustix::process::Signal::CONT).expect("it runs");
    };
    let answer_pings = async {
        let mut pings = 0;
        while pings < 4 {
            pings += u32::from(socket.next_message().await.is_ping());
        }
    };
    tokio::join!(stop, answer_pings);
}
