//! The metrics of the process itself, read from the files of Linux at each scrape. It knows nothing of the server.

use std::fs;

use prometheus::{
    Counter, IntGauge,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};

const CPU: (&str, &str) = ("process_cpu_seconds_total", "Processor time of the process, user and system.");

/// In the order of [`Reading::gauges`].
const GAUGES: [(&str, &str); 6] = [
    ("process_open_fds", "Open file descriptors."),
    ("process_max_fds", "The limit of open file descriptors."),
    ("process_virtual_memory_bytes", "Memory that the process has asked for."),
    ("process_resident_memory_bytes", "Memory in use."),
    ("process_start_time_seconds", "When the process started, in seconds since 1970."),
    ("process_threads", "Threads."),
];

/// Reads the metrics anew for each scrape. A metric that cannot be read is left out.
pub struct ProcessMetrics {
    cpu: Counter,
    gauges: [IntGauge; GAUGES.len()],
}

impl ProcessMetrics {
    pub fn new() -> Self {
        Self {
            cpu: counter(),
            gauges: GAUGES.map(|(name, help)| IntGauge::new(name, help).expect("a valid name")),
        }
    }
}

impl Collector for ProcessMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.cpu.desc().into_iter().chain(self.gauges.iter().flat_map(Collector::desc)).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let reading = Reading::take();
        let mut families = Vec::with_capacity(1 + GAUGES.len());
        if let Some(stat) = &reading.stat {
            // A new counter, because two scrapes at once would add the same time twice to a kept one.
            let cpu = counter();
            cpu.inc_by(stat.cpu_seconds);
            families.extend(cpu.collect());
        }
        for (gauge, value) in self.gauges.iter().zip(reading.gauges()) {
            if let Some(value) = value {
                gauge.set(value.try_into().unwrap_or(i64::MAX));
                families.extend(gauge.collect());
            }
        }
        families
    }
}

fn counter() -> Counter {
    let (name, help) = CPU;
    Counter::new(name, help).expect("a valid name")
}

/// One look at the process.
struct Reading {
    stat: Option<Stat>,
    open_fds: Option<u64>,
    /// It is `None` also if there is no limit.
    max_fds: Option<u64>,
    /// When the machine started, in seconds since 1970.
    boot_seconds: Option<u64>,
}

impl Reading {
    fn take() -> Self {
        Self {
            stat: fs::read_to_string("/proc/self/stat").ok().and_then(|text| Stat::parse(&text)),
            // Reading the folder opens it, and that is one descriptor more.
            open_fds: fs::read_dir("/proc/self/fd").ok().map(|fds| (fds.count() as u64).saturating_sub(1)),
            max_fds: getrlimit(Resource::Nofile).current,
            boot_seconds: fs::read_to_string("/proc/stat").ok().and_then(|text| boot_seconds(&text)),
        }
    }

    /// In the order of [`GAUGES`].
    fn gauges(&self) -> [Option<u64>; GAUGES.len()] {
        let stat = self.stat.as_ref();
        [
            self.open_fds,
            self.max_fds,
            stat.map(|stat| stat.virtual_bytes),
            stat.map(|stat| stat.resident_bytes),
            stat.zip(self.boot_seconds).map(|(stat, boot)| boot + stat.started_after_boot),
            stat.map(|stat| stat.threads),
        ]
    }
}

/// The fields of `/proc/self/stat` that become metrics (proc(5)).
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_seconds: f64,
    threads: u64,
    /// In seconds.
    started_after_boot: u64,
    virtual_bytes: u64,
    resident_bytes: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The second field is the name of the program, which may contain spaces and parentheses.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // Numbered as in proc(5); the first one here is the third one there.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_seconds: (field(14)? + field(15)?) as f64 / clock_ticks_per_second() as f64,
            threads: field(20)?,
            started_after_boot: field(22)? / clock_ticks_per_second(),
            virtual_bytes: field(23)?,
            resident_bytes: field(24)? * page_size() as u64,
        })
    }
}

/// Reads this from `/proc/stat`.
fn boot_seconds(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        time::{SystemTime, UNIX_EPOCH},
    };

    use super::*;

    #[test]
    fn the_name_of_a_program_cannot_shift_the_fields() {
        let fields = "S 1 7 7 0 -1 4194560 1 0 0 0 300 200 0 0 20 0 9 0 4000 8192 3 18446744073709551615";
        let ticks = clock_ticks_per_second();
        let expected = Stat {
            cpu_seconds: 500.0 / ticks as f64,
            threads: 9,
            started_after_boot: 4000 / ticks,
            virtual_bytes: 8192,
            resident_bytes: 3 * page_size() as u64,
        };
        for name in ["rejoin", "a b", ") R 9 9", "(("] {
            let stat = Stat::parse(&format!("7 ({name}) {fields}"));
            assert_eq!(stat.as_ref(), Some(&expected), "{name}");
        }
        assert_eq!(Stat::parse("7 (rejoin) S 1 7"), None);
        assert_eq!(boot_seconds("cpu 1 2\nbtime 1700000000\nprocesses 5\n"), Some(1_700_000_000));
        assert_eq!(boot_seconds("cpu 1 2\n"), None);
    }

    #[test]
    fn a_scrape_reads_this_process() {
        let value = |name: &str| {
            let families = ProcessMetrics::new().collect();
            let family = families.iter().find(|family| family.name() == name)?;
            let metric = &family.get_metric()[0];
            Some(metric.get_gauge().get_value() + metric.get_counter().get_value())
        };
        let of = |name: &str| value(name).unwrap_or_else(|| panic!("{name} is there"));
        assert!(of("process_cpu_seconds_total") < 3600.0);
        assert!(of("process_threads") >= 1.0);
        assert!(of("process_max_fds") >= of("process_open_fds"));
        assert!(of("process_virtual_memory_bytes") >= of("process_resident_memory_bytes"));
        assert!(of("process_resident_memory_bytes") >= 1e5);

        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
        let age = now - of("process_start_time_seconds");
        assert!((-2.0..3600.0).contains(&age), "it started {age} s ago");

        // Other tests open files too, but not so many.
        let before = of("process_open_fds");
        let files: Vec<_> = (0..500).map(|_| File::open("/proc/self/stat").expect("a file")).collect();
        let more = of("process_open_fds") - before;
        assert!((400.0..600.0).contains(&more), "{more} more for {} files", files.len());
    }
}
