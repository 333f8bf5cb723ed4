//! A child process: its core, its cost, and its end.

use std::{
    ffi::OsString,
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use tokio::time::Instant;

use rustix::{
    process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit},
    thread::{CpuSet, sched_setaffinity},
};

use crate::Outcome;

/// The core of the server and of its reference. The client runs on the next core.
pub const SERVER_CPU: usize = 0;
pub const CLIENT_CPU: usize = 1;

const START_PATIENCE: Duration = Duration::from_secs(10);

/// Dropping it ends the process.
pub struct Process {
    child: Child,
    pub addr: SocketAddr,
}

impl Process {
    /// Starts `program` on the server's core and waits until it accepts connections. `{addr}` in an argument
    /// stands for the address to listen on.
    pub fn start(program: &Path, args: &[&str]) -> Outcome<Self> {
        let addr = free_address()?;
        let args = args.iter().map(|arg| arg.replace("{addr}", &addr.to_string()));
        let child = Command::new(std::env::current_exe()?)
            .arg("--child=launch")
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let mut process = Self { child, addr };
        let deadline = Instant::now() + START_PATIENCE;
        while TcpStream::connect(addr).is_err() {
            if let Some(status) = process.child.try_wait()? {
                return Err(format!("{} ended at once: {status}", program.display()).into());
            }
            if Instant::now() > deadline {
                return Err(format!("{} does not listen on {addr}", program.display()).into());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(process)
    }

    /// Starts this program again, as a reference for the server.
    pub fn start_self(child: &str) -> Outcome<Self> {
        Self::start(&std::env::current_exe()?, &[&format!("--child={child}"), "{addr}"])
    }

    /// The processor time of all threads so far, user and system, in nanoseconds.
    ///
    /// The kernel adds up a thread's time when the thread stops running, so let the process come to rest
    /// before reading.
    pub fn cpu_ns(&self) -> Outcome<u64> {
        thread::sleep(Duration::from_millis(5));
        let mut sum = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // A thread may end between the listing and the reading. The threads that work do not.
            let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            sum += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
        }
        Ok(sum)
    }

    pub fn resident_kib(&self) -> Outcome<u64> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()))?;
        let line = text.lines().find(|line| line.starts_with("Rss:")).ok_or("no Rss in smaps_rollup")?;
        Ok(line.split_whitespace().nth(1).unwrap_or_default().parse()?)
    }

    /// The resident memory once it has changed by less than 1 % for eleven seconds, because an
    /// allocator returns unused memory after ten. After `patience` it returns the current value.
    pub fn settled_kib(&self, patience: Duration) -> Outcome<u64> {
        const CALM: Duration = Duration::from_secs(11);
        let deadline = Instant::now() + patience;
        let (mut since, mut reference) = (Instant::now(), self.resident_kib()?);
        loop {
            thread::sleep(Duration::from_millis(200));
            let now = self.resident_kib()?;
            if now.abs_diff(reference) * 100 > reference {
                (since, reference) = (Instant::now(), now);
            }
            if since.elapsed() > CALM || Instant::now() > deadline {
                return Ok(now);
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The child's side of [`Process::start`]: moves to its core, makes sure that it does not outlive the
/// benchmark, and becomes the program.
pub fn launch(command: &[OsString]) -> Outcome<()> {
    pin(SERVER_CPU);
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let (program, args) = command.split_first().ok_or("nothing to launch")?;
    Err(Command::new(program).args(args).exec().into())
}

/// Takes as many descriptors as the system gives.
pub fn raise_descriptors() -> io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

/// Keeps this thread, and the threads that it starts, on one core, if the machine has that core.
pub fn pin(cpu: usize) {
    // The standard library would count the cores of the parent, which is pinned too.
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    if let Err(error) = sched_setaffinity(None, &cpus) {
        eprintln!("not kept on core {cpu}: {error}");
    }
}

fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}
