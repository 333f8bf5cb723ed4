//! `rejoin sub`: what is published, a message a line, through cuts and restarts.

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

/// How long a script waits for a server that is not there.
const GIVE_UP: Duration = Duration::from_secs(30);
/// How long a connection is listened to before the end: what was published before it was made has come by then.
const CATCH_UP: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
#[command(after_help = super::EXIT_CODES)]
pub struct Subscribe {
    /// Topics and patterns.
    #[arg(value_name = "TOPIC", required = true)]
    topics: Vec<String>,

    /// Begin after this cursor, which is the id of a message; 0 is everything retained.
    #[arg(long, value_name = "CURSOR", group = "start")]
    after: Option<String>,

    /// Begin with the newest N messages of each topic.
    #[arg(long, value_name = "N", group = "start")]
    last: Option<u32>,

    /// Begin with what was published since then: a duration such as 10m, or an RFC 3339 time.
    #[arg(long, value_name = "WHEN", group = "start")]
    since: Option<String>,

    /// How to listen.
    #[arg(long, value_enum, default_value = "ws")]
    transport: Transport,

    /// Print each message with its topic, id and event, as one line of JSON.
    #[arg(long)]
    json: bool,

    /// End when no message has come for this long, not counting the time without a connection.
    #[arg(long, value_name = "DURATION", value_parser = rejoin::config::duration)]
    until_idle: Option<Duration>,

    /// How long to try while the server cannot be reached, or no connection to it lasts [default: for ever; 30s with
    /// --until-idle].
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
        let gone = print::reader_gone();
        tokio::select! {
            ending = reader.run(&self.remote) => ending,
            // Nobody reads any more, so there is nothing left to do.
            () = gone => Ending::Done,
        }
    }
}

struct Reader {
    /// What to read, from where it stands.
    wish: Wish,
    printer: Printer,
    patience: Patience,
    until_idle: Option<Duration>,
    /// For how long nothing came over the connections before this one.
    quiet: Duration,
    /// When this connection was made, or something came over it.
    quiet_since: Option<Instant>,
    told_of_gap: bool,
}

/// Why a connection is left.
enum Leave {
    Cut(Trouble),
    Idle,
    /// Nobody takes what is printed.
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
                    return Ending::Doubtful("a gap was told, so not everything was printed".into());
                }
                Leave::Idle => return Ending::Done,
                Leave::Printed(error) => return Ending::of_output(&error),
            }
        }
    }

    /// Prints what comes until there is a reason to leave.
    async fn read(&mut self, mut feed: Feed) -> Leave {
        loop {
            let mut next = pin!(feed.next());
            // What is there is printed together; before waiting it has to be out.
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

    /// When it has been quiet for long enough, as far as that is known. Only time with a connection counts: who cannot
    /// be reached is not quiet.
    fn idle_at(&self) -> Option<Instant> {
        let idle = self.until_idle?;
        Some(self.quiet_since? + idle.saturating_sub(self.quiet).max(idle.min(CATCH_UP)))
    }

    /// Prints a frame and moves the cursor behind it; gives why the connection ends, if it says so.
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
                // In its place among what is printed, for who sees both.
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
