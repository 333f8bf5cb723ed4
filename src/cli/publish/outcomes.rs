//! The outcomes of messages, told to the user.

use std::fmt::{self, Display};

use rejoin::client::{ClientError, Progress, Publishing};
use tokio_stream::StreamExt;

use crate::cli::{Ending, notes::Notes, print, tell};

/// The number of a line, or 0 for the only message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Line(usize);

impl Line {
    pub const ONLY: Self = Self(0);
    pub const FIRST: Self = Self(1);
}

impl Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::ONLY => f.write_str("the message"),
            Self(number) => write!(f, "line {number}"),
        }
    }
}

/// The outcomes so far.
pub struct Outcomes {
    /// The line of which the outcome comes next.
    line: Line,
    notes: Notes,
    refused: u64,
    is_doubtful: bool,
    /// The word for what happens to a message.
    done: &'static str,
}

impl Outcomes {
    pub fn new(line: Line, is_ephemeral: bool) -> Self {
        let done = if is_ephemeral { "sent" } else { "stored" };
        Self { line, notes: Notes::default(), refused: 0, is_doubtful: false, done }
    }

    /// Tells the outcomes, to the end.
    pub async fn of(mut self, mut publishing: Publishing<'_>) -> Result<Ending, Ending> {
        while let Some(progress) = publishing.next().await {
            match progress? {
                Progress::Stored { id } => {
                    if self.line == Line::ONLY {
                        // The message is stored, also if its id cannot be printed.
                        drop(print(format!("{id}\n")));
                    }
                    self.line.0 += 1;
                }
                Progress::Sent => self.line.0 += 1,
                Progress::Refused(error) => {
                    self.refuse(&error)?;
                    self.line.0 += 1;
                }
                Progress::Doubtful { count } => self.doubt(count),
                Progress::Retrying(error) => self.notes.retrying(&error),
                Progress::Recovered => self.notes.recovered(),
                _ => {}
            }
        }
        Ok(match self {
            Self { refused: count @ 1.., .. } => {
                Ending::Failed(format!("{count} of the messages were refused"))
            }
            Self { is_doubtful: true, done, .. } => {
                Ending::Doubtful(format!("some messages may be {done} twice"))
            }
            _ => Ending::Done,
        })
    }

    fn doubt(&mut self, count: usize) {
        let (first, done) = (self.line, self.done);
        match count {
            1 => tell(format_args!("{first} may be {done} twice")),
            _ => tell(format_args!("{first} to {} may be {done} twice", Line(first.0 + count - 1))),
        }
        self.is_doubtful = true;
    }

    /// A message that is too large does not stop the others; any other refusal does.
    fn refuse(&mut self, error: &ClientError) -> Result<(), Ending> {
        let line = self.line;
        match error {
            ClientError::Refused { code, detail } if code == "too_large" => {
                tell(format_args!("{line} was refused: {detail}"));
                self.refused += 1;
                Ok(())
            }
            error => Err(Ending::Failed(format!("{line}: {error}"))),
        }
    }
}
