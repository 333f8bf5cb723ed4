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

/// Signals that programs may give any meaning, and that have none here: SIGRTMIN to SIGRTMAX. The C library keeps the
/// numbers just below for itself.
#[cfg(target_os = "linux")]
const REAL_TIME: std::ops::RangeInclusive<i32> = 35..=64;
#[cfg(not(target_os = "linux"))]
const REAL_TIME: [i32; 0] = [];

/// The system sends this one again each second, so it never counts as a second signal.
const REPEATED: &str = "SIGXCPU";

/// The signals that came, and have not been taken yet.
pub struct Signals {
    ending: Vec<(&'static str, Signal)>,
    /// The first signal was taken.
    has_ended: bool,
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
        IGNORED.iter().map(|number| number.as_raw()).chain(REAL_TIME).try_for_each(ignore)?;
        let ending = ENDING.iter().map(|(name, number)| Ok((*name, hear(number.as_raw())?)));
        let ending = ending.collect::<io::Result<_>>()?;
        Ok(Self { ending, has_ended: false, hangup: Some(hear(Number::HUP.as_raw())?) })
    }

    /// Resolves with the name of the next signal that asks for the end.
    ///
    /// # Cancel safety
    /// Safe to drop and to call again: no signal is lost.
    pub async fn end(&mut self) -> &'static str {
        let Self { ending, has_ended, .. } = self;
        poll_fn(|cx| {
            for (name, signal) in ending.iter_mut() {
                while signal.poll_recv(cx).is_ready() {
                    if !std::mem::replace(has_ended, true) || *name != REPEATED {
                        return Poll::Ready(*name);
                    }
                }
            }
            Poll::Pending
        })
        .await
    }
}

fn hear(number: i32) -> io::Result<Signal> {
    signal(SignalKind::from_raw(number))
}

/// Keeps a signal from ending the process, unless a tool that runs the program keeps the signal for itself, as valgrind
/// does.
fn ignore(number: i32) -> io::Result<()> {
    match hear(number) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        heard => heard.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_signal_that_others_keep_for_themselves_stops_no_start() {
        const OF_THE_C_LIBRARY: i32 = 33;
        assert!(hear(OF_THE_C_LIBRARY).is_err());
        ignore(OF_THE_C_LIBRARY).expect("it means nothing here");
        assert!(ignore(Number::KILL.as_raw()).is_err(), "every other error counts");
    }
}
