//! The signals that the program hears, from its first moment on.

use std::{future::poll_fn, io, task::Poll};

use rustix::process::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// These end the server in order. The system sends SIGXCPU and SIGPWR shortly before it ends the process itself.
const ENDING: &[(&str, Number)] = &[
    ("SIGTERM", Number::TERM),
    ("SIGINT", Number::INT),
    ("SIGQUIT", Number::QUIT),
    ("SIGXCPU", Number::XCPU),
    #[cfg(target_os = "linux")]
    ("SIGPWR", Number::POWER),
];

/// These would end the process, and mean nothing to it. A file that may not grow is an error of its write.
const IGNORED: &[Number] = &[
    Number::USR1,
    Number::USR2,
    Number::ALARM,
    Number::VTALARM,
    Number::PROF,
    Number::IO,
    Number::PIPE,
    Number::XFSZ,
    #[cfg(target_os = "linux")]
    Number::STKFLT,
];

/// The signals that came, and have not been taken yet.
pub struct Signals {
    ending: Vec<(&'static str, Signal)>,
    /// SIGHUP, which asks for a reload. One that comes before the server can do that is kept.
    pub hangup: Option<Signal>,
}

impl Signals {
    /// Begins to hear them. From now on they do not end the process by themselves.
    ///
    /// # Errors
    /// If the system has no descriptor for it.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn listen() -> io::Result<Self> {
        let hear = |number: Number| signal(SignalKind::from_raw(number.as_raw()));
        for number in IGNORED {
            drop(hear(*number)?);
        }
        let ending = ENDING.iter().map(|(name, number)| Ok((*name, hear(*number)?)));
        Ok(Self { ending: ending.collect::<io::Result<_>>()?, hangup: Some(hear(Number::HUP)?) })
    }

    /// Resolves with the name of the next signal that asks for the end.
    ///
    /// # Cancel safety
    /// Safe to drop and to call again: no signal is lost.
    pub async fn end(&mut self) -> &'static str {
        poll_fn(|cx| {
            let mut came = self
                .ending
                .iter_mut()
                .filter_map(|(name, signal)| signal.poll_recv(cx).is_ready().then_some(*name));
            came.next().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}
