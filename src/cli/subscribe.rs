//! `rejoin sub`: prints messages, one on each line, and survives lost connections and restarts.

mod print;

use std::{io, pin::pin, time::Duration};

use clap::Args;
use futures_util::FutureExt;
use rejoin::client::{Event, Subscription};
use tokio::time::{Instant, timeout_at};
use tokio_stream::StreamExt;

use self::print::Printer;
use super::{
    Ending, StartFlags,
    notes::Notes,
    remote::{Remote, Transport},
};

/// How long a script waits for a server that cannot be reached.
const GIVE_UP: Duration = Duration::from_secs(30);
/// How long to listen on a new connection before ending. By then the messages that were published before have
/// arrived.
const CATCH_UP: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
#[command(after_help = super::examples(&[
    "rejoin sub 'orders.*' --last 10",
    "rejoin sub logs.web --after 0 --until-idle 2s > logs.txt",
]))]
pub struct Subscribe {
    /// Topics and patterns to read.
    #[arg(value_name = "TOPIC", required = true)]
    topics: Vec<String>,

    #[command(flatten)]
    start: StartFlags,

    /// Transport to read by.
    #[arg(long, value_enum, default_value = "ws")]
    transport: Transport,

    /// Print each message as one line of JSON, with its topic, id and event.
    #[arg(long)]
    json: bool,

    /// End when no message has arrived for this long. Time without a connection does not count.
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = rejoin::config::duration)]
    until_idle: Option<Duration>,

    /// Give up if the server cannot be reached, or every connection is cut, for this long [default: never;
    /// 30s with --until-idle].
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = rejoin::config::duration)]
    give_up: Option<Duration>,

    #[command(flatten)]
    remote: Remote,
}

impl Subscribe {
    pub async fn run(self) -> Ending {
        let start = self.start.start();
        let mut client = match self.remote.client() {
            Ok(client) => client.with_transport(self.transport.into()),
            Err(error) => return error.into(),
        };
        if let Some(give_up) = self.give_up.or(self.until_idle.and(Some(GIVE_UP))) {
            client = client.with_give_up(give_up);
        }
        let mut reader = PrintingReader {
            printer: Printer::new(self.json),
            notes: Notes::default(),
            until_idle: self.until_idle,
            quiet: Duration::ZERO,
            quiet_since: None,
            told_of_gap: false,
        };
        let gone = print::until_reader_gone();
        tokio::select! {
            ending = reader.read(client.subscribe(self.topics, start)) => {
                ending.unwrap_or_else(|error| Ending::of_output(&error))
            }
            // The output has no reader any more.
            () = gone => Ending::Done,
        }
    }
}

struct PrintingReader {
    printer: Printer,
    notes: Notes,
    until_idle: Option<Duration>,
    /// How long earlier connections were quiet.
    quiet: Duration,
    /// When this connection was made, or a message last came over it.
    quiet_since: Option<Instant>,
    told_of_gap: bool,
}

impl PrintingReader {
    /// Prints messages to the end.
    ///
    /// # Errors
    /// If the output cannot be written.
    async fn read(&mut self, mut subscription: Subscription) -> io::Result<Ending> {
        loop {
            let mut next = pin!(subscription.next());
            // Messages that are ready are printed together, and flushed before waiting.
            let next = match (&mut next).now_or_never() {
                Some(next) => next,
                None => {
                    self.printer.flush()?;
                    match self.idle_at() {
                        None => next.await,
                        Some(idle_at) => match timeout_at(idle_at, next).await {
                            Ok(next) => next,
                            Err(_) => return Ok(self.idle()),
                        },
                    }
                }
            };
            match next.expect("a subscription ends only with an error") {
                Ok(event) => self.take(event)?,
                Err(error) => {
                    self.printer.flush()?;
                    return Ok(error.into());
                }
            }
        }
    }

    /// When the connection has been quiet for long enough. Only time with a connection counts: a server that
    /// cannot be reached is not quiet.
    fn idle_at(&self) -> Option<Instant> {
        let idle = self.until_idle?;
        Some(self.quiet_since? + idle.saturating_sub(self.quiet).max(idle.min(CATCH_UP)))
    }

    fn idle(&self) -> Ending {
        if self.told_of_gap {
            return Ending::Doubtful("the server told a gap: some messages are missing".into());
        }
        Ending::Done
    }

    fn take(&mut self, event: Event) -> io::Result<()> {
        match event {
            Event::Connected => {
                self.notes.recovered();
                self.quiet_since = Some(Instant::now());
            }
            Event::Message(message) => {
                self.printer.print(&message)?;
                (self.quiet, self.quiet_since) = (Duration::ZERO, Some(Instant::now()));
            }
            Event::Gap(gap) => {
                // The gap appears in its place among the messages if both go to one terminal.
                self.printer.flush()?;
                super::tell(format_args!("gap: {gap}"));
                self.told_of_gap = true;
                (self.quiet, self.quiet_since) = (Duration::ZERO, Some(Instant::now()));
            }
            Event::Removed(topic) => {
                self.printer.flush()?;
                super::tell(format_args!("removed: the backend has removed {topic} from the connection"));
            }
            Event::Disconnected(error) => {
                self.quiet += self.quiet_since.take().map_or(Duration::ZERO, |since| since.elapsed());
                self.printer.flush()?;
                self.notes.retrying(&error);
            }
            _ => {}
        }
        Ok(())
    }
}
