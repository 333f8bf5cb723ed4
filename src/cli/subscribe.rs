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

    /// End when nothing has come for this long.
    #[arg(long, value_name = "DURATION", value_parser = rejoin::config::duration)]
    until_idle: Option<Duration>,

    /// How long to try while the server cannot be reached [default: for ever; 30s with --until-idle].
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
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
        let mut idle_at = None;
        loop {
            let mut next = pin!(feed.next());
            // What is there is printed together; before waiting it has to be out.
            let next = match (&mut next).now_or_never() {
                Some(next) => next,
                None => {
                    if let Err(error) = self.printer.flush() {
                        return Leave::Printed(error);
                    }
                    match idle_at {
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
            if !matches!(frame, Frame::Cursor(_)) {
                idle_at = self.until_idle.map(|idle| Instant::now() + idle);
            }
            match self.take(frame) {
                Ok(None) => {}
                Ok(Some(trouble)) => return Leave::Cut(trouble),
                Err(error) => return Leave::Printed(error),
            }
        }
    }

    /// Prints a frame and moves the cursor behind it; gives why the connection ends, if it says so.
    fn take(&mut self, frame: Frame) -> std::io::Result<Option<Trouble>> {
        let cursor = match frame {
            Frame::Open { cursor, .. } => {
                self.patience.restore();
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
            Frame::Cursor(cursor) => Some(cursor),
            Frame::Closing { why, cursor, pause } => {
                self.stand_at(cursor);
                return Ok(Some(Trouble::Lost { why, pause }));
            }
        };
        self.patience.progress();
        self.stand_at(cursor);
        Ok(None)
    }

    fn stand_at(&mut self, cursor: Option<String>) {
        if let Some(cursor) = cursor {
            self.wish.start = Start::After(cursor);
        }
    }
}
