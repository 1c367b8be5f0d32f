//! The reference device in native width against itself in wide width: the oracle's own rounding is within every bound.

mod support;

use toprope_conformance::{Options, run_suite};

#[test]
fn the_reference_device_passes() {
    let options = Options { cases_per_operator: 40, programs: support::programs(300), ..Options::default() };
    let report = run_suite(&mut support::reference(), &mut support::oracle(), &options).unwrap();
    support::expect_pass(&report);
}
