//! Collectives over gloo: right ones bit for bit, and ranks that are killed, hang, stop or give wrong numbers, each named.

mod support;

use std::time::{Duration, Instant};
use toprope_pytorch::collectives::{
    Absence, CollectivesError, Operation, Options, Outcome, RANK, Report, run, run_script,
};
use toprope_world::{Exit, RealWorld};

fn options() -> Options {
    Options { ranks: Some(3), elements: vec![1, 1031], repeats: 1, ..Options::default() }
}

/// Runs ranks whose script has these lines in front of its start; none where there is no torch.
fn with(lines: &str) -> Option<(Report, Duration)> {
    support::torch("pytorch:cpu")?;
    let start = "\ntry:\n    rank_main()\n";
    let (head, tail) = RANK.rsplit_once(start).expect("the script starts");
    let script = format!("{head}\nimport signal\n{lines}\n{start}{tail}");
    let started = Instant::now();
    let report = run_script(&RealWorld::new(), &options(), &script).expect("the ranks come up");
    println!("{report}");
    Some((report, started.elapsed()))
}

/// A rank that does this when it comes to the sixth operation.
fn at_the_sixth(deed: &str) -> String {
    format!(
        "told = arrive\n\
         def arrive(at):\n    if at == 5 and dist.get_rank() == 2:\n        {deed}\n    told(at)"
    )
}

#[test]
fn right_collectives_are_right_bit_for_bit() {
    if support::torch("pytorch:cpu").is_none() {
        return;
    }
    let options = Options { elements: vec![1, 1031, 1 << 16], ..options() };
    let report = run(&RealWorld::new(), &options).expect("the ranks come up");
    println!("{report}");
    assert!(report.passed(), "{report}");
    assert_eq!((report.backend.as_str(), report.ranks, report.rows.len()), ("gloo", 3, 5 * 3 * 3));
    let ran = report.rows.iter().filter(|row| matches!(row.outcome, Outcome::Ran { .. }));
    for row in ran {
        let rate = row.bandwidth_bytes_per_second(report.ranks).expect("it ran");
        assert!(rate > 0.0 && rate < 1e12, "{row:?}: {rate}");
    }
    // What gloo of an old torch lacks is said, not passed over; the others are there in each.
    for (row, reason) in report.not_run() {
        assert!(
            [Operation::ReduceScatter, Operation::AllToAll].contains(&row.operation),
            "{row:?}: {reason}"
        );
        assert!(!reason.is_empty());
    }
}

#[test]
fn a_killed_rank_is_named() {
    let Some((report, took)) = with(&at_the_sixth("os.kill(os.getpid(), signal.SIGKILL)")) else { return };
    let missing = report.missing.as_ref().expect("a rank is missing");
    assert_eq!((missing.ranks.as_slice(), missing.at), (&[2][..], 5));
    assert_eq!(missing.absence, Absence::Ended(Some(Exit::Signal(9))));
    assert!(!report.passed() && report.rows[4].outcome != report.rows[5].outcome);
    assert!(report.not_run().count() == report.rows.len() - 5, "{report}");
    println!("all in {took:?}");
}

#[test]
fn a_rank_that_hangs_is_named_while_others_wait() {
    let Some((report, took)) = with(&at_the_sixth("time.sleep(900)")) else { return };
    let missing = report.missing.as_ref().expect("a rank is missing");
    assert_eq!((missing.ranks.as_slice(), missing.at), (&[2][..], 5));
    let Absence::NeverArrived(waited) = missing.absence else { panic!("{missing:?}") };
    assert!(waited < Duration::from_secs(20), "named after {waited:?}");
    println!("named after {waited:?}, all in {took:?}");
}

#[test]
fn a_rank_that_is_stopped_is_named() {
    let Some((report, _)) = with(&at_the_sixth("os.kill(os.getpid(), signal.SIGSTOP)")) else { return };
    let missing = report.missing.as_ref().expect("a rank is missing");
    assert_eq!((missing.ranks.as_slice(), missing.at), (&[2][..], 5));
    assert!(matches!(missing.absence, Absence::NeverArrived(_)), "{missing:?}");
}

#[test]
fn a_rank_that_sends_wrong_numbers_is_named() {
    // One bit of what rank 1 gives, behind the check of its own copy.
    let lines = "\
class Bad(Operation):
    def run(self):
        right = self.source
        if self.rank == 1:
            self.source = right.clone()
            self.source.view(torch.int32)[0] ^= 1 << 3
        super().run()
        self.source = right
Operation = Bad
";
    // `super()` needs the class that it was defined in.
    let Some((report, _)) = with(&lines.replace("super().run()", "super(Bad, self).run()")) else { return };
    assert!(!report.passed() && report.missing.is_none(), "{report}");
    assert!(report.wrong().any(|(row, _)| row.operation == Operation::AllReduce));
    assert_eq!(report.suspect, Some(1), "{report}");
}

#[test]
fn a_rank_that_fails_says_why() {
    let Some((report, _)) = with(&at_the_sixth("raise RuntimeError('the link is down')")) else { return };
    let missing = report.missing.as_ref().expect("a rank is missing");
    assert_eq!(missing.ranks, [2]);
    let Absence::Failed(reason) = &missing.absence else { panic!("{missing:?}") };
    assert!(reason.contains("the link is down"), "{reason}");
}

#[test]
fn what_cannot_run_is_one_clear_error() {
    let world = RealWorld::new();
    let error = |options: Options| run(&world, &options).expect_err("it cannot run").to_string();
    assert!(error(Options { device: "tpu".into(), ..options() }).contains("cpu, cuda, npu and xpu"));
    assert!(error(Options { ranks: Some(1), ..options() }).contains("2 at least"));
    let python = Some("/nowhere/python3".into());
    assert!(error(Options { python, ..options() }).contains("--python"));
    if support::torch("pytorch:cpu").is_none() {
        return;
    }
    let error = run(&world, &Options { device: "npu".into(), ..options() }).expect_err("there is no npu");
    assert!(matches!(error, CollectivesError::Start { rank: 0, .. }), "{error}");
    assert!(error.to_string().contains("torch_npu"), "{error}");
}
