//! The results, and their Markdown table.

use std::fmt;

/// The values of one figure in all rounds.
#[derive(Clone, Debug, Default)]
pub struct Series(Vec<f64>);

impl Series {
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub fn one(value: f64) -> Self {
        Self(vec![value])
    }

    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            odd if odd % 2 == 1 => sorted[odd / 2],
            even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
        }
    }

    /// Computed for each round, because the machine's speed drifts between rounds.
    fn against(&self, limit: &Self) -> Self {
        Self(self.0.iter().zip(&limit.0).map(|(value, limit)| value / limit).collect())
    }
}

/// The median, and the range of the rounds.
impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Short(self.median()))?;
        if self.0.len() > 1 {
            let least = self.0.iter().copied().fold(f64::INFINITY, f64::min);
            let most = self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            write!(f, " ({}..{})", Short(least), Short(most))?;
        }
        Ok(())
    }
}

/// Three significant digits, and a space between thousands.
struct Short(f64);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            value if value.abs() < 9.995 => write!(f, "{value:.2}"),
            value if value.abs() < 99.95 => write!(f, "{value:.1}"),
            value => f.write_str(&thousands(value.round() as i64)),
        }
    }
}

/// `10 000`.
fn thousands(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = if number < 0 { "-".to_owned() } else { String::new() };
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// The same for a count.
pub fn count(number: usize) -> String {
    thousands(number as i64)
}

/// The meaning of the goals.
#[derive(Clone, Copy)]
pub enum Better {
    /// The ratio to the limit, or the figure itself if there is no limit, should be at most the goal.
    Lower,
    /// It should be at least the goal.
    Higher,
}

pub struct Line {
    name: String,
    unit: &'static str,
    figure: Series,
    limit: Option<(&'static str, Series)>,
    better: Better,
    targets: Option<(f64, f64)>,
    /// True if the goal is about the figure itself although there is a reference.
    absolute: bool,
}

impl Line {
    pub fn new(name: impl Into<String>, unit: &'static str, figure: Series) -> Self {
        Self {
            name: name.into(),
            unit,
            figure,
            limit: None,
            better: Better::Lower,
            targets: None,
            absolute: false,
        }
    }

    /// Adds the reference, measured in the same rounds.
    pub fn against(mut self, what: &'static str, limit: Series) -> Self {
        self.limit = Some((what, limit));
        self
    }

    pub fn target(mut self, first: f64, then: f64) -> Self {
        self.targets = Some((first, then));
        self
    }

    pub fn target_itself(mut self, first: f64, then: f64) -> Self {
        self.absolute = true;
        self.target(first, then)
    }

    pub fn higher(mut self) -> Self {
        self.better = Better::Higher;
        self
    }

    fn verdict(&self, target: f64) -> String {
        let ratio = self.ratio().filter(|_| !self.absolute);
        let value = ratio.unwrap_or_else(|| self.figure.clone()).median();
        let met = match self.better {
            Better::Lower => value <= target,
            Better::Higher => value >= target,
        };
        format!("{target} {}", if met { "met" } else { "**missed**" })
    }

    fn ratio(&self) -> Option<Series> {
        self.limit.as_ref().map(|(_, limit)| self.figure.against(limit))
    }
}

pub const HEADER: &str = "| figure | unit | measured | compared to | | ratio | first goal | later goal |\n\
                          |---|---|---|---|---|---|---|---|";

/// A row of the Markdown table.
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| {} | {} | {} ", self.name, self.unit, self.figure)?;
        match (&self.limit, self.ratio()) {
            (Some((what, limit)), Some(ratio)) => write!(f, "| {what} | {limit} | {ratio} ")?,
            _ => write!(f, "| | | ")?,
        }
        match self.targets {
            Some((first, then)) => write!(f, "| {} | {} |", self.verdict(first), self.verdict(then)),
            None => write!(f, "| | |"),
        }
    }
}
