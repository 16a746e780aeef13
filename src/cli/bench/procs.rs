//! What the kernel knows: CPU time of processes and threads, peak memory, and the machine. From `/proc`, so on other
//! systems than Linux these figures are missing from the report.
//!
//! PostgreSQL is its postmaster and the children that it has now, plus what it has waited for: a backend that ends takes
//! nothing out of the sum.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Instant;

use serde::Serialize;

/// `/proc` counts in hundredths of a second on every architecture (`USER_HZ` of the kernel's interface).
const TICKS_PER_S: f64 = 100.0;
const SYNC_TRIES: usize = 101;

struct Stat {
    name: String,
    parent: u32,
    /// User and system time.
    own: f64,
    /// The same of children that were waited for.
    waited: f64,
}

fn read_stat(path: &str) -> Option<Stat> {
    parse_stat(&fs::read_to_string(path).ok()?)
}

/// `proc(5)`: the name is in parentheses and may hold anything, so the rest is counted from the last one.
fn parse_stat(text: &str) -> Option<Stat> {
    let (begin, rest) = text.rsplit_once(')')?;
    let name = begin.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |place: usize| fields.get(place)?.parse::<f64>().ok().map(|ticks| ticks / TICKS_PER_S);
    Some(Stat {
        name,
        parent: fields.get(1)?.parse().ok()?,
        own: ticks(11)? + ticks(12)?,
        waited: ticks(13)? + ticks(14)?,
    })
}

/// CPU seconds of one process.
pub(super) fn cpu_of(pid: u32) -> Option<f64> {
    read_stat(&format!("/proc/{pid}/stat")).map(|stat| stat.own)
}

/// CPU seconds of a process, of its children, and of those that it has waited for.
pub(super) fn cpu_of_family(pid: u32) -> Option<f64> {
    let head = read_stat(&format!("/proc/{pid}/stat"))?;
    let children: f64 = fs::read_dir("/proc")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|child| read_stat(&format!("/proc/{child}/stat")))
        .filter(|stat| stat.parent == pid)
        .map(|stat| stat.own)
        .sum();
    Some(head.own + head.waited + children)
}

/// The postmaster of a backend, if both are on this machine.
pub(super) fn postmaster_of(backend: u32) -> Option<u32> {
    let stat = read_stat(&format!("/proc/{backend}/stat")).filter(|stat| stat.name.contains("postgres"))?;
    let parent = read_stat(&format!("/proc/{}/stat", stat.parent))?;
    parent.name.contains("postgres").then_some(stat.parent)
}

/// CPU seconds of this process, and of its living threads of this name.
pub(super) fn own_cpu(thread: &str) -> Option<(f64, f64)> {
    let all = cpu_of(std::process::id())?;
    let threads = fs::read_dir("/proc/self/task").ok()?.flatten();
    let stats = threads.filter_map(|entry| read_stat(&entry.path().join("stat").to_string_lossy()));
    Some((all, stats.filter(|stat| stat.name == thread).map(|stat| stat.own).sum()))
}

/// CPU seconds of the whole machine since it began, and those that its host took from it.
pub(super) fn cpu_of_machine() -> Option<f64> {
    parse_machine(&fs::read_to_string("/proc/stat").ok()?)
}

/// `proc(5)`: user, nice, system, idle, iowait, irq, softirq, steal.
fn parse_machine(text: &str) -> Option<f64> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<f64> = line.split_whitespace().map_while(|ticks| ticks.parse().ok()).collect();
    let busy = [0, 1, 2, 5, 6, 7].map(|place| ticks.get(place).copied().unwrap_or(0.0));
    Some(busy.iter().sum::<f64>() / TICKS_PER_S)
}

/// The memory that a process has now, in bytes.
pub(super) fn memory_of(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    kilobytes(&status, "VmRSS:")
}

/// The most memory that a process ever had, in bytes.
pub(super) fn peak_memory_of(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    kilobytes(&status, "VmHWM:")
}

fn kilobytes(text: &str, label: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(label))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// What the figures were measured on.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Machine {
    pub(super) cpu: String,
    pub(super) cores: usize,
    pub(super) memory_bytes: Option<u64>,
    pub(super) kernel: String,
    pub(super) postgresql: String,
    /// The median time until 8 KiB are on disk: what a commit waits for.
    pub(super) sync_us: Option<u64>,
    pub(super) ringback: String,
    pub(super) date: String,
}

impl Machine {
    /// Looks around; `folder` is where the database lives.
    pub(super) fn describe(folder: &Path) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
        let model = model.and_then(|line| line.split_once(':')).map(|(_, model)| model.trim());
        let system = rustix::system::uname();
        let (name, release) = (system.sysname().to_string_lossy(), system.release().to_string_lossy());
        let build = if cfg!(debug_assertions) { ", a debug build" } else { "" };
        Self {
            cpu: model.unwrap_or(std::env::consts::ARCH).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: fs::read_to_string("/proc/meminfo")
                .ok()
                .and_then(|text| kilobytes(&text, "MemTotal:")),
            kernel: format!("{name} {release}"),
            postgresql: String::new(),
            sync_us: time_to_sync(folder).ok(),
            ringback: format!("{}{build}", env!("CARGO_PKG_VERSION")),
            date: crate::clock::now().format("%Y-%m-%d").to_string(),
        }
    }
}

fn time_to_sync(folder: &Path) -> std::io::Result<u64> {
    let path = folder.join("sync-test");
    let mut file = fs::File::create(&path)?;
    let mut times = Vec::with_capacity(SYNC_TRIES);
    for _ in 0..SYNC_TRIES {
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&[0x5a; 8192])?;
        let began = Instant::now();
        file.sync_data()?;
        times.push(began.elapsed());
    }
    fs::remove_file(&path)?;
    times.sort_unstable();
    Ok(times[SYNC_TRIES / 2].as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let text = "42 (a) b (c)) S 7 1 1 0 -1 4194560 1 2 3 4 150 50 30 20 20 0 1 0 100 1 1";
        let stat = parse_stat(text).expect("stat");
        assert_eq!((stat.name.as_str(), stat.parent), ("a) b (c)", 7));
        assert!((stat.own - 2.0).abs() < 1e-9 && (stat.waited - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_machine_is_busy_with_all_but_waiting() {
        let text = "cpu  100 20 30 9999 8888 1 2 47 0 0\ncpu0 1 2 3\n";
        assert!((parse_machine(text).expect("seconds") - 2.0).abs() < 1e-9);
    }

    #[test]
    fn the_peak_of_memory_is_read_in_bytes() {
        assert_eq!(kilobytes("VmPeak:\t 9 kB\nVmHWM:\t  2048 kB\n", "VmHWM:"), Some(2_097_152));
    }
}
