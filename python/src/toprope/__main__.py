"""The command line: `python -m toprope diagnose SCRIPT --step N` and `python -m toprope cases FILE --device D`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

from . import __version__, require_torch


def parser() -> argparse.ArgumentParser:
    """All verbs and options."""
    top = argparse.ArgumentParser(prog="toprope", description="Which operator is wrong?")
    top.add_argument("--version", action="store_true", help="print the version and end")
    verbs = top.add_subparsers(dest="verb")
    diagnose = verbs.add_parser("diagnose", help="run a training script and judge every operator of one step")
    diagnose.add_argument("script", help="the script; what follows `--` is its command line")
    diagnose.add_argument("--step", type=int, required=True, help="which step, counted by optimizer.step() from 1")
    diagnose.add_argument("--device", help="becomes torch's default device, as npu:0")
    diagnose.add_argument("--json", action="store_true", help="the report as one line of JSON, the last of the output")
    diagnose.add_argument("--html", metavar="FILE", help="the report as a page")
    diagnose.add_argument("--cases", metavar="FILE", help="write the step's calls, without data")
    diagnose.add_argument("--reproducer", metavar="FILE", help="write the script that shows the first wrong call")
    cases = verbs.add_parser("cases", help="draw the operands of recorded calls from a seed, run them, judge them")
    cases.add_argument("file", help="a cases.jsonl")
    cases.add_argument("--device", default="cpu", help="where they run")
    cases.add_argument("--seed", type=int, default=0, help="another seed draws other operands")
    cases.add_argument("--json", action="store_true", help="the result as one line of JSON, the last of the output")
    return top


def main(arguments: Optional[List[str]] = None) -> int:
    """Runs a verb; gives the process's exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    options = parser().parse_args(given[:cut])
    if options.version:
        print(f"toprope {__version__}")
        return 0
    if options.verb is None:
        parser().print_usage(sys.stderr)
        return 2
    options.arguments = given[cut + 1 :]
    try:
        require_torch()
    except ImportError as error:
        print(f"toprope: {error}", file=sys.stderr)
        return 6
    from .cases import CasesError
    from .diagnose import DATA, DiagnoseError

    try:
        return run_diagnose(options) if options.verb == "diagnose" else run_cases(options)
    except DiagnoseError as error:
        print(f"toprope: {error}", file=sys.stderr)
        return error.code
    except CasesError as error:
        print(f"toprope: {error}", file=sys.stderr)
        return DATA


def run_diagnose(options: argparse.Namespace) -> int:
    """`diagnose`."""
    from .diagnose import RUN, VERDICTS, DiagnoseError, diagnose

    run = diagnose(options.script, options.step, options.device, options.arguments)
    report = run.report()
    try:
        if options.html:
            Path(options.html).write_text(report.html(), encoding="utf-8")
        if options.cases:
            run.write_cases(options.cases)
        if options.reproducer and report.first_wrong and report.first_wrong["reproducer"]:
            Path(options.reproducer).write_text(report.first_wrong["reproducer"], encoding="utf-8")
    except OSError as error:
        raise DiagnoseError(f"cannot be written: {error}", RUN) from error
    print(report.json() if options.json else report.table())
    return VERDICTS[report.verdict]


def run_cases(options: argparse.Namespace) -> int:
    """`cases`."""
    from .cases import read_cases, replay
    from .diagnose import VERDICTS, open_device
    from .judge import SETTING

    device = open_device(options.device)
    outcomes = [replay(case, device, options.seed) for case in read_cases(options.file)]
    told = [told_of(outcome) for outcome in outcomes]
    judged = [entry for entry in told if entry["status"] in ("right", "wrong", SETTING)]
    wrong = [entry for entry in told if entry["status"] == "wrong"]
    not_run = [entry for entry in told if entry["status"] in ("not run", "not checked")]
    incomparable = [entry for entry in told if entry["status"] == "not comparable"]
    verdict = "differ" if wrong else ("agree" if judged else "inconclusive")
    if options.json:
        summary = {
            "verdict": verdict,
            "device": str(device),
            "seed": options.seed,
            "coverage": {"run": len(judged), "not_run": len(not_run), "incomparable": len(incomparable)},
            "operators": told,
        }
        print(json.dumps(summary))
    else:
        for entry in wrong + not_run:
            shape = "x".join(str(list(s)) for s in entry["shape"])
            looks = f"; looks like {entry['defect_guess']}" if entry["defect_guess"] else ""
            print(f"{entry['status']}: {entry['name']} {entry['dtype']} {shape}: {entry['reason']}{looks}")
        print(
            f"{len(told)} cases on {device}: {len(judged)} judged, {len(wrong)} wrong, {len(not_run)} not run, "
            f"{len(incomparable)} not comparable: {verdict}"
        )
    return VERDICTS[verdict]


def told_of(outcome: Any) -> Dict[str, Any]:
    """A case's outcome as plain values."""
    judgement = outcome.judgement
    entry: Dict[str, Any] = {
        "name": outcome.case["operator"],
        "dtype": "+".join(outcome.dtypes),
        "shape": [list(shape) for shape in outcome.shapes],
        "count": outcome.case.get("count", 1),
        "status": "not run" if judgement is None else judgement.status,
        "passed": None,
        "reason": outcome.reason,
        "effective_bits": None,
        "control_bits": None,
        "worst_error": None,
        "tolerance": None,
        "defect_guess": None if outcome.guess is None else str(outcome.guess),
        "setting": outcome.reason if judgement is not None and judgement.status == "setting" else None,
    }
    if judgement is not None:
        finite = judgement.error is not None and judgement.error == judgement.error and judgement.error != float("inf")
        entry.update(
            passed={"right": True, "setting": True, "wrong": False}.get(judgement.status),
            effective_bits=judgement.bits,
            control_bits=judgement.control_bits,
            worst_error=judgement.error if finite else None,
            tolerance=judgement.tolerance,
        )
    return entry


if __name__ == "__main__":
    sys.exit(main())
