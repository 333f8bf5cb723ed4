//! One message to the one reader of its topic, and its publish: compared with axum's plain `POST` and one ready write.

use crate::{
    Outcome, PAYLOAD_BYTES, Setting,
    client::Fleet,
    limit::Limit,
    process::Process,
    table::{Line, Series},
    wire::{self, Publisher, Transport},
};

use super::{
    SUBSCRIBERS,
    fan_out::{Flight, subscribe_to, write},
};

const ROUND: Flight = Flight::at_once(1, 2_000);

pub fn row(setting: &Setting) -> Outcome<Vec<Line>> {
    let plain = Process::start_self("plain")?;
    let mut plain_publisher = Publisher::connect(plain.addr)?;
    let payload = wire::payload(PAYLOAD_BYTES, 0);
    let post = |topic: &str| wire::post(&format!("/{topic}"), "application/json", payload.as_bytes());
    let requests: Vec<_> = (0..SUBSCRIBERS).map(|n| post(&format!("topics/{}", topic(n)))).collect();
    let plain_request = post("plain/bench");
    let mut lines = Vec::new();
    for transport in [Transport::WebSocket, Transport::Sse, Transport::Poll] {
        let server = setting.server()?;
        let mut fleet = subscribe_to(&server, transport, SUBSCRIBERS, topic)?;
        let mut publisher = Publisher::connect(server.addr)?;
        publish(setting, &server, &mut fleet, &mut publisher, &requests)?;
        let mut limits = Vec::new();
        for sockets in [1, 2] {
            let mut limit = Limit::start()?;
            let limit_fleet = limit.fleet(sockets, transport.framing())?;
            limit.load(transport.framing(), fleet.sample().0, 1)?;
            limits.push((limit, limit_fleet));
        }
        let (mut ours, mut theirs) = (Series::default(), Series::default());
        for _ in 0..setting.rounds {
            ours.push(publish(setting, &server, &mut fleet, &mut publisher, &requests)?);
            let before = plain.cpu_ns()?;
            let steps = ROUND.steps(setting);
            let messages = steps.len();
            for _ in steps {
                plain_publisher.publish(&plain_request)?;
            }
            let posted = (plain.cpu_ns()? - before) as f64 / messages as f64;
            let mut written = [0.0; 2];
            for (ns, (limit, limit_fleet)) in written.iter_mut().zip(&mut limits) {
                *ns = write(setting, limit, limit_fleet, ROUND)? * limit_fleet.len() as f64;
            }
            // The second socket costs a write alone. The first one costs the command to the limit too.
            theirs.push(posted + written[1] - written[0]);
        }
        let name = format!("publish to one reader of 1 000, each of a topic, {}", transport.name());
        lines.push(
            Line::new(name, "ns/message", ours).against("axum's plain `POST` and one ready write", theirs),
        );
    }
    Ok(lines)
}

/// The server's nanoseconds for each publish and its delivery.
fn publish(
    setting: &Setting,
    server: &Process,
    fleet: &mut Fleet,
    publisher: &mut Publisher,
    requests: &[Vec<u8>],
) -> Outcome<f64> {
    fleet.recount();
    let before = server.cpu_ns()?;
    let steps = ROUND.steps(setting);
    let messages = steps.len();
    for (step, request) in steps.zip(requests.iter().cycle()) {
        publisher.send(request)?;
        fleet.until_all(step as u64)?;
        publisher.accepted()?;
    }
    Ok((server.cpu_ns()? - before) as f64 / messages as f64)
}

fn topic(n: usize) -> String {
    format!("heard.{n}")
}
