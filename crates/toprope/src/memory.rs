//! The memory of a run: this process and its workers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the kernel says of one process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    /// The most that it ever held.
    peak: u64,
    /// What of it others may hold too: shared regions and mapped files.
    shared: u64,
}

/// The most of phases that are over.
static BEFORE: AtomicU64 = AtomicU64::new(0);

/// The most memory that this process and those that it started have held, in bytes: what is each one's own added up, what
/// they share counted once. 0 where the system does not say. A worker that has ended is not in it, unless a phase ended with it.
pub fn peak_bytes() -> u64 {
    of_tree(Path::new("/proc"), std::process::id()).max(BEFORE.load(Ordering::Relaxed))
}

/// Ends a phase of this process, such as the reading of its text: what it freed goes back to the system, and what it held
/// at most is no longer added to what other processes hold later.
pub fn end_phase() {
    BEFORE.fetch_max(peak_bytes(), Ordering::Relaxed);
    toprope_world::give_back_freed_memory();
    toprope_world::measure_peak_anew();
}

fn of_tree(proc: &Path, root: u32) -> u64 {
    let mut processes = BTreeMap::new();
    let mut waiting = vec![root];
    while let Some(id) = waiting.pop() {
        let folder = proc.join(id.to_string());
        let Some(process) = process(&std::fs::read_to_string(folder.join("status")).unwrap_or_default())
        else {
            continue;
        };
        if processes.insert(id, process).is_none() {
            waiting.extend(children(&folder));
        }
    }
    let own: u64 = processes.values().map(|process| process.peak.saturating_sub(process.shared)).sum();
    own + processes.values().map(|process| process.shared).max().unwrap_or(0)
}

/// Who was started by any thread of a process.
fn children(folder: &Path) -> Vec<u32> {
    let Ok(threads) = std::fs::read_dir(folder.join("task")) else { return Vec::new() };
    threads
        .flatten()
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|ids| ids.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

fn process(status: &str) -> Option<Process> {
    let shared = field(status, "RssShmem").unwrap_or(0) + field(status, "RssFile").unwrap_or(0);
    Some(Process { peak: field(status, "VmHWM")?, shared })
}

/// A line of `/proc/PID/status` that is in KiB, in bytes.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_counts_once() {
        let folder = tempfile::tempdir().unwrap();
        let add = |id: u32, own: u64, shared: u64, children: &str| {
            let process = folder.path().join(id.to_string());
            std::fs::create_dir_all(process.join("task").join(id.to_string())).unwrap();
            let status = format!(
                "Name:\ttoprope\nVmHWM:\t  {} kB\nRssAnon:\t {own} kB\nRssFile:\t 0 kB\nRssShmem:\t {shared} kB\n",
                own + shared
            );
            std::fs::write(process.join("status"), status).unwrap();
            std::fs::write(process.join("task").join(id.to_string()).join("children"), children).unwrap();
        };
        add(7, 10, 100, "8 9");
        add(8, 30, 90, "");
        add(9, 5, 0, "");
        add(10, 1000, 0, "");
        assert_eq!(of_tree(folder.path(), 7), (10 + 30 + 5 + 100) * 1024);
        assert_eq!(of_tree(folder.path(), 11), 0);
    }

    #[test]
    fn this_process_has_some() {
        assert!(peak_bytes() > 1 << 20);
    }
}
