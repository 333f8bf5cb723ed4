//! One reader on one connection, with the messages and gaps that it was given.

use std::{net::SocketAddr, time::Duration};

use crate::support::{
    client::{Connection, Manner, Start, Stop, Transport, Wish},
    frame::{Cursor, Frame, Gap, Message},
};

/// Turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the reader waits before it repeats a refused poll.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

pub struct Reader {
    pub name: String,
    connection: Connection,
    pub given: Vec<Cursor>,
    pub gaps: Vec<Gap>,
    /// How many messages the reader had been given at each gap.
    pub told_after: Vec<usize>,
    pub cursor: Cursor,
}

impl Reader {
    pub async fn open(addr: SocketAddr, transport: Transport, filter: &str, start: Start) -> Self {
        Self::try_open(addr, transport, filter, start)
            .await
            .unwrap_or_else(|(name, stop)| panic!("{name}: {stop:?}"))
    }

    /// Asks again while the server refuses.
    pub async fn open_patiently(addr: SocketAddr, transport: Transport, filter: &str, start: Start) -> Self {
        let open = async {
            loop {
                match Self::try_open(addr, transport, filter, start).await {
                    Ok(reader) => return reader,
                    Err((_, Stop::Refused(_))) => tokio::time::sleep(AGAIN_AFTER).await,
                    Err((name, stop)) => panic!("{name}: {stop:?}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, open).await.expect("it is not refused for ever")
    }

    async fn try_open(
        addr: SocketAddr,
        transport: Transport,
        filter: &str,
        start: Start,
    ) -> Result<Self, (String, Stop)> {
        let manner = Manner {
            cursor_in_header: false,
            by_post: false,
            by_path: false,
            transport_in_query: true,
            other_format: false,
            wait_s: 5,
            limit: 100,
        };
        let wish = Wish { transport, filters: vec![filter.to_owned()], start, manner };
        let name = format!("{filter} from {start:?} on {transport} at {addr}");
        match Connection::open(addr, &wish).await {
            Ok(connection) => Ok(Self {
                name,
                connection,
                given: Vec::new(),
                gaps: Vec::new(),
                told_after: Vec::new(),
                cursor: 0,
            }),
            Err(stop) => Err((name, stop)),
        }
    }

    /// Reads until this message has come.
    ///
    /// # Panics
    /// If it does not come, or if the connection ends.
    pub async fn until(&mut self, id: Cursor) {
        let read = async {
            while self.given.last().is_none_or(|last| *last < id) {
                match self.connection.next().await {
                    Ok(frame) => self.take(frame),
                    // A poll makes many requests, so one may be refused.
                    Err(Stop::Refused(_)) => tokio::time::sleep(AGAIN_AFTER).await,
                    Err(stop) => panic!("{}: {stop:?}", self.name),
                }
            }
        };
        let read = tokio::time::timeout(PATIENCE, read).await;
        read.unwrap_or_else(|_| panic!("{}: {id} does not come, only {:?}", self.name, self.given));
    }

    fn take(&mut self, frame: Frame) {
        match frame {
            Frame::Open { cursor } | Frame::Cursor { cursor } => self.cursor = cursor,
            Frame::Message(message) => self.take_message(message),
            Frame::Gap(gap) => self.take_gap(gap),
            Frame::Answer(answer) => {
                answer.gaps.into_iter().for_each(|gap| self.take_gap(gap));
                answer.messages.into_iter().for_each(|message| self.take_message(message));
                self.cursor = answer.cursor;
            }
            other => panic!("{}: {other:?}", self.name),
        }
    }

    fn take_message(&mut self, message: Message) {
        assert!(self.given.last().is_none_or(|last| *last < message.id), "{}: out of order", self.name);
        self.given.push(message.id);
        self.cursor = message.id;
    }

    fn take_gap(&mut self, gap: Gap) {
        self.cursor = gap.cursor;
        self.told_after.push(self.given.len());
        self.gaps.push(gap);
    }
}
