use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::path::Path;
use toprope_train::run_folder::{BadLine, LineLog, LogLine, read_lines};
use toprope_world::Files;
use toprope_world::testing::{Faults, MemoryFiles};

const LOG: &str = "/log.jsonl";

fn line(number: u64) -> Map<String, Value> {
    json!({"attempt": 1, "number": number, "text": "a \"quoted\"\nline – ü"}).as_object().unwrap().clone()
}

fn read(files: &MemoryFiles) -> (Vec<LogLine>, Vec<BadLine>) {
    let mut lines = Vec::new();
    let bad = read_lines(files, Path::new(LOG), |line| lines.push(line.clone())).unwrap();
    (lines, bad)
}

fn numbers(lines: &[LogLine]) -> Vec<u64> {
    lines.iter().map(|line| line.value["number"].as_u64().unwrap()).collect()
}

fn log_of(contents: &[u8]) -> MemoryFiles {
    let files = MemoryFiles::new();
    files.create(Path::new(LOG)).unwrap().write(contents).unwrap();
    files
}

#[test]
fn a_log_cut_off_anywhere_loses_only_its_last_line() {
    let files = MemoryFiles::new();
    let mut log = LineLog::open(&files, Path::new(LOG)).unwrap();
    for number in 0..3 {
        log.append(&line(number)).unwrap();
    }
    let whole = files.read(Path::new(LOG), u64::MAX).unwrap();
    let each = whole.len() / 3;
    for keep in 0..=whole.len() {
        let files = log_of(&whole[..keep]);
        LineLog::open(&files, Path::new(LOG)).unwrap().append(&line(9)).unwrap();
        let (lines, bad) = read(&files);
        let complete = (keep / each) as u64;
        // A last line that lacks only its line feed is whole after all, once the next one has ended it.
        let rescued = u64::from(keep % each == each - 1);
        let expected: Vec<u64> = (0..complete + rescued).chain([9]).collect();
        assert_eq!(numbers(&lines), expected, "{keep}");
        assert_eq!(bad.len() as u64, u64::from(!keep.is_multiple_of(each)) - rescued, "{keep}: {bad:?}");
        if let Some(bad) = bad.first() {
            assert_eq!((bad.number, bad.offset), (complete + 1, complete * each as u64), "{bad}");
            assert!(bad.to_string().starts_with(&format!("skipped line {} of {LOG}", complete + 1)), "{bad}");
        }
    }
}

#[test]
fn a_torn_last_line_is_told_without_anyone_appending() {
    let (lines, bad) = read(&log_of(b"{\"number\":1}\n{\"number\":2}"));
    assert_eq!(numbers(&lines), [1]);
    assert!(bad[0].reason.starts_with("torn"), "{}", bad[0]);
    let (lines, bad) = read(&MemoryFiles::new());
    assert!(lines.is_empty() && bad.is_empty());
}

#[test]
fn a_full_disk_tears_one_line_and_the_next_stands_on_its_own() {
    let files = MemoryFiles::new();
    let mut log = LineLog::open(&files, Path::new(LOG)).unwrap();
    log.append(&line(1)).unwrap();
    files.set_faults(Faults { capacity_bytes: Some(files.used_bytes() + 20), ..Faults::default() });
    assert!(log.append(&line(2)).unwrap_err().is_disk_full());
    assert!(log.append(&line(3)).unwrap_err().is_disk_full());
    files.set_faults(Faults::default());
    log.append(&line(4)).unwrap();
    log.append(&line(5)).unwrap();
    let (lines, bad) = read(&files);
    assert_eq!(numbers(&lines), [1, 4, 5]);
    assert_eq!(bad.len(), 1, "{bad:?}");
}

#[test]
fn lines_without_end_cost_no_memory_and_others_go_on() {
    let mut contents = b"{\"number\":1}\n".to_vec();
    contents.resize(contents.len() + (3 << 20), b'x');
    contents.extend_from_slice(b"\n{\"number\":2}\n[1]\n\n{\"number\":3}\n\xff\n");
    let (lines, bad) = read(&log_of(&contents));
    assert_eq!(numbers(&lines), [1, 2, 3]);
    assert_eq!(lines.iter().map(|line| line.number).collect::<Vec<_>>(), [1, 3, 6]);
    assert_eq!(bad.iter().map(|bad| bad.number).collect::<Vec<_>>(), [2, 4, 5, 7]);
    assert!(bad[0].reason.contains("3145728 bytes"), "{}", bad[0]);

    let mut long = Map::new();
    long.insert("text".to_owned(), "x".repeat(2 << 20).into());
    let files = MemoryFiles::new();
    let mut log = LineLog::open(&files, Path::new(LOG)).unwrap();
    assert!(log.append(&long).is_err());
    assert_eq!(files.used_bytes(), 0);
}

#[test]
fn lines_across_the_borders_of_what_is_read_at_once_are_whole() {
    let files = MemoryFiles::new();
    let mut log = LineLog::open(&files, Path::new(LOG)).unwrap();
    for number in 0..10_000 {
        log.append(&line(number)).unwrap();
    }
    let (lines, bad) = read(&files);
    assert!(bad.is_empty());
    assert_eq!(numbers(&lines), (0..10_000).collect::<Vec<_>>());
}

proptest! {
    #[test]
    fn random_logs_are_read_without_harm(contents in prop::collection::vec(any::<u8>(), 0..2000)) {
        let files = log_of(&contents);
        let (lines, bad) = read(&files);
        let feeds = contents.iter().filter(|&&byte| byte == b'\n').count();
        let torn = usize::from(contents.last().is_some_and(|&byte| byte != b'\n'));
        prop_assert_eq!(lines.len() + bad.len(), feeds + torn);
        LineLog::open(&files, Path::new(LOG)).unwrap().append(&line(7)).unwrap();
        prop_assert_eq!(read(&files).0.last().map(|line| line.value.clone()), Some(line(7)));
    }
}
