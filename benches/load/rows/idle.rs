//! The memory for each waiting connection, beyond that of the empty server.

use std::{thread, time::Duration};

use crate::{
    Outcome, Setting,
    process::Process,
    table::{self, Line, Series},
    wire::{Publisher, Transport},
};

use super::fan_out::{TOPIC, flight_of, subscribe, subscribe_to};

/// Long enough for an allocator that returns unused memory more than once.
const PATIENCE: Duration = Duration::from_secs(40);

/// The name of a way to read, and the topic of each reader.
type Way = (&'static str, fn(usize) -> String);

/// Readers of one topic, which are in groups, and readers that are alone with a topic.
const WAYS: [Way; 2] = [("", |_| TOPIC.to_owned()), (", each of a topic", |n| format!("idle.{n}"))];

/// Streams on one HTTP/2 connection.
const STREAMS: usize = 100;

pub fn row(setting: &Setting) -> Outcome<Vec<Line>> {
    let count = setting.size(setting.connections, 200);
    let mut lines = Vec::new();
    for (how, topic) in WAYS {
        for transport in Transport::ALL {
            let server = setting.server()?;
            let empty = empty_kib(&server)?;
            let fleet = subscribe_to(&server, transport, count, topic)?;
            let each = (server.settled_kib(PATIENCE)? as f64 - empty) / fleet.len() as f64;
            let name = format!("idle {}, {} of them{how}", transport.name(), table::count(count));
            let line = Line::new(name, "KiB", Series::one(each));
            lines.push(match transport {
                _ if !how.is_empty() => line,
                Transport::WebSocket => line.target(5.0, 2.5),
                Transport::Sse => line.target(8.0, 3.0),
                Transport::Poll => line.target(3.0, 3.0),
                Transport::Ndjson => line,
            });
        }
    }
    let server = setting.server()?;
    let empty = empty_kib(&server)?;
    let connections = count.div_ceil(STREAMS);
    let streams = http2::open(server.addr, connections, STREAMS)?;
    let each = (server.settled_kib(PATIENCE)? as f64 - empty) / (connections * STREAMS) as f64;
    drop(streams);
    let name = format!("idle SSE on HTTP/2, {connections} connections of {STREAMS} streams");
    lines.push(Line::new(name, "KiB", Series::one(each)));
    Ok(lines)
}

/// The "empty" server has served a few connections of each kind: its code and its pools are in memory.
fn empty_kib(server: &Process) -> Outcome<f64> {
    let mut publisher = Publisher::connect(server.addr)?;
    for transport in Transport::ALL {
        let mut fleet = subscribe(server, transport, 10)?;
        publisher.publish(&flight_of(1))?;
        fleet.until_each(1)?;
    }
    drop(http2::open(server.addr, 1, 1)?);
    thread::sleep(Duration::from_millis(100));
    Ok(server.settled_kib(PATIENCE)? as f64)
}

/// The client of the only transport without a socket for each stream.
mod http2 {
    use std::net::SocketAddr;

    use h2::{RecvStream, client};
    use http::{Request, header::ACCEPT};
    use tokio::{
        net::TcpStream,
        runtime::{Builder, Runtime},
    };

    use super::super::fan_out::TOPIC;
    use crate::Outcome;

    /// Open streams. Their connections live on a thread of their own until this is dropped.
    pub struct Streams {
        _open: Vec<RecvStream>,
        _runtime: Runtime,
    }

    pub fn open(addr: SocketAddr, connections: usize, streams: usize) -> Outcome<Streams> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let open = runtime.block_on(async {
            let mut open = Vec::with_capacity(connections * streams);
            for _ in 0..connections {
                let socket = TcpStream::connect(addr).await?;
                socket.set_nodelay(true)?;
                let (sender, connection) = client::handshake(socket).await?;
                tokio::spawn(connection);
                let mut sender = sender.ready().await?;
                for _ in 0..streams {
                    let request = Request::get(format!("http://localhost/topics/{TOPIC}"))
                        .header(ACCEPT, "text/event-stream")
                        .body(())?;
                    let mut body = sender.send_request(request, true)?.0.await?.into_body();
                    let first = body.data().await.ok_or("a stream ended at once")??;
                    body.flow_control().release_capacity(first.len())?;
                    open.push(body);
                }
            }
            Outcome::Ok(open)
        })?;
        Ok(Streams { _open: open, _runtime: runtime })
    }
}
