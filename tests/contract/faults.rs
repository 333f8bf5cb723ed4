//! A process in trouble: pipes that nobody reads, signals at any time, and a system that gives too little.

use std::{
    fs::File,
    io::{ErrorKind, PipeReader, PipeWriter, Read, Write, pipe},
    net::SocketAddr,
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, fcntl_setfl, mknodat, open},
    process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::{Child, Command},
    time::sleep,
};

use crate::{
    ask::{Ask, get, publish, within},
    metrics::scrape,
    process::{serving, until_listening},
    support::{
        Server,
        program::{Folder, Program},
        redis::free_port,
    },
};

pub const REJOIN: &str = env!("CARGO_BIN_EXE_rejoin");
const RETRY: Duration = Duration::from_millis(10);

/// A pipe that takes no byte more, as the pipe of a process that has stopped reading its logs.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().expect("a pipe");
    fcntl_setfl(&writer, OFlags::NONBLOCK).expect("a pipe");
    let error = loop {
        if let Err(error) = writer.write(&[b'x'; 100]) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    while writer.write(b"x").is_ok() {}
    fcntl_setfl(&writer, OFlags::empty()).expect("a pipe");
    (reader, writer)
}

pub fn rejoin(arguments: &[&str]) -> Command {
    let mut command = Command::new(REJOIN);
    command.env_clear().args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

fn pid(child: &Child) -> Pid {
    let id = child.id().expect("it runs").try_into().expect("a process id");
    Pid::from_raw(id).expect("not zero")
}

fn send(child: &Child, signal: Signal) {
    kill_process(pid(child), signal).expect("it runs");
}

async fn ended(mut child: Child) -> ExitStatus {
    within("the end of the process", child.wait()).await.expect("it ends")
}

/// Variables that are no settings. The log warns of each, and their lines together are too long to wait for a reader.
fn much_to_log() -> impl Iterator<Item = (String, &'static str)> {
    (0..15).map(|number| (format!("REJOIN_{number}_{}", "X".repeat(30_000)), "x"))
}

/// At the default level, one line a minute was enough: the accept loop waited for the pipe, no new connection was
/// answered, and SIGTERM did nothing.
#[tokio::test]
async fn a_full_pipe_does_not_stop_the_server_nor_hold_up_its_end() {
    for is_read_again in [true, false] {
        let (mut reader, writer) = full_pipe();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = rejoin(&["--listen", &address.to_string(), "--drain-grace", "2s"]);
        let child = command.envs(much_to_log()).stderr(writer).spawn().expect("it starts");
        drop(command);
        let server = Server::elsewhere(address);
        until_listening(&server).await;
        for _ in 0..3 {
            // Each is a new connection.
            assert_eq!(get(&server, "/health/live").answer().await.status, 200);
        }
        publish(&server, "a", "x").await;
        let series = scrape(&server).await;
        assert!(series["rejoin_log_lines_dropped_total{reason=\"not_taken\"}"] > 0.0, "{series:?}");
        if is_read_again {
            let told = tokio::task::spawn_blocking(move || {
                let (mut told, mut bytes) = (Vec::new(), vec![0; 1 << 16]);
                while !String::from_utf8_lossy(&told).contains("log lines dropped: standard error took none")
                {
                    let count = reader.read(&mut bytes).expect("a pipe");
                    assert!(count > 0, "it has ended: {}", String::from_utf8_lossy(&told));
                    told.extend_from_slice(&bytes[..count]);
                }
                reader
            });
            reader = within("the number of dropped lines", told).await.expect("it is told");
        }
        send(&child, Signal::TERM);
        assert_eq!(ended(child).await.code(), Some(0), "{is_read_again}");
        drop(reader);
    }
}

#[tokio::test]
async fn an_access_log_that_nobody_reads_holds_up_nothing_and_its_lines_are_counted() {
    let (reader, writer) = full_pipe();
    let (child, server) = serving(&["--access-log", "json"], writer.into(), Stdio::null());
    until_listening(&server).await;
    let dropped = "rejoin_log_lines_dropped_total{reason=\"access\"}";
    // More than waits in memory.
    let long = format!("/{}", "x".repeat(1_900));
    while scrape(&server).await[dropped] == 0.0 {
        for _ in 0..40 {
            assert_eq!(get(&server, &long).answer().await.status, 404);
        }
    }
    publish(&server, "a", "x").await;
    send(&child, Signal::TERM);
    assert_eq!(ended(child).await.code(), Some(0));
    drop(reader);
}

/// A print that failed was once a panic, whose exit code means nothing, and one to a full pipe never ended.
#[tokio::test]
async fn an_error_has_its_exit_code_even_if_it_cannot_be_printed() {
    let full_disk = || File::options().write(true).open("/dev/full").expect("a device");
    for (arguments, code) in [
        (&["--retain-age=soon"][..], 2),
        (&["--no-such-flag"], 2),
        (&["config", "--retain-age=soon"], 2),
        (&["--listen=127.0.0.1:0", "--state=/nowhere/at/all"], 1),
    ] {
        let (full_reader, full_writer) = full_pipe();
        let (gone_reader, gone_writer) = pipe().expect("a pipe");
        drop(gone_reader);
        for stderr in [Stdio::from(full_writer), gone_writer.into(), full_disk().into()] {
            let child = rejoin(arguments).stderr(stderr).spawn().expect("it starts");
            assert_eq!(ended(child).await.code(), Some(code), "{arguments:?}");
        }
        drop(full_reader);
    }
}

/// Opens the other end of a pipe in the file system, once the process reads it.
async fn writer_of(path: &str) -> File {
    let opened = async {
        loop {
            match open(path, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()) {
                Ok(writer) => return File::from(writer),
                Err(_) => sleep(RETRY).await,
            }
        }
    };
    within("a reader of the pipe", opened).await
}

fn make_pipe(path: &str) {
    mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).expect("a pipe");
}

