//! The memory that the server needs for published messages.

use std::{thread, time::Duration};

use crate::{
    Outcome, PAYLOAD_BYTES, Setting,
    process::Process,
    table::{self, Line, Series},
    wire::{self, Publisher},
};

/// Messages in one `POST /publish`.
const BATCH: usize = 1_000;

const PATIENCE: Duration = Duration::from_secs(20);

pub fn retained(setting: &Setting) -> Outcome<Vec<Line>> {
    let topics = 1_000;
    let messages = setting.size(200_000, 20_000);
    let server = setting.server()?;
    let mut publisher = Publisher::connect(server.addr)?;
    let empty = empty_kib(&server, &mut publisher)?;
    let payload = wire::payload(PAYLOAD_BYTES, 0);
    let request = wire::batch((0..topics).map(|n| format!("retained.{n}")), &payload);
    for _ in 0..messages / topics {
        publisher.publish(&request)?;
    }
    let each = (server.settled_kib(PATIENCE)? as f64 - empty) * 1024.0 / messages as f64;
    let name = format!(
        "retained message beyond its {PAYLOAD_BYTES} bytes, {} in {} topics",
        table::count(messages),
        table::count(topics)
    );
    let line = Line::new(name, "bytes", Series::one(each - PAYLOAD_BYTES as f64));
    Ok(vec![line.target(300.0, 130.0)])
}

/// A topic whose messages have expired should cost only its entry in the index, which serves to tell its
/// readers the gap.
pub fn expired(setting: &Setting) -> Outcome<Vec<Line>> {
    let topics = setting.size(1_000_000, 50_000);
    // More topics than are made, so that each is remembered.
    let server = setting.server_with(&["--retain-age", "5s", "--max-topics", "2000000"])?;
    let mut publisher = Publisher::connect(server.addr)?;
    let empty = empty_kib(&server, &mut publisher)?;
    let payload = wire::payload(PAYLOAD_BYTES, 0);
    for batch in 0..topics / BATCH {
        let names = (batch * BATCH..(batch + 1) * BATCH).map(|n| format!("expired.{n}"));
        publisher.publish(&wire::batch(names, &payload))?;
    }
    let full = server.resident_kib()? as f64;
    // The server forgets expired messages after some time, and the allocator returns their memory after more
    // time.
    let mut least = full;
    for _ in 0..setting.size(12, 6) {
        thread::sleep(Duration::from_secs(5));
        let now = server.resident_kib()? as f64;
        if now < least * 0.99 {
            least = now;
        } else if least < full * 0.9 {
            break;
        }
    }
    let least = server.settled_kib(PATIENCE)? as f64;
    let each = |kib: f64| Series::one((kib - empty) * 1024.0 / topics as f64);
    Ok(vec![
        Line::new(
            format!("topic published to once, {} of them, expired", table::count(topics)),
            "bytes",
            each(least),
        )
        .target(200.0, 200.0),
        Line::new(format!("the same with its {PAYLOAD_BYTES} bytes retained"), "bytes", each(full)),
    ])
}

/// The "empty" server has accepted a batch.
fn empty_kib(server: &Process, publisher: &mut Publisher) -> Outcome<f64> {
    let names = (0..BATCH).map(|_| "warm".to_owned());
    publisher.publish(&wire::batch(names, &wire::payload(PAYLOAD_BYTES, 0)))?;
    Ok(server.settled_kib(PATIENCE)? as f64)
}
