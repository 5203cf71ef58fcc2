//! Aligned tables, and the few statistics that they show.

use std::time::Duration;

/// Prints a heading, and rows below a header, the first column to the left and the others to the right.
pub fn print(title: &str, header: &[&str], rows: &[Vec<String>]) {
    let columns = header.len();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(std::iter::once(header[column].chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().enumerate().map(|(column, cell)| {
            let width = widths[column];
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        padded.collect::<Vec<_>>().join("   ")
    };
    println!("\n{title}");
    println!("  {}", line(&header.iter().map(ToString::to_string).collect::<Vec<_>>()));
    for row in rows {
        println!("  {}", line(row));
    }
}

/// The header over rows of [`times`].
pub const TIMES: [&str; 4] = ["", "p50", "p99", "max"];

/// A row of how long something took.
pub fn times(name: &str, mut times: Vec<Duration>) -> Vec<String> {
    times.sort_unstable();
    let at =
        |q: f64| times.get((times.len().saturating_sub(1) as f64 * q).round() as usize).copied().unwrap_or_default();
    vec![name.to_owned(), milliseconds(at(0.5)), milliseconds(at(0.99)), milliseconds(at(1.0))]
}

/// The value that a share `q` (0 to 1) of the values does not exceed.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (sorted.len().saturating_sub(1) as f64 * q).round() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

/// Half of the values are below it.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// Milliseconds, with three digits after the point.
pub fn milliseconds(duration: Duration) -> String {
    format!("{:.3} ms", duration.as_secs_f64() * 1e3)
}

/// Mebibytes.
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}