#[tokio::test]
async fn signals_are_heard_while_the_configuration_is_read() {
    let folder = Folder::new();
    let path = folder.path("rejoin.toml");
    make_pipe(&path);
    let child = rejoin(&["--config", &path]).spawn().expect("it starts");
    let _writer = writer_of(&path).await;
    for signal in [Signal::HUP, Signal::USR1, Signal::TERM] {
        send(&child, signal);
    }
    assert_eq!(ended(child).await.code(), Some(0));
}

/// It once waited 30 s for the file, and heard no signal meanwhile.
#[tokio::test]
async fn signals_are_heard_while_another_process_uses_the_state_file() {
    let folder = Folder::new();
    let path = folder.path("state");
    let first = Program::start(&["--state", &path]).await;
    let id = publish(&first.server, "a", "x").await;
    let mut second = rejoin(&["--listen", "127.0.0.1:0", "--state", &path]).spawn().expect("it starts");
    let mut log = second.stderr.take().expect("a pipe");
    within("the second process to wait", until_read(&mut log, "waiting for it")).await;
    for signal in [Signal::HUP, Signal::TERM] {
        send(&second, signal);
    }
    within("the reason of its end", until_read(&mut log, "ended before it served")).await;
    assert_eq!(ended(second).await.code(), Some(0));
    assert_eq!(first.terminate().await.code, Some(0));
    let third = Program::start(&["--state", &path]).await;
    assert_eq!(messages_after(&third.server, &before(&id)).await, [id], "the second has changed nothing");
}

#[tokio::test]
async fn a_reload_that_is_asked_for_during_the_start_comes_after_it() {
    let folder = Folder::new();
    let path = folder.path("state");
    let first = Program::start(&["--state", &path]).await;
    let mut second = rejoin(&["--listen", "127.0.0.1:0", "--state", &path]).spawn().expect("it starts");
    let mut log = second.stderr.take().expect("a pipe");
    within("the second process to wait", until_read(&mut log, "waiting for it")).await;
    send(&second, Signal::HUP);
    first.terminate().await;
    within(
        "the reload",
        until_read(&mut log, "keys, grants, [[retain]], allowed origins and hosts reloaded"),
    )
    .await;
}

async fn until_read(from: &mut (impl tokio::io::AsyncRead + Unpin), text: &str) {
    use tokio::io::AsyncReadExt;
    let (mut read, mut bytes) = (String::new(), [0; 1024]);
    while !read.contains(text) {
        let count = from.read(&mut bytes).await.expect("text");
        assert!(count > 0, "it has ended: {read}");
        read += &String::from_utf8_lossy(&bytes[..count]);
    }
}

fn before(id: &str) -> String {
    (id.parse::<u64>().expect("an id") - 1).to_string()
}

/// The ids of a poll, which has no gap.
async fn messages_after(server: &Server, cursor: &str) -> Vec<String> {
    let page = get(server, &format!("/topics/a?wait=0&after={cursor}")).answer().await.json();
    assert!(page.get("gaps").is_none(), "{page}");
    let ids = page["messages"].as_array().expect("an array").iter().map(|message| &message["id"]);
    ids.map(|id| id.as_str().expect("an id").to_owned()).collect()
}

#[tokio::test]
async fn a_signal_ends_the_server_in_order_or_not_at_all() {
    let folder = Folder::new();
    let arguments = ["--state", &folder.path("state")];
    let mut program = Program::start(&arguments).await;
    let first = publish(&program.server, "a", "x").await;
    let mut ids = vec![first.clone()];
    let meaningless = [
        Signal::USR1,
        Signal::USR2,
        Signal::ALARM,
        Signal::VTALARM,
        Signal::PROF,
        Signal::IO,
        Signal::PIPE,
        Signal::XFSZ,
        Signal::HUP,
    ];
    for signal in meaningless {
        kill_process(program.pid(), signal).expect("it runs");
        ids.push(publish(&program.server, "a", "x").await);
    }
    let real_time = Command::new("kill").args(["-40", &program.pid().to_string()]).status().await;
    assert!(real_time.expect("kill runs").success());
    ids.push(publish(&program.server, "a", "x").await);
    for signal in [Signal::INT, Signal::QUIT, Signal::XCPU, Signal::TERM] {
        kill_process(program.pid(), signal).expect("it runs");
        let ended = program.ended().await;
        assert_eq!(ended.code, Some(0), "{signal:?}: {ended:?}");
        program = Program::start(&arguments).await;
        assert_eq!(messages_after(&program.server, &before(&first)).await, ids, "{signal:?}");
    }
}

