//! Counts what a run really exercised: a checker that never cut a connection has proven nothing.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::standing::Standing;
use crate::support::client::Transport;

/// The moment of a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cut {
    /// The parser held the beginning of a frame.
    InsideFrame,
    BetweenFrames,
    /// Messages from before the connection were still to come. This counts in addition to the other two.
    DuringReplay,
}

impl Cut {
    const ALL: [Self; 3] = [Self::InsideFrame, Self::BetweenFrames, Self::DuringReplay];
}

#[derive(Default)]
pub struct Tally {
    cuts: Mutex<BTreeMap<(Transport, Cut), usize>>,
    /// From the transport that gave a cursor to the transport that used it.
    hops: Mutex<BTreeMap<(Transport, Transport), usize>>,
    cuts_before_a_frame: AtomicUsize,
    cuts_before_subscribed: AtomicUsize,
    published: AtomicUsize,
    received: AtomicUsize,
    gaps: AtomicUsize,
    gaps_midway: AtomicUsize,
    gaps_replayed: AtomicUsize,
    repeated: AtomicUsize,
    refused: AtomicUsize,
    ended: AtomicUsize,
}

impl Tally {
    pub fn cut(&self, transport: Transport, cut: Cut) {
        *self.cuts.lock().expect("no panic while it is held").entry((transport, cut)).or_default() += 1;
    }

    pub fn hop(&self, from: Transport, to: Transport) {
        *self.hops.lock().expect("no panic while it is held").entry((from, to)).or_default() += 1;
    }

    pub fn cut_before_a_frame(&self) {
        self.cuts_before_a_frame.fetch_add(1, Ordering::Relaxed);
    }

    pub fn cut_before_subscribed(&self) {
        self.cuts_before_subscribed.fetch_add(1, Ordering::Relaxed);
    }

    /// A publish with an unknown outcome was repeated.
    pub fn repeat(&self) {
        self.repeated.fetch_add(1, Ordering::Relaxed);
    }

    /// A request to read was refused.
    pub fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection that was not cut has ended.
    pub fn end(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    pub fn ended(&self) -> usize {
        self.ended.load(Ordering::Relaxed)
    }

    /// For a run in which only the trouble of the servers counts.
    pub fn summary(&self) -> String {
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        format!(
            "published {}, received {}, repeated {}, refused {}, ended {}, gaps {}",
            count(&self.published),
            count(&self.received),
            count(&self.repeated),
            count(&self.refused),
            count(&self.ended),
            count(&self.gaps),
        )
    }

    pub fn published(&self, count: usize) {
        self.published.fetch_add(count, Ordering::Relaxed);
    }

    pub fn received(&self, Standing { given, gaps, .. }: &Standing) {
        let midway = gaps.iter().filter(|told| told.is_midway).count();
        let replayed = gaps.iter().filter(|told| told.gap.replay).count();
        self.received.fetch_add(given.len(), Ordering::Relaxed);
        self.gaps.fetch_add(gaps.len(), Ordering::Relaxed);
        self.gaps_midway.fetch_add(midway, Ordering::Relaxed);
        self.gaps_replayed.fetch_add(replayed, Ordering::Relaxed);
    }

    /// Events that should have happened and did not.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        let cuts = self.cuts.lock().expect("no panic while it is held");
        let hops = self.hops.lock().expect("no panic while it is held");
        for from in Transport::ALL {
            let cut = Cut::ALL.into_iter().filter(|&cut| !cuts.contains_key(&(from, cut)));
            missing.extend(cut.map(|cut| format!("no cut {cut:?} on {from}")));
            let hop = Transport::ALL.into_iter().filter(|&to| !hops.contains_key(&(from, to)));
            missing.extend(hop.map(|to| format!("no hop from {from} to {to}")));
        }
        let others = [
            (&self.gaps, "no gap"),
            (&self.gaps_midway, "no gap for a subscriber that fell behind while reading"),
            (&self.gaps_replayed, "no gap in a replay"),
            (&self.cuts_before_subscribed, "no cut between a subscribe and its answer"),
        ];
        let never = others.iter().filter(|(counter, _)| counter.load(Ordering::Relaxed) == 0);
        missing.extend(never.map(|(_, what)| (*what).to_owned()));
        missing
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        let cuts = self.cuts.lock().expect("no panic while it is held");
        let hops = self.hops.lock().expect("no panic while it is held");
        writeln!(f, "{:>10} {:>8} {:>8} {:>8}", "cuts", "inside", "between", "replay")?;
        for transport in Transport::ALL {
            let [inside, between, replay] =
                Cut::ALL.map(|cut| cuts.get(&(transport, cut)).copied().unwrap_or(0));
            writeln!(f, "{transport:>10} {inside:>8} {between:>8} {replay:>8}")?;
        }
        let [a, b, c, d] = Transport::ALL.map(|to| format!("to {to}"));
        writeln!(f, "{:>10} {a:>12} {b:>12} {c:>12} {d:>12}", "hops from")?;
        for from in Transport::ALL {
            let [a, b, c, d] = Transport::ALL.map(|to| hops.get(&(from, to)).copied().unwrap_or(0));
            writeln!(f, "{from:>10} {a:>12} {b:>12} {c:>12} {d:>12}")?;
        }
        writeln!(f, "cut before the first frame: {}", count(&self.cuts_before_a_frame))?;
        writeln!(f, "cut between a subscribe and its answer: {}", count(&self.cuts_before_subscribed))?;
        writeln!(f, "published {}, received {}", count(&self.published), count(&self.received))?;
        let [gaps, midway, replayed] = [&self.gaps, &self.gaps_midway, &self.gaps_replayed].map(count);
        write!(f, "told {gaps} gaps: {midway} while reading, {replayed} in a replay")
    }
}
