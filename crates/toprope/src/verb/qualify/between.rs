//! `toprope qualify --collectives`: what goes between chips, through the user's own torch.distributed.

use crate::command::Qualify;
use crate::exit::{Exit, Failure, OrExit};
use serde_json::{Value, json};
use toprope_devices::collectives::{self, CollectivesError, Options, Report, Row};
use toprope_world::RealWorld;

/// Runs every collective and says what was seen.
pub fn run(world: &RealWorld, arguments: &Qualify, json: bool) -> Result<Exit, Failure> {
    let options = Options {
        python: arguments.python.clone(),
        device: kind(&arguments.device)?,
        ranks: arguments.ranks,
        ..Options::default()
    };
    println!("qualify --collectives on {}: starting a rank for each chip", options.device);
    let report = collectives::run(world, &options).map_err(|error| {
        let exit = match error {
            CollectivesError::Ranks { .. } | CollectivesError::Device { .. } => Exit::Usage,
            CollectivesError::Interpreter(_)
            | CollectivesError::Process(_)
            | CollectivesError::Start { .. } => Exit::Device,
        };
        Failure::new(exit, error)
    })?;
    print!("{report}");
    if json {
        println!("{}", object(&report));
    }
    let ran = report.rows.len() - report.not_run().count();
    Ok(match report.passed() {
        true => Exit::Done,
        false if ran == 0 && report.missing.is_none() => Exit::Inconclusive,
        false => Exit::Unfit,
    })
}

/// `cuda` of `pytorch:cuda:all`.
fn kind(devices: &[String]) -> Result<String, Failure> {
    match devices {
        [] => Ok("cpu".into()),
        [one] => {
            let base = one.split('+').next().unwrap_or_default();
            let kind = base.strip_prefix("pytorch:").and_then(|rest| rest.split(':').next());
            let reason = || {
                format!(
                    "--device {one}: collectives are torch.distributed's; name pytorch:cuda, npu, xpu or cpu"
                )
            };
            kind.map(Into::into).ok_or_else(reason).or_exit(Exit::Usage)
        }
        several => Err(Failure::new(
            Exit::Usage,
            format!(
                "--device {}: collectives run on one kind of chip, a rank for each; name it once, as pytorch:cuda",
                several.join(",")
            ),
        )),
    }
}

fn object(report: &Report) -> Value {
    let place = |row: &Row| json!({ "operation": row.operation, "dtype": row.dtype, "elements": row.elements, "bytes": row.bytes });
    let row = |row: &Row| {
        let mut object = json!(row);
        object["bytes_per_second"] = json!(row.bandwidth_bytes_per_second(report.ranks));
        object
    };
    let missing = report.missing.as_ref().map(|missing| {
        let place = report.rows.get(missing.at).map(place);
        json!({ "ranks": missing.ranks, "from": place, "why": missing.to_string() })
    });
    json!({
        "verdict": if report.passed() { "passed" } else { "failed" },
        "backend": report.backend,
        "torch": report.torch,
        "ranks": report.ranks,
        "hardware": report.hardware,
        "coverage": {
            "run": report.rows.len() - report.not_run().count(),
            "not_run": report.not_run().count(),
        },
        "collectives": report.rows.iter().map(row).collect::<Vec<_>>(),
        "missing": missing,
        "suspect": report.suspect,
    })
}
