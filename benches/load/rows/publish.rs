//! The rate of accepted publishes, compared with a plain application that only reads the body and answers.

use tokio::time::Instant;

use crate::{
    Outcome, PAYLOAD_BYTES, Setting,
    client::Fleet,
    process::Process,
    table::{Line, Series},
    wire::{self, Publisher},
};

use super::{
    fan_out::{TOPIC, flight_of},
    long_poll::asking,
};

/// Keep-alive connections, each with one request in flight.
const CONNECTIONS: usize = 32;

/// Messages in one `POST /publish`.
const BATCH: usize = 100;

pub fn row(setting: &Setting) -> Outcome<Vec<Line>> {
    let payload = wire::payload(PAYLOAD_BYTES, 0);
    let server = setting.server()?;
    let plain = Process::start_self("plain")?;
    let post = |path: &str| wire::post(path, "application/json", payload.as_bytes());

    let one = Contest {
        server: &server,
        plain: &plain,
        ours: asking(&server, CONNECTIONS, post(&format!("/topics/{TOPIC}")))?,
        theirs: asking(&plain, CONNECTIONS, post(&format!("/plain/{TOPIC}")))?,
        messages: 1,
    };
    let (rates, costs) = one.run(setting, setting.size(30_000, 2_000))?;

    let batch = flight_of(BATCH);
    Publisher::connect(server.addr)?.publish(&batch)?;
    let plain_batch = String::from_utf8(batch.clone())?.replacen("/publish", "/plain/publish", 1);
    let many = Contest {
        server: &server,
        plain: &plain,
        ours: asking(&server, CONNECTIONS, batch)?,
        theirs: asking(&plain, CONNECTIONS, plain_batch.into_bytes())?,
        messages: BATCH,
    };
    let (batch_rates, batch_costs) = many.run(setting, setting.size(3_000, 200))?;

    const PLAIN: &str = "axum's plain `POST`";
    const PLAIN_BATCH: &str = "axum's plain `POST` of the same body";
    let name = |what| format!("publish, {CONNECTIONS} connections{what}");
    Ok(vec![
        Line::new(name(""), "accepted/s", rates.0).against(PLAIN, rates.1).higher().target(0.8, 0.95),
        Line::new(name(": server"), "ns/message", costs.0).against(PLAIN, costs.1),
        Line::new(name(", 100 a request"), "accepted/s", batch_rates.0)
            .against(PLAIN_BATCH, batch_rates.1)
            .higher(),
        Line::new(name(", 100 a request: server"), "ns/message", batch_costs.0)
            .against(PLAIN_BATCH, batch_costs.1),
    ])
}

struct Contest<'a> {
    server: &'a Process,
    plain: &'a Process,
    ours: Fleet,
    theirs: Fleet,
    /// The number of messages in each request.
    messages: usize,
}

type Pair = (Series, Series);

impl Contest<'_> {
    /// Messages a second, and nanoseconds for each.
    fn run(mut self, setting: &Setting, requests: usize) -> Outcome<(Pair, Pair)> {
        let (mut rates, mut costs) = (Pair::default(), Pair::default());
        ask(self.server, &mut self.ours, requests / 10, self.messages)?;
        ask(self.plain, &mut self.theirs, requests / 10, self.messages)?;
        for _ in 0..setting.rounds {
            let (rate, cost) = ask(self.server, &mut self.ours, requests, self.messages)?;
            rates.0.push(rate);
            costs.0.push(cost);
            let (rate, cost) = ask(self.plain, &mut self.theirs, requests, self.messages)?;
            rates.1.push(rate);
            costs.1.push(cost);
        }
        Ok((rates, costs))
    }
}

fn ask(process: &Process, fleet: &mut Fleet, requests: usize, messages: usize) -> Outcome<(f64, f64)> {
    let (before, begun) = (process.cpu_ns()?, Instant::now());
    fleet.ask(requests as u64)?;
    let wall = begun.elapsed();
    let messages = (requests * messages) as f64;
    Ok((messages / wall.as_secs_f64(), (process.cpu_ns()? - before) as f64 / messages))
}
