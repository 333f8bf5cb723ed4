//! The reasons why a WebSocket ends, and their close codes.

use std::fmt;

use super::socket::Lost;
use crate::http::problem::{Code, Problem, UNSUPPORTED_DATA};

/// The reason why a session ends.
#[derive(Debug)]
pub enum End {
    Lost(Lost),
    /// The client sent a binary frame.
    Unsupported,
    /// No frame came from the client for two heartbeats.
    Silent,
    Draining,
    /// The client has not left within the grace of the drain.
    GraceOver,
    /// The client's grants or its token have ended, or a command has ended the connection.
    Ended(Box<Problem>),
    /// There is no room for more bytes of commands, or a command did not arrive whole in time.
    Refused(Box<Problem>),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lost(Lost::Closed) => "the client closed the connection",
            Self::Lost(Lost::Gone) => "the client left",
            Self::Lost(Lost::Broken(code)) => {
                return write!(f, "the client broke the protocol: close {code}");
            }
            Self::Lost(Lost::TooSlow) => Code::TooSlow.as_str(),
            Self::Unsupported => "the client sent a binary frame",
            Self::Silent => "the client was silent for two heartbeats",
            Self::Draining => Code::Draining.as_str(),
            Self::GraceOver => "the grace of the drain is over",
            Self::Ended(problem) | Self::Refused(problem) => problem.code.as_str(),
        })
    }
}

impl End {
    /// The code with which the server closes the connection. It has none if the client closed it, or is gone.
    pub fn close_code(&self) -> Option<u16> {
        match self {
            Self::Lost(Lost::Closed | Lost::Gone) | Self::GraceOver | Self::Silent => None,
            Self::Lost(Lost::Broken(code)) => Some(*code),
            Self::Lost(Lost::TooSlow) => Some(Code::TooSlow.close_code()),
            Self::Unsupported => Some(UNSUPPORTED_DATA),
            Self::Draining => Some(Code::Draining.close_code()),
            Self::Ended(problem) | Self::Refused(problem) => Some(problem.code.close_code()),
        }
    }
}
