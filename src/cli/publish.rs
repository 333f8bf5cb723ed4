//! `rejoin pub`: one message, or each line of standard input, in order and once.

mod lines;

use std::{
    fmt::{self, Display},
    io,
    time::Duration,
};

use clap::Args;
use rejoin::client::{ClientError, Draft, Progress, Publishing};
use tokio_stream::StreamExt;

use self::lines::lines;
use super::{Ending, notes::Notes, remote::Remote, tell};

/// How long a script waits for a server that cannot be reached.
const GIVE_UP: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct Publish {
    /// Topic to publish to.
    topic: String,

    /// The message. With `-` or without DATA, each line of standard input is a message.
    data: Option<String>,

    /// Give up after failing to store anything for this long [default: never with standard input, 30s with
    /// DATA].
    #[arg(long, value_name = "DURATION", value_parser = rejoin::config::duration)]
    give_up: Option<Duration>,

    #[command(flatten)]
    remote: Remote,
}

impl Publish {
    pub async fn run(self) -> Ending {
        self.publish().await.unwrap_or_else(|ending| ending)
    }

    async fn publish(self) -> Result<Ending, Ending> {
        let data = self.data.filter(|data| data != "-");
        let mut client = self.remote.client()?;
        if let Some(give_up) = self.give_up.or(data.is_some().then_some(GIVE_UP)) {
            client = client.with_give_up(give_up);
        }
        let draft = |bytes: Vec<u8>| Draft::new(&self.topic, bytes);
        if let Some(data) = data {
            let drafts = tokio_stream::once(draft(data.into()));
            return Outcomes::from(Line::DATA).of(client.publish_all(drafts)).await;
        }
        let mut unread: Option<io::Error> = None;
        let drafts = lines(tokio::io::stdin(), &mut unread).map(draft);
        let ending = Outcomes::from(Line::FIRST).of(client.publish_all(drafts)).await?;
        match unread {
            Some(error) => Err(Ending::Failed(format!("cannot read standard input: {error}"))),
            None => Ok(ending),
        }
    }
}

/// The number of a line, or 0 for the DATA of the command line.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Line(usize);

impl Line {
    const DATA: Self = Self(0);
    const FIRST: Self = Self(1);
}

impl Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::DATA => f.write_str("the message"),
            Self(number) => write!(f, "line {number}"),
        }
    }
}

/// The outcomes so far.
struct Outcomes {
    /// The line of which the outcome comes next.
    line: Line,
    notes: Notes,
    refused: u64,
    is_doubtful: bool,
}

impl From<Line> for Outcomes {
    fn from(line: Line) -> Self {
        Self { line, notes: Notes::default(), refused: 0, is_doubtful: false }
    }
}

impl Outcomes {
    /// Tells the outcomes, to the end.
    async fn of(mut self, mut publishing: Publishing<'_>) -> Result<Ending, Ending> {
        while let Some(progress) = publishing.next().await {
            match progress? {
                Progress::Stored { id } => {
                    if self.line == Line::DATA {
                        // The message is stored, also if its id cannot be printed.
                        drop(super::print(format!("{id}\n")));
                    }
                    self.line.0 += 1;
                }
                Progress::Refused(error) => {
                    self.refuse(&error)?;
                    self.line.0 += 1;
                }
                Progress::Doubtful { count } => {
                    let first = self.line;
                    match count {
                        1 => tell(format_args!("{first} may be stored twice")),
                        _ => {
                            tell(format_args!("{first} to {} may be stored twice", Line(first.0 + count - 1)))
                        }
                    }
                    self.is_doubtful = true;
                }
                Progress::Retrying(error) => self.notes.retrying(&error),
                Progress::Recovered => self.notes.recovered(),
                _ => {}
            }
        }
        Ok(match self {
            Self { refused: count @ 1.., .. } => {
                Ending::Failed(format!("{count} of the messages were refused"))
            }
            Self { is_doubtful: true, .. } => Ending::Doubtful("some messages may be stored twice".into()),
            _ => Ending::Done,
        })
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
