//! `rejoin sub`: prints messages, one on each line, and survives lost connections and restarts.

mod print;

use std::{pin::pin, time::Duration};

use clap::Args;
use futures_util::FutureExt;
use tokio::time::{Instant, timeout_at};

use self::print::Printer;
use super::{
    Ending,
    feed::{Feed, Frame, Start, Transport, Wish},
    patience::Patience,
    remote::{Remote, Trouble},
};

/// How long a script waits for a server that cannot be reached.
const GIVE_UP: Duration = Duration::from_secs(30);
/// How long to listen on a new connection before ending. By then the messages that were published before have
/// arrived.
const CATCH_UP: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct Subscribe {
    /// Topics and patterns to read.
    #[arg(value_name = "TOPIC", required = true)]
    topics: Vec<String>,

    /// Begin after this cursor, the id of a message; 0 begins with the oldest retained message.
    #[arg(long, value_name = "CURSOR", group = "start")]
    after: Option<String>,

    /// Begin with the newest N messages of each topic.
    #[arg(long, value_name = "N", group = "start")]
    last: Option<u32>,

    /// Begin with the messages since then: a duration such as 10m, or an RFC 3339 time.
    #[arg(long, value_name = "WHEN", group = "start")]
    since: Option<String>,

    /// Transport to read by.
    #[arg(long, value_enum, default_value = "ws")]
    transport: Transport,

    /// Print each message as one line of JSON, with its topic, id and event.
    #[arg(long)]
    json: bool,

    /// End when no message has arrived for this long. Time without a connection does not count.
    #[arg(long, value_name = "DURATION", value_parser = rejoin::config::duration)]
    until_idle: Option<Duration>,

    /// Give up if the server cannot be reached, or every connection is cut, for this long [default: never;
    /// 30s with --until-idle].
    #[arg(long, value_name = "DURATION", value_parser = rejoin::config::duration)]
    give_up: Option<Duration>,

    #[command(flatten)]
    remote: Remote,
}

impl Subscribe {
    pub async fn run(self) -> Ending {
        let start = match (self.after, self.last, self.since) {
            (Some(cursor), ..) => Start::After(cursor),
            (_, Some(count), _) => Start::Last(count),
            (.., Some(since)) => Start::Since(since),
            _ => Start::Now,
        };
        let mut reader = Reader {
            wish: Wish { topics: self.topics, start, transport: self.transport },
            printer: Printer::new(self.json),
            patience: Patience::new(self.give_up.or(self.until_idle.and(Some(GIVE_UP)))),
            until_idle: self.until_idle,
            quiet: Duration::ZERO,
            quiet_since: None,
            told_of_gap: false,
        };
        let gone = print::until_reader_gone();
        tokio::select! {
            ending = reader.run(&self.remote) => ending,
            // The output has no reader any more.
            () = gone => Ending::Done,
        }
    }
}

struct Reader {
    /// The topics, and the cursor.
    wish: Wish,
    printer: Printer,
    patience: Patience,
    until_idle: Option<Duration>,
    /// How long earlier connections were quiet.
    quiet: Duration,
    /// When this connection was made, or a message last came over it.
    quiet_since: Option<Instant>,
    told_of_gap: bool,
}

/// Why a connection ends.
enum Leave {
    Cut(Trouble),
    Idle,
    /// The output has no reader any more, or it cannot be written.
    Printed(std::io::Error),
}

impl Reader {
    async fn run(&mut self, remote: &Remote) -> Ending {
        let client = match remote.client() {
            Ok(client) => client,
            Err(trouble) => return Ending::Failed(trouble.to_string()),
        };
        loop {
            let leave = match Feed::open(remote, &client, &self.wish).await {
                Ok(feed) => self.read(feed).await,
                Err(trouble) => Leave::Cut(trouble),
            };
            match leave {
                Leave::Cut(trouble) => {
                    if let Some(since) = self.quiet_since.take() {
                        self.quiet += since.elapsed();
                        self.patience.cut(since);
                    }
                    if let Err(error) = self.printer.flush() {
                        return Ending::of_output(&error);
                    }
                    if let Err(ending) = self.patience.wait(trouble).await {
                        return ending;
                    }
                }
                Leave::Idle if self.told_of_gap => {
                    return Ending::Doubtful("the server told a gap: some messages are missing".into());
                }
                Leave::Idle => return Ending::Done,
                Leave::Printed(error) => return Ending::of_output(&error),
            }
        }
    }

    /// Prints frames until there is a reason to leave.
    async fn read(&mut self, mut feed: Feed) -> Leave {
        loop {
            let mut next = pin!(feed.next());
            // Messages that are ready are printed together, and flushed before waiting.
            let next = match (&mut next).now_or_never() {
                Some(next) => next,
                None => {
                    if let Err(error) = self.printer.flush() {
                        return Leave::Printed(error);
                    }
                    match self.idle_at() {
                        None => next.await,
                        Some(idle_at) => match timeout_at(idle_at, next).await {
                            Ok(next) => next,
                            Err(_) => return Leave::Idle,
                        },
                    }
                }
            };
            let frame = match next {
                Ok(frame) => frame,
                Err(trouble) => return Leave::Cut(trouble),
            };
            match self.take(frame) {
                Ok(None) => {}
                Ok(Some(trouble)) => return Leave::Cut(trouble),
                Err(error) => return Leave::Printed(error),
            }
        }
    }

    /// When the connection has been quiet for long enough. Only time with a connection counts: a server that
    /// cannot be reached is not quiet.
    fn idle_at(&self) -> Option<Instant> {
        let idle = self.until_idle?;
        Some(self.quiet_since? + idle.saturating_sub(self.quiet).max(idle.min(CATCH_UP)))
    }

    /// Prints a frame and moves the cursor past it; returns the reason if the frame ends the connection.
    fn take(&mut self, frame: Frame) -> std::io::Result<Option<Trouble>> {
        let cursor = match frame {
            Frame::Open { cursor, .. } => {
                self.patience.restore();
                self.quiet_since = Some(Instant::now());
                self.stand_at(cursor);
                return Ok(None);
            }
            Frame::Message(message) => {
                self.printer.print(&message)?;
                message.id
            }
            Frame::Gap(gap) => {
                // The gap appears in its place among the messages if both go to one terminal.
                self.printer.flush()?;
                super::tell(&gap);
                self.told_of_gap = true;
                Some(gap.cursor)
            }
            Frame::Cursor(cursor) => {
                self.stand_at(Some(cursor));
                return Ok(None);
            }
            Frame::Closing { why, cursor, pause } => {
                self.stand_at(cursor);
                return Ok(Some(Trouble::Lost { why, pause }));
            }
        };
        self.patience.progress();
        (self.quiet, self.quiet_since) = (Duration::ZERO, Some(Instant::now()));
        self.stand_at(cursor);
        Ok(None)
    }

    fn stand_at(&mut self, cursor: Option<String>) {
        if let Some(cursor) = cursor {
            self.wish.start = Start::After(cursor);
        }
    }
}
