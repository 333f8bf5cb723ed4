//! The log lines that wait until standard error takes them.
//!
//! One thread writes them. Standard error may be a pipe that nobody reads, and no other thread may wait for that.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Write},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use prometheus::IntCounter;

/// How many bytes may wait. A reader of the pipe may pause for some hundred lines; a log that comes later helps
/// nobody.
const MAX_BYTES: usize = 256 << 10;
/// The pause before the next try, if standard error is a pipe that answers "try again" and does not block.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// A bounded queue of lines. A line that does not fit is dropped and counted.
pub struct Lines {
    // A std mutex: it is not held while a line is written.
    queue: Mutex<Queue>,
    has_changed: Condvar,
    dropped: IntCounter,
}

#[derive(Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    is_writing: bool,
}

impl Lines {
    /// Starts the thread that writes to `to`. When lines were dropped and `to` has taken all others, it calls
    /// `tell` with the number of dropped lines.
    ///
    /// # Errors
    /// If the system has no thread.
    pub fn start(
        to: impl Write + Send + 'static,
        dropped: IntCounter,
        tell: impl Fn(u64) + Send + 'static,
    ) -> io::Result<&'static Self> {
        // The log lives as long as the process.
        let lines: &'static Self =
            Box::leak(Box::new(Self { queue: Mutex::default(), has_changed: Condvar::new(), dropped }));
        thread::Builder::new().name("log".to_owned()).spawn(move || lines.write_on(to, tell))?;
        Ok(lines)
    }

    /// Adds a line, or drops it. It never waits for standard error.
    pub fn push(&self, line: &[u8]) {
        let mut queue = self.queue();
        if queue.bytes + line.len() > MAX_BYTES {
            self.dropped.inc();
            return;
        }
        queue.bytes += line.len();
        queue.lines.push_back(line.to_vec());
        drop(queue);
        self.has_changed.notify_all();
    }

    /// Waits until every line is written, but no longer than this.
    pub fn flush(&self, within: Duration) {
        let is_busy = |queue: &mut Queue| queue.is_writing || !queue.lines.is_empty();
        drop(self.has_changed.wait_timeout_while(self.queue(), within, is_busy));
    }

    fn write_on(&self, mut to: impl Write, tell: impl Fn(u64)) -> ! {
        let mut told = 0;
        loop {
            let line = self.next();
            let is_written = write(&mut to, &line).is_ok();
            self.dropped.inc_by(u64::from(!is_written));
            // Tell it while this still counts as writing, so that a flush waits for it too.
            let dropped = self.dropped.get();
            if is_written && dropped > told && self.queue().lines.is_empty() {
                tell(dropped - told);
                told = dropped;
            }
            self.queue().is_writing = false;
            self.has_changed.notify_all();
        }
    }

    fn next(&self) -> Vec<u8> {
        let is_empty = |queue: &mut Queue| queue.lines.is_empty();
        let waited = self.has_changed.wait_while(self.queue(), is_empty);
        let mut queue = waited.unwrap_or_else(PoisonError::into_inner);
        let line = queue.lines.pop_front().expect("it waited for a line");
        queue.bytes -= line.len();
        queue.is_writing = true;
        line
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call is one line.
impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes all of it. As `write_all`, and waits where standard error does not block.
fn write(to: &mut impl Write, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match to.write(line) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => line = &line[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(TRY_AGAIN),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use super::*;

    const SOON: Duration = Duration::from_millis(10);
    const LATE: Duration = Duration::from_secs(30);

    /// A pipe that takes a write only when a test lets it.
    struct Pipe {
        permits: mpsc::Receiver<io::Result<()>>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Without a permit for ever, as the pipe of a reader that is gone for lunch.
            self.permits.recv().unwrap_or_else(|_| {
                loop {
                    thread::park()
                }
            })?;
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Scene {
        lines: &'static Lines,
        permits: mpsc::Sender<io::Result<()>>,
        written: Arc<Mutex<Vec<u8>>>,
        told: mpsc::Receiver<u64>,
    }

    fn scene() -> Scene {
        let (permits, taken) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let written = Arc::<Mutex<Vec<u8>>>::default();
        let pipe = Pipe { permits: taken, written: written.clone() };
        let dropped = IntCounter::new("dropped", "Lines.").expect("a name");
        let lines = Lines::start(pipe, dropped, move |count| tell.send(count).expect("the test listens"));
        Scene { lines: lines.expect("a thread"), permits, written, told }
    }

    #[test]
    fn lines_beyond_the_bound_are_dropped_and_their_number_is_told_when_the_pipe_moves() {
        let scene = scene();
        let line = [b'x'; 1 << 10];
        // The thread holds one line, and the queue has room for the others.
        let most = MAX_BYTES / line.len() + 1;
        for _ in 0..most + 7 {
            scene.lines.push(&line);
        }
        let dropped = scene.lines.dropped.get();
        assert!((7..=8).contains(&dropped), "{dropped}");
        assert!(scene.written.lock().unwrap().is_empty());
        scene.lines.flush(SOON);
        for _ in 0..most {
            scene.permits.send(Ok(())).expect("it waits");
        }
        assert_eq!(scene.told.recv_timeout(LATE), Ok(dropped));
        scene.lines.flush(LATE);
        assert_eq!(scene.written.lock().unwrap().len(), (most + 7 - dropped as usize) * line.len());
        scene.permits.send(Ok(())).expect("it waits");
        scene.lines.push(b"next\n");
        scene.lines.flush(LATE);
        assert!(scene.written.lock().unwrap().ends_with(b"next\n"));
        assert!(scene.told.try_recv().is_err(), "it is told once");
    }

    #[test]
    fn a_line_that_cannot_be_written_counts_as_dropped() {
        let scene = scene();
        scene.lines.push(b"lost\n");
        scene.permits.send(Err(io::Error::from(ErrorKind::StorageFull))).expect("it waits");
        scene.lines.flush(LATE);
        assert!(scene.told.try_recv().is_err(), "this could not be written either");
        scene.lines.push(b"kept\n");
        for error in [ErrorKind::WouldBlock, ErrorKind::Interrupted] {
            scene.permits.send(Err(error.into())).expect("it waits");
        }
        scene.permits.send(Ok(())).expect("it waits");
        assert_eq!(scene.told.recv_timeout(LATE), Ok(1));
        assert_eq!(*scene.written.lock().unwrap(), b"kept\n");
    }
}
