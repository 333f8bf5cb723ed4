//! The result as a table.

use std::{fmt, time::Duration};

use clap::ValueEnum;
use hdrhistogram::Histogram;
use indicatif::HumanCount;

use super::{Bench, reader::Heard};
use crate::cli::Ending;

/// The rate counts as reached from this part of it on.
const NEARLY: f64 = 0.95;

pub struct Report {
    pub bench: Bench,
    pub published: u64,
    /// How long publishing took.
    pub publishing: Duration,
    pub heard: Heard,
    /// In microseconds.
    pub latency: Histogram<u64>,
}

impl Report {
    /// Done if every message arrived once and in order.
    pub fn ending(&self) -> Ending {
        match self.heard {
            Heard { lost: 0, duplicated: 0, reordered: 0, .. } => Ending::Done,
            Heard { lost, duplicated, reordered, .. } => Ending::Doubtful(format!(
                "{lost} deliveries are missing, {duplicated} came twice, {reordered} came late"
            )),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bench, published, publishing, heard, latency } = self;
        let Bench { subscribers, topics, rate, size, .. } = bench;
        let transport =
            bench.transport.to_possible_value().map_or_else(String::new, |it| it.get_name().into());
        let per_second = |count: u64| count as f64 / publishing.as_secs_f64().max(0.001);
        let counted = |count: f64| HumanCount(count.round() as u64).to_string();
        writeln!(
            f,
            "subscribers {subscribers}, transport {transport}, topics {topics}, rate {rate}, size {size}\n"
        )?;
        writeln!(f, "{:<12}{:>14}{:>14}", "", "messages", "a second")?;
        for (what, count) in [("published", *published), ("delivered", heard.delivered)] {
            writeln!(f, "{what:<12}{:>14}{:>14}", HumanCount(count).to_string(), counted(per_second(count)))?;
        }
        writeln!(f, "\n{:<12}{:>14}", "latency", "ms")?;
        for (what, quantile) in
            [("50 %", 0.5), ("90 %", 0.9), ("99 %", 0.99), ("99.9 %", 0.999), ("most", 1.0)]
        {
            let micros = latency.value_at_quantile(quantile);
            writeln!(f, "{what:<12}{:>14.3}", micros as f64 / 1e3)?;
        }
        writeln!(f)?;
        let counts = [
            ("lost", heard.lost),
            ("duplicated", heard.duplicated),
            ("reordered", heard.reordered),
            ("gaps told", heard.gaps),
            ("cut off", heard.cuts),
        ];
        for (what, count) in counts {
            writeln!(f, "{what:<12}{:>14}", HumanCount(count).to_string())?;
        }
        if per_second(*published) < NEARLY * f64::from(*rate) {
            writeln!(f, "\nThe rate was not reached: the server, or this machine, can do no more.")?;
        }
        Ok(())
    }
}