/// The system sends SIGXCPU each second once the time of the processor is used up. The second one cut connections and
/// left the state file two seconds.
#[tokio::test]
async fn a_signal_that_the_system_repeats_does_not_hurry_the_end() {
    let mut program = Program::start(&["--drain-grace", "1h"]).await;
    let mut request = TcpStream::connect(program.server.addr).await.expect("a connection");
    let head =
        "POST /topics/a HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n";
    request.write_all(head.as_bytes()).await.expect("sent");
    request.read_exact(&mut [0; 12]).await.expect("it waits for the body");
    kill_process(program.pid(), Signal::XCPU).expect("it runs");
    program.until_logged("received a signal").await;
    kill_process(program.pid(), Signal::XCPU).expect("it runs");
    kill_process(program.pid(), Signal::TERM).expect("it runs");
    let ended = program.ended().await;
    let another: Vec<_> = ended.log.lines().filter(|line| line.contains("another signal")).collect();
    assert!(another.len() == 1 && another[0].contains("SIGTERM"), "{ended:?}");
}

/// The end once waited for every thread of the runtime: one that looked up a name held it up for 44 s.
#[tokio::test]
async fn a_thread_that_waits_for_ever_does_not_hold_up_the_end() {
    let folder = Folder::new();
    let (path, state) = (folder.path("rejoin.toml"), folder.path("state"));
    std::fs::write(&path, "").expect("a file");
    let program = Program::start(&["--config", &path, "--state", &state]).await;
    let id = publish(&program.server, "a", "x").await;
    std::fs::remove_file(&path).expect("a file");
    make_pipe(&path);
    program.send_sighup();
    let _writer = writer_of(&path).await;
    let ended = within("the end of the process", program.terminate()).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let program = Program::start(&["--state", &state]).await;
    assert_eq!(messages_after(&program.server, &before(&id)).await, [id]);
}

/// The system once ended the process by SIGXFSZ in the middle of the write.
#[tokio::test]
async fn a_state_file_that_cannot_be_written_has_its_own_exit_code() {
    let folder = Folder::new();
    let arguments = ["--state", &folder.path("state")];
    let program = Program::start(&arguments).await;
    let id = publish(&program.server, "a", &"x".repeat(100_000)).await;
    let limit = Rlimit { current: Some(10_000), maximum: Some(10_000) };
    prlimit(Some(program.pid()), Resource::Fsize, limit).expect("it runs");
    let ended = program.terminate().await;
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.log.contains("error: --state "), "{ended:?}");
    let program = Program::start(&arguments).await;
    let page = get(&program.server, &format!("/topics/a?wait=0&after={}", before(&id))).answer().await.json();
    assert_eq!(page["gaps"][0]["reason"], "restarted", "{page}");
}

/// Starts the program under a limit that the shell sets, and returns how it ended and what it has told.
async fn under(limit: &str) -> (ExitStatus, String) {
    let mut command = Command::new("sh");
    let script = format!("{limit}; exec \"$0\" --listen 127.0.0.1:0");
    command.env_clear().args(["-c", &script, REJOIN]).kill_on_drop(true);
    if rustix::process::getuid().is_root() {
        // The limit of processes does not count for root.
        command.uid(65_533);
    }
    let output = within(limit, command.output()).await.expect("it runs");
    (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// With too few threads a server once panicked, or neither served nor ended.
#[tokio::test]
async fn a_system_that_gives_too_little_is_an_error_at_the_start() {
    for (limit, told) in [
        // Shells disagree about the letter.
        ("ulimit -u 1 2> /dev/null || ulimit -p 1", "error: cannot start "),
        ("ulimit -n 16", "error: the limit of file descriptors is 16, "),
        ("ulimit -v 100000", "error: the limit of memory is 102400000 bytes, "),
    ] {
        let (status, log) = under(limit).await;
        assert_eq!((status.code(), status.signal()), (Some(1), None), "{limit}: {log}");
        assert!(log.contains(told) && !log.contains("panicked"), "{limit}: {log}");
    }
}

#[tokio::test]
async fn more_retention_than_memory_is_warned_of() {
    let of_memory = "--retain-total is more than three quarters of the memory";
    for (retain_total, is_warned) in [("900TiB", true), ("16MiB", false)] {
        let program = Program::start(&["--retain-total", retain_total]).await;
        let ended = program.terminate().await;
        assert_eq!(ended.log.contains(of_memory), is_warned, "{ended:?}");
    }
}
