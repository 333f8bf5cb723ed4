//! Level-triggered epoll, for the client and for the limit.

use std::{
    io, mem,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
};

pub use rustix::event::epoll::EventFlags as Interest;

pub const READ: Interest = Interest::IN;
pub const READ_WRITE: Interest = Interest::IN.union(Interest::OUT);

/// How many sockets one system call reports.
const EVENTS: usize = 1024;

pub struct Poller {
    epoll: OwnedFd,
    ready: Vec<epoll::Event>,
}

impl Poller {
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, ready: Vec::with_capacity(EVENTS) })
    }

    pub fn add(&self, socket: impl AsFd, token: usize, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, epoll::EventData::new_u64(token as u64), interest)?)
    }

    pub fn change(&self, socket: impl AsFd, token: usize, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, socket, epoll::EventData::new_u64(token as u64), interest)?)
    }

    /// Waits for at least one event, or for the time to pass (`None`: for ever). Return the list with
    /// [`Poller::done`], so that its memory is used again.
    pub fn wait(&mut self, patience: Option<Duration>) -> io::Result<Vec<epoll::Event>> {
        let mut ready = mem::take(&mut self.ready);
        ready.clear();
        let timeout = patience.map(|patience| Timespec {
            tv_sec: patience.as_secs() as i64,
            tv_nsec: patience.subsec_nanos().into(),
        });
        match epoll::wait(&self.epoll, spare_capacity(&mut ready), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(ready),
            Err(error) => Err(error.into()),
        }
    }

    pub fn done(&mut self, ready: Vec<epoll::Event>) {
        self.ready = ready;
    }
}
