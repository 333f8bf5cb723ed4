//! Checks if a delivery costs more with many topics: a server with one subscriber on each of 10 000 topics,
//! compared with one that has 1 000 subscribers on one topic.

use crate::{
    Outcome, PAYLOAD_BYTES, Setting,
    client::{Arrival, Fleet, Habit},
    process::Process,
    table::{self, Line, Series},
    wire::{self, Publisher, Transport},
};

use super::{
    SUBSCRIBERS,
    fan_out::{deliver, flight_of, subscribe},
};

/// Messages in one `POST /publish`, each to another topic.
const BATCH: usize = 1_000;

pub fn row(setting: &Setting) -> Outcome<Vec<Line>> {
    let transport = Transport::WebSocket;
    let topics = setting.size(10_000, 2_000);
    let wide = setting.server()?;
    let mut wide_fleet = Fleet::arrive(&Arrival {
        addr: wide.addr,
        count: topics,
        framing: transport.framing(),
        request: &|n| transport.subscribe(&format!("heard.{n}"), ""),
        habit: Habit::reads(transport, ""),
        window: 1_000,
    })?;
    let mut wide_publisher = Publisher::connect(wide.addr)?;
    let heard = batches("heard", topics);
    let unheard = batches("unheard", topics);

    let narrow = setting.server()?;
    let mut narrow_fleet = subscribe(&narrow, transport, SUBSCRIBERS)?;
    let mut narrow_publisher = Publisher::connect(narrow.addr)?;
    let request = flight_of(1);
    let steps = topics / BATCH * setting.size(10, 2);

    deliver(&narrow, &mut narrow_fleet, &mut narrow_publisher, &request, 1, 2)?;
    publish(&wide, None, &mut wide_publisher, &heard, heard.len())?;
    wide_fleet.until_each(1)?;
    publish(&wide, None, &mut wide_publisher, &unheard, unheard.len())?;

    let (mut alone, mut whole, mut one) = (Series::default(), Series::default(), Series::default());
    let mut publishing = Series::default();
    for _ in 0..setting.rounds {
        let heard_ns = publish(&wide, Some(&mut wide_fleet), &mut wide_publisher, &heard, steps)?;
        let unheard_ns = publish(&wide, None, &mut wide_publisher, &unheard, steps)?;
        one.push(deliver(&narrow, &mut narrow_fleet, &mut narrow_publisher, &request, 1, steps)?);
        alone.push(heard_ns - unheard_ns);
        whole.push(heard_ns);
        publishing.push(unheard_ns);
    }
    let name = |what| format!("WebSocket delivery, {} topics of one subscriber{what}", table::count(topics));
    let narrow = "1 topic of 1 000";
    Ok(vec![
        Line::new(name(", its publish taken off"), "ns/delivery", alone)
            .against(narrow, one.clone())
            .target(1.3, 1.1),
        Line::new(name(", with its publish"), "ns/delivery", whole).against(narrow, one),
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
