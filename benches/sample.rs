//! Samples of two sides that take turns, and how they are compared: by medians, and by the median of the rounds' ratios.

use std::time::Duration;

/// Rounds per pair.
pub const ROUNDS: usize = 5;

/// One side in one round.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Operations per second.
    pub rate: f64,
    /// How long each operation took, if that was measured.
    pub times: Vec<Duration>,
}

impl Sample {
    /// `count` operations in `elapsed`.
    pub fn new(count: usize, elapsed: Duration, times: Vec<Duration>) -> Self {
        Self { rate: count as f64 / elapsed.as_secs_f64(), times }
    }
}

/// The rounds of one side.
#[derive(Debug, Clone, Default)]
pub struct Side(Vec<Sample>);

impl Side {
    /// Adds a round.
    pub fn push(&mut self, sample: Sample) {
        self.0.push(sample);
    }

    /// Median of the rounds' rates.
    pub fn rate(&self) -> f64 {
        median(self.0.iter().map(|sample| sample.rate).collect())
    }

    /// Median over the rounds of a percentile of their times, in milliseconds.
    pub fn percentile(&self, of_hundred: usize) -> f64 {
        median(self.0.iter().map(|sample| percentile(&sample.times, of_hundred)).collect())
    }

    /// Median of this side's rate over the other's, round by round.
    pub fn ratio(&self, other: &Self) -> f64 {
        median(self.0.iter().zip(&other.0).map(|(ours, theirs)| ours.rate / theirs.rate).collect())
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn percentile(times: &[Duration], of_hundred: usize) -> f64 {
    let mut times = times.to_vec();
    times.sort();
    let index = (times.len() * of_hundred / 100).min(times.len().saturating_sub(1));
    times.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
}

/// A number for people: a measurement is good for no more than three digits.
pub fn count(value: f64) -> String {
    match value {
        v if v.is_nan() => "–".into(),
        v if v >= 999_500.0 => format!("{:.2} M", v / 1e6),
        v if v >= 9_995.0 => format!("{:.1} k", v / 1e3),
        v if v >= 999.5 => format!("{:.2} k", v / 1e3),
        v => format!("{v:.0}"),
    }
}

/// One line of a table; the first column is for the name.
pub fn line(name: &str, columns: &[&str]) {
    print!("  {name:<44}");
    for column in columns {
        print!("{column:>12}");
    }
    println!();
}
