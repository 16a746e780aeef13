//! [pure] A run as a text table. Columns are aligned by hand: that is all a table needs.

use std::fmt::Write as _;

use super::figures::{Figures, Latency, Report};

/// The table, the latencies in full, what was measured on, and what went wrong.
pub(super) fn text(report: &Report) -> String {
    let mut text = machine(report);
    text.push('\n');
    text.push_str(&table(&HEAD, report.rows.iter().map(row)));
    let latencies: Vec<_> = report.rows.iter().flat_map(latency_rows).collect();
    if !latencies.is_empty() {
        text.push_str("\nLatency in milliseconds, from the moment a request was due\n");
        text.push_str(&table(&LATENCY_HEAD, latencies));
    }
    text.push('\n');
    for row in &report.rows {
        for promise in &row.promises {
            let word = if promise.is_kept() { "kept" } else { "NOT KEPT" };
            let _ = writeln!(
                text,
                "{}: {}: {:.2}, at most {}: {word}",
                row.scenario, promise.what, promise.measured, promise.at_most
            );
        }
        for note in &row.notes {
            let _ = writeln!(text, "{} ({}): {note}", row.scenario, row.mode);
        }
    }
    for row in &report.rows {
        for fault in &row.faults {
            let _ = writeln!(text, "FAULT {} ({}): {fault}", row.scenario, row.mode);
        }
    }
    let verified: usize = report.rows.iter().map(|row| row.signatures_verified).sum();
    if report.rows.iter().all(|row| row.faults.is_empty()) {
        let _ = writeln!(
            text,
            "All that was accepted was stored, and told exactly once to each that it is for; {verified} signatures verified."
        );
    }
    text
}

const HEAD: [&str; 15] = [
    "scenario",
    "mode",
    "rate/s",
    "accept p50",
    "p99",
    "arrival p50",
    "p99",
    "CPU service",
    "postgres",
    "both",
    "× bare",
    "commits",
    "WAL B",
    "table B",
    "others",
];

fn row(figures: &Figures) -> [String; 15] {
    // The bare loop has no service: its client stands in that column.
    let service = figures.cpu.service.or(figures.cpu.load);
    [
        figures.scenario.to_owned(),
        figures.mode.to_owned(),
        rounded(Some(figures.rate_per_s), 0),
        rounded(figures.accept_ms.map(|ms| ms.p50), 2),
        rounded(figures.accept_ms.map(|ms| ms.p99), 2),
        rounded(figures.arrival_ms.map(|ms| ms.p50), 2),
        rounded(figures.arrival_ms.map(|ms| ms.p99), 2),
        rounded(service, 4),
        rounded(figures.cpu.postgres, 4),
        rounded(figures.cpu.both().or(service), 4),
        rounded(figures.times_bare, 2),
        rounded(figures.commits, 1),
        rounded(figures.wal_bytes, 0),
        rounded(figures.table_bytes, 0),
        rounded(figures.others_cores, 2),
    ]
}

const LATENCY_HEAD: [&str; 9] = ["scenario", "mode", "rate/s", "what", "p50", "p90", "p99", "p99.9", "max"];

fn latency_rows(figures: &Figures) -> Vec<[String; 9]> {
    let line = |what: &str, latency: Latency| {
        let ms = |value| rounded(Some(value), 2);
        [
            figures.scenario.to_owned(),
            figures.mode.to_owned(),
            rounded(figures.offered_per_s.or(Some(figures.rate_per_s)), 0),
            what.to_owned(),
            ms(latency.p50),
            ms(latency.p90),
            ms(latency.p99),
            ms(latency.p999),
            ms(latency.max),
        ]
    };
    let accept = figures.accept_ms.map(|latency| line("accept", latency));
    let arrival = figures.arrival_ms.map(|latency| line("arrival", latency));
    accept.into_iter().chain(arrival).collect()
}

fn machine(report: &Report) -> String {
    let machine = &report.machine;
    let gigabytes = machine.memory_bytes.map_or(0, |bytes| bytes / 1_000_000_000);
    let mut text = format!(
        "Ringback {} · {} · {} × {} · {gigabytes} GB · {} · PostgreSQL {} · 8 KiB on disk in {} µs\n",
        machine.ringback,
        machine.date,
        machine.cores,
        machine.cpu,
        machine.kernel,
        machine.postgresql,
        machine.sync_us.map_or_else(|| "?".to_owned(), |us| us.to_string()),
    );
    let _ = writeln!(
        text,
        "{} s a phase, {} callers, {} bytes of payload, the median of {} runs; ms, CPU seconds per 1,000, commits per 1,000, bytes each, cores busy with others",
        report.seconds, report.callers, report.payload_bytes, report.median_of
    );
    let loads: Vec<String> = report
        .rows
        .iter()
        .filter_map(|row| {
            let memory = row.peak_memory_bytes? / 1_000_000;
            let (load, receiver) = (rounded(row.cpu.load, 3), rounded(row.cpu.receiver, 3));
            Some(format!("{} {} {memory} MB, {load} + {receiver}", row.scenario, row.mode))
        })
        .collect();
    if !loads.is_empty() {
        let _ = writeln!(
            text,
            "Peak memory of the service, and the bench's own CPU per 1,000 (load + receiver): {}",
            loads.join("; ")
        );
    }
    text
}

fn rounded(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}

/// The first columns to the left, numbers to the right.
fn table<const N: usize>(head: &[&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut lines = vec![head.map(str::to_owned)];
    lines.extend(rows);
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for line in &lines {
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            let number = cell.starts_with(|letter: char| letter.is_ascii_digit() || letter == '–');
            let right = number || (column >= 2 && lines[0][column] == *cell);
            let gap = if column == 0 { "" } else { "  " };
            let _ =
                if right { write!(text, "{gap}{cell:>width$}") } else { write!(text, "{gap}{cell:<width$}") };
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["a".to_owned(), "7".to_owned()], ["bcd".to_owned(), "–".to_owned()]];
        assert_eq!(table(&["x", "number"], rows), "x    number\na         7\nbcd       –\n");
    }
}
