//! One run of the program: its input, its output, and how it ends.

use std::{process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::support::Server;

/// Every awaited event comes at once, or a little later on a busy machine. This turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(120);

/// The program, with the address of that server.
pub fn rejoin(server: &Server, arguments: &[&str]) -> Program {
    let mut program = Program::new(arguments);
    program.0.env("REJOIN_URL", server.http("/"));
    program
}

pub struct Program(Command);

impl Program {
    pub fn new(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rejoin"));
        command.args(arguments).kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command)
    }

    /// Sets a variable of the environment.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.0.env(name, value);
        self
    }

    /// Runs the program to its end.
    pub async fn run(self) -> Ended {
        self.run_with(b"").await
    }

    /// Runs the program to its end, with this on standard input.
    pub async fn run_with(self, input: &[u8]) -> Ended {
        let mut running = self.start();
        running.write(input).await;
        running.end().await
    }

    pub fn start(mut self) -> Running {
        let mut child = self.0.spawn().expect("it starts");
        Running {
            stdin: child.stdin.take(),
            stdout: child.stdout.take().map(BufReader::new),
            stderr: child.stderr.take().expect("a piped stderr"),
            child,
        }
    }
}

pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<BufReader<ChildStdout>>,
    stderr: ChildStderr,
}

impl Running {
    pub async fn write(&mut self, input: &[u8]) {
        let stdin = self.stdin.as_mut().expect("standard input is open");
        // If the program ends before it has read everything, it has printed the reason.
        let _ = timeout(PATIENCE, stdin.write_all(input)).await.expect("it is taken in time");
    }

    /// The next line that the program prints.
    pub async fn line(&mut self) -> String {
        let mut line = String::new();
        let stdout = self.stdout.as_mut().expect("standard output is open");
        timeout(PATIENCE, stdout.read_line(&mut line))
            .await
            .expect("it comes in time")
            .expect("it can be read");
        line.trim_end_matches('\n').to_owned()
    }

    /// Closes the program's standard output.
    pub fn close_stdout(mut self) -> Self {
        self.stdout = None;
        self
    }

    /// Closes standard input and waits for the end.
    pub async fn end(mut self) -> Ended {
        drop(self.stdin.take());
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let read = async {
            let out = async {
                if let Some(pipe) = &mut self.stdout {
                    pipe.read_to_end(&mut stdout).await.expect("it can be read");
                }
            };
            let err = async { self.stderr.read_to_end(&mut stderr).await.expect("it can be read") };
            tokio::join!(out, err);
            self.child.wait().await.expect("it ends")
        };
        let status = timeout(PATIENCE, read).await.expect("it ends in time");
        Ended { code: status.code(), stdout, stderr: String::from_utf8(stderr).expect("UTF-8") }
    }
}

#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    stderr: String,
}

impl Ended {
    /// The text on standard error.
    pub fn stderr(&self) -> &str {
        &self.stderr
    }

    /// The lines on standard output.
    #[track_caller]
    pub fn lines(&self) -> Vec<&str> {
        std::str::from_utf8(&self.stdout).expect("UTF-8").lines().collect()
    }
}
