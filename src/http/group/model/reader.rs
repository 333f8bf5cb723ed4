//! A reader of the model.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::Wake,
};

use super::wire::Near;
use crate::{
    broker::Subscription,
    http::{group::Parked, gzip::Sum, outbox::Outbox, shared_socket::SharedSocket},
    message::Id,
};

/// A task that can be woken.
#[derive(Default)]
pub struct Flag(pub AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One connection.
pub struct Reader {
    pub name: String,
    pub topics: &'static [&'static str],
    pub from: Id,
    pub near: Arc<Mutex<Near>>,
    pub socket: SharedSocket,
    pub task: Arc<Flag>,
    pub subscription: Option<Subscription>,
    pub parked: Option<Parked>,
    pub outbox: Outbox,
    /// It has been caught up, so it takes ephemeral messages from then on.
    pub was_level: bool,
    pub ephemerals: Vec<String>,
    /// The beginnings of generations that this connection has lived through.
    pub generations: Vec<Id>,
    pub is_open: bool,
    /// It stood ahead of the watermark, or at no place, when it last wanted to park. It is not woken to try again.
    pub is_apart: bool,
    /// How much had come to it when it parked, and its cursor.
    pub before: (usize, Id),
    /// The sum of all that it was given, for the end of a stream in gzip.
    pub plain: Sum,
}
