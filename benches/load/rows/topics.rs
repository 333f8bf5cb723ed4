//! The cost of a delivery with many topics: a server with one subscriber on each of 9 000 topics, compared with a
//! ready write to as many sockets, and with a server that has 1 000 subscribers on one topic.

use crate::{
    Outcome, PAYLOAD_BYTES, Setting,
    client::Fleet,
    limit::Limit,
    process::Process,
    table::{self, Line, Series},
    wire::{self, Publisher, Transport},
};

use super::{
    SUBSCRIBERS,
    fan_out::{Flight, deliver, subscribe, subscribe_to, write},
};

/// Messages in one `POST /publish`, each to another topic.
const BATCH: usize = 1_000;

pub fn row(setting: &Setting) -> Outcome<Vec<Line>> {
    let transport = Transport::WebSocket;
    // Both fleets fit into 20 000 descriptors.
    let topics = setting.size(9_000, 2_000);
    let wide = setting.server()?;
    let mut wide_fleet = subscribe_to(&wide, transport, topics, |n| format!("heard.{n}"))?;
    let mut wide_publisher = Publisher::connect(wide.addr)?;
    let heard = batches("heard", topics);
    let unheard = batches("unheard", topics);

    let narrow = setting.server()?;
    let mut narrow_fleet = subscribe(&narrow, transport, SUBSCRIBERS)?;
    let mut narrow_publisher = Publisher::connect(narrow.addr)?;
    let mut limit = Limit::start()?;
    let mut limit_fleet = limit.fleet(topics, transport.framing())?;
    let steps = topics / BATCH * setting.size(10, 2);
    let flight = Flight::at_once(1, 100);

    deliver(setting, &narrow, &mut narrow_fleet, &mut narrow_publisher, flight)?;
    limit.load(transport.framing(), narrow_fleet.sample().0, 1)?;
    publish(&wide, None, &mut wide_publisher, &heard, heard.len())?;
    wide_fleet.until_each(1)?;
    publish(&wide, None, &mut wide_publisher, &unheard, unheard.len())?;

    let (mut alone, mut whole, mut publishing) = (Series::default(), Series::default(), Series::default());
    let (mut one, mut written) = (Series::default(), Series::default());
    for _ in 0..setting.rounds {
        let heard_ns = publish(&wide, Some(&mut wide_fleet), &mut wide_publisher, &heard, steps)?;
        let unheard_ns = publish(&wide, None, &mut wide_publisher, &unheard, steps)?;
        one.push(deliver(setting, &narrow, &mut narrow_fleet, &mut narrow_publisher, flight)?);
        written.push(write(setting, &mut limit, &mut limit_fleet, Flight::at_once(1, 20))?);
        alone.push(heard_ns - unheard_ns);
        whole.push(heard_ns);
        publishing.push(unheard_ns);
    }
    let name = |what| format!("WebSocket delivery, {} topics of one subscriber{what}", table::count(topics));
    Ok(vec![
        Line::new(name(", its publish taken off"), "ns/delivery", alone)
            .against("one ready write to each of as many sockets", written)
            .target(1.3, 1.25),
        Line::new(name(", with its publish"), "ns/delivery", whole).against("1 topic of 1 000", one),
        Line::new("a publish to a topic without subscribers, 1 000 a request", "ns/message", publishing),
    ])
}

/// Requests that together publish once to every topic.
fn batches(prefix: &str, topics: usize) -> Vec<Vec<u8>> {
    let payload = wire::payload(PAYLOAD_BYTES, 0);
    (0..topics / BATCH)
        .map(|batch| {
            let topics = (batch * BATCH..(batch + 1) * BATCH).map(|n| format!("{prefix}.{n}"));
            wire::batch(topics, &payload)
        })
        .collect()
}

/// The server's nanoseconds for each message. With a fleet, that includes its delivery.
fn publish(
    server: &Process,
    mut fleet: Option<&mut Fleet>,
    publisher: &mut Publisher,
    requests: &[Vec<u8>],
    steps: usize,
) -> Outcome<f64> {
    if let Some(fleet) = &mut fleet {
        fleet.recount();
    }
    let before = server.cpu_ns()?;
    for (step, request) in (1..=steps).zip(requests.iter().cycle()) {
        publisher.send(request)?;
        if let Some(fleet) = &mut fleet {
            fleet.until_all((step * BATCH) as u64)?;
        }
        publisher.accepted()?;
    }
    Ok((server.cpu_ns()? - before) as f64 / (steps * BATCH) as f64)
}
