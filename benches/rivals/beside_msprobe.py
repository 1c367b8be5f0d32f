#!/usr/bin/env python3
"""What MindStudio's msprobe and Toprope say of the same wrong operator on the CPU, side by side.

    python beside_msprobe.py [--toprope target/release/toprope] [--only bf16_accumulation,...]
    python beside_msprobe.py figures REPORT                 msprobe's own figures beside those in a report of `toprope report`

Run it with an interpreter that has torch and mindstudio-probe. A defect is a function of crates/defects/src/defects.py; for
msprobe it stands in the place of the API of torch that does the same, in the dtype that is checked (msprobe's golden result is
one dtype wider, and right), for Toprope in the place of the operator of its Python worker.

`msprobe acc_check` takes a device that is cuda or npu and nothing else; here its two variables `current_device` are set to
cpu, and nothing else of it is changed. `msprobe compare` runs as it is, on a dump of the wrong torch and one of the right.
Build first: cargo build --release -p toprope -p toprope-defects --bins --examples
"""

import argparse
import contextlib
import csv
import glob
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKER, DEFECTS = ROOT / "crates/devices/pytorch/src", ROOT / "crates/defects/src"


class Case:
    """A defect, the operator of the contract that it is in, and how the API is called that does the same."""

    def __init__(self, defect, operator, api, inputs, dtype="float32", seen=""):
        self.defect, self.operator, self.api, self.inputs, self.dtype, self.seen = defect, operator, api, inputs, dtype, seen


def normal(*shape, size=1.0):
    import torch

    return torch.randn(*shape) * size


# The order is that of the table; names of APIs are torch's.
CASES = [
    Case("bf16_accumulation", "matmul", "matmul", lambda: (normal(32, 512), normal(512, 48))),
    Case("bf16_accumulation", "matmul", "matmul", lambda: (normal(32, 512, size=2**-8), normal(512, 48, size=2**-8)), seen="numbers of 2^-8"),
    Case("dropped_tail_columns", "matmul", "matmul", lambda: (normal(33, 77), normal(77, 50))),
    Case("dropped_last_terms", "matmul", "matmul", lambda: (normal(33, 77), normal(77, 50))),
    Case("bit_flips", "matmul", "matmul", lambda: (normal(256, 64), normal(64, 256)), dtype="bfloat16"),
    Case("mask_corner", "attention", "scaled_dot_product_attention", lambda: tuple(normal(1, 2, 40, 16) for _ in range(3))),
    Case("softmax_without_maximum", "attention", "scaled_dot_product_attention", lambda: (normal(1, 2, 40, 16, size=20.0), normal(1, 2, 40, 16, size=20.0), normal(1, 2, 40, 16))),
    Case("stuck_lane", "scale", "mul", lambda: (normal(64, 96), 0.5)),
    Case("subnormals_flushed", "multiply", "mul", lambda: (normal(64, 96, size=2**-64), normal(64, 96, size=2**-66))),
    Case("truncating_cast", "cast", "to", lambda: (normal(64, 96),)),
    Case("epsilon_ten_times", "rms_norm", "rms_norm", lambda: (normal(24, 96, size=2**-7), normal(96))),
]


# ---------------------------------------------------------------------------------------------------- a torch that is wrong


class Instruction:
    """What an operator of the worker is told."""

    row_sums, kind, factor, epsilon, scale = False, "", 0.5, 1e-6, 1.0

    class chip:
        attention, matmul = "plain", "f32"


def worker_with_defects():
    """The worker's operators and the defects, as names."""
    source = "import math, re, sys, torch\n"
    source += (WORKER / "operators.py").read_text() + (DEFECTS / "switch.py").read_text() + (DEFECTS / "defects.py").read_text()
    names = {"unsupported": lambda operator, reason, **_: RuntimeError(f"{operator}: {reason}")}
    exec(compile(source, "worker", "exec"), names)  # noqa: S102 - our own files
    return names


def spoil(case):
    """Puts the defect into torch's API, for this dtype alone."""
    import torch

    names = worker_with_defects()
    operator, wrong = names["DEFECTS"][case.defect]
    right, dtype = names[operator], getattr(torch, case.dtype)

    def results(op, *operands):
        op.outputs = [torch.empty(0, dtype=dtype)]
        return wrong(right, op, *operands)[0].to(dtype)

    def place(module, name, call):
        original = getattr(module, name)

        def api(x, *rest, **options):
            if x.dtype != dtype:
                return original(x, *rest, **options)
            return call(x, *rest, **options)

        setattr(module, name, api)

    functional = torch.nn.functional
    if case.api == "matmul":
        place(torch, "matmul", lambda a, b: results(Instruction(), a, b))
    elif case.api == "mul" and case.operator == "scale":
        place(torch, "mul", lambda x, factor: results(Instruction(), x))
    elif case.api == "mul":
        place(torch, "mul", lambda x, y: results(Instruction(), x, y))
    elif case.api == "scaled_dot_product_attention":

        def attention(q, k, v, is_causal=False):
            op = Instruction()
            op.scale = q.shape[-1] ** -0.5
            rows = [x[0].transpose(0, 1) for x in (q, k, v)]
            return results(op, *rows, torch.zeros(q.shape[2], dtype=torch.int32)).transpose(0, 1)[None]

        place(functional, "scaled_dot_product_attention", attention)
    elif case.api == "rms_norm":
        place(functional, "rms_norm", lambda x, shape, weight, eps: results(Instruction(), x, weight))
    elif case.api == "to":
        cast = torch.Tensor.to

        def to(x, *rest, **options):
            if x.dtype == torch.float32 and torch.bfloat16 in rest:
                return cast(names["truncated"](x), *rest, **options)
            return cast(x, *rest, **options)

        torch.Tensor.to = to


def call(case, inputs):
    """Calls the API as a model would."""
    import torch

    functional = torch.nn.functional
    if case.api == "scaled_dot_product_attention":
        return functional.scaled_dot_product_attention(*inputs, is_causal=True)
    if case.api == "rms_norm":
        return functional.rms_norm(inputs[0], (inputs[0].shape[-1],), inputs[1], 1e-6)
    if case.api == "to":
        return inputs[0].to(torch.bfloat16)
    return getattr(torch, case.api)(*inputs)


def child_dump(index, wrong, folder):
    """Dumps the case's call, by msprobe's own debugger."""
    case = CASES[index]
    if wrong:
        spoil(case)
    import torch
    from msprobe.pytorch import PrecisionDebugger

    debugger = PrecisionDebugger(task="tensor", dump_path=folder, level="L1")
    torch.manual_seed(index)
    dtype = getattr(torch, case.dtype)
    inputs = [x.type(dtype) if isinstance(x, torch.Tensor) else x for x in case.inputs()]
    debugger.start()
    call(case, inputs)
    debugger.stop()
    debugger.step()


def child_check(index, wrong, dump, folder):
    """msprobe's accuracy pre-check of that dump, on the CPU."""
    if wrong:
        spoil(CASES[index])
    import torch
    import msprobe.pytorch.api_accuracy_checker.acc_check.acc_check as check
    import msprobe.pytorch.api_accuracy_checker.acc_check.acc_check_utils as utils

    check.current_device = utils.current_device = "cpu"
    torch.cuda.set_device = lambda device: None
    sys.argv = ["acc_check", "-api_info", dump, "-o", folder]
    check._acc_check()


# ---------------------------------------------------------------------------------------------------- both tools, from outside


def child(*arguments):
    done = subprocess.run([sys.executable, __file__, "child", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"error: {arguments}: {done.stderr[-2000:]}")


def rows_of(pattern):
    """Rows of the newest CSV file of this name."""
    files = sorted(glob.glob(pattern))
    if not files:
        return []
    with open(files[-1], encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def msprobe_says(index, wrong, folder):
    """(acc_check, compare), each in a line."""
    right, tried, out = folder / "right", folder / "tried", folder / "out"
    child("dump", index, 0, right)
    child("dump", index, int(wrong), tried)
    dump = glob.glob(f"{right}/step0/proc*/dump.json")[0]
    calls = json.loads(pathlib.Path(dump).read_text())["data"]
    if not any(f".{CASES[index].api}." in name for name in calls):
        return "not watched: the API is not on its list", "not watched"
    child("check", index, int(wrong), dump, out)
    details = [row for row in rows_of(f"{out}/accuracy_checking_details_*.csv") if f".{CASES[index].api}." in row["API Name"]]
    if not details or details[0]["Status"].upper() == "SKIP":
        checked = f"skipped: {details[0]['Message'].strip() if details else 'no row'}"
    else:
        row = details[0]
        number = lambda column, form: format(float(row[column]), form) if row[column].strip() else "-"
        why = row["Message"].strip().splitlines()[-1].split(",")[0].lower()
        figures = f"cosine {number('余弦相似度', '.6f')}, max abs error {number('最大绝对误差', '.2e')}, max relative {number('相对误差最大值', '.2e')}"
        checked = f"**{row['Status']}** ({figures}; {why})"
    arguments = ["-m", "msprobe.msprobe", "compare", "-tp", f"{tried}/step0", "-gp", f"{right}/step0", "-o", str(folder / "compared")]
    subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    outputs = [row for row in rows_of(f"{folder}/compared/*.csv") if f".{CASES[index].api}." in row["NPU Name"] and ".output." in row["NPU Name"]]
    if not outputs:
        return checked, "no result"
    row = outputs[0]
    number = lambda text: f"{float(text):.4f}" if re.fullmatch(r"-?[\d.]+(e[-+]?\d+)?", text) else text
    compared = f"**{row['Result']}** (cosine {number(row['Cosine'])}, within 1/1,000: {number(row['One Thousandth Err Ratio'])})"
    return checked, compared


def toprope_says(case, wrong, toprope, folder):
    """What `toprope report` says of the operator, and where the report lies."""
    python = sys.executable
    if wrong:
        python = str(folder / "python-with-a-defect")
        make = toprope.parent / "examples/interpreter"
        subprocess.run([make, case.defect, python, sys.executable], check=True)
    repeat = ["--repeat", "300"] if case.defect == "bit_flips" else []
    report = folder / "report.tar.gz"
    arguments = ["report", "tiny-moe", "--operator", case.operator, "--device", "pytorch:cpu", "--python", python, "--include-data", "--out", str(report)]
    done = subprocess.run([str(toprope), *arguments, *repeat], capture_output=True, text=True, cwd=folder)
    if done.returncode != 0:
        told = [line for line in done.stderr.splitlines() if line.startswith("error: ")] or done.stderr.splitlines()[-1:]
        return re.sub(r"^error: ", "", "".join(told[:1])), None
    subprocess.run(["tar", "-xzf", str(report)], check=True, cwd=folder)
    inside = folder / f"toprope-report-{case.operator}"
    page = (inside / "README.md").read_text()
    bits = [cell.strip() for cell in next(line for line in page.splitlines() if "**wrong**" in line).split("|")]
    lines = done.stdout.strip().splitlines()
    return f"**wrong**: {lines[0]} {lines[1]}; {bits[4]} units of the tolerance, {bits[5]} effective bits of {bits[6]}", inside


def side_by_side(arguments):
    only = arguments.only.split(",") if arguments.only else None
    print("| defect | API | msprobe acc_check | msprobe compare | toprope report |")
    print("| --- | --- | --- | --- | --- |")
    apart, reports, healthy = [], {}, set()
    for index, case in enumerate(CASES):
        if only and case.defect not in only:
            continue
        # The right one once for each API.
        first = (case.api, case.dtype, case.operator) not in healthy
        healthy.add((case.api, case.dtype, case.operator))
        for wrong in (False, True) if first else (True,):
            with contextlib.ExitStack() as stack:
                folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
                checked, compared = msprobe_says(index, wrong, folder)
                key = (case.operator if not wrong else case.defect, wrong)
                if key not in reports:
                    said, inside = toprope_says(case, wrong, arguments.toprope, folder)
                    reports[key] = said
                    if inside is not None:
                        apart.append((case.defect, figures_agree(inside)))
                name = f"`{case.defect}`" if wrong else "none"
                print(f"| {name}{', ' + case.seen if case.seen else ''} | {case.api}, {case.dtype} | {checked} | {compared} | {reports[key]} |", flush=True)
    print()
    off = [f"{defect}: {told}" for defect, told in apart if told]
    print("\n".join(off) if off else f"The figures in {len(apart)} reports are those that msprobe computes of the same numbers.")
    return 1 if off else 0


# ---------------------------------------------------------------------------------------------------- figures of a report

# Which of msprobe's APIs an operator is, for its limits; others are level 0.
APIS = {
    "matmul": "matmul", "rms_norm": "npu_rms_norm", "rms_norm_gradient": "npu_rms_norm_backward",
    "linear_cross_entropy": "npu_cross_entropy_loss", "column_sum": "sum", "attention": "npu_fusion_attention",
    "attention_gradient": "npu_fusion_attention_grad", "gather": "embedding", "scatter_add": "scatter_add_",
}


def own_figures(output, api):
    """msprobe's figures and status of what each device gave, by msprobe's own code."""
    import numpy
    import torch
    from msprobe.core.common.const import CompareConst
    from msprobe.pytorch.api_accuracy_checker.compare import algorithm
    from msprobe.pytorch.api_accuracy_checker.compare.compare import Comparator

    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[output["dtype"]]
    want = torch.tensor([float(x) for x in output["want"]], dtype=torch.float64)
    with tempfile.TemporaryDirectory() as folder:
        comparator = Comparator(f"{folder}/result.csv", f"{folder}/details.csv", False)
        figures = {}
        for got in output["got"]:
            given = torch.tensor([float(x) for x in got["data"]], dtype=torch.float64).to(dtype)
            with numpy.errstate(all="ignore"):
                status, column, _ = comparator._compare_core(api, want, given, False)
                bench, device = want.numpy(), given.double().numpy().astype("float32")
                if dtype == torch.bfloat16:
                    bench = want.float().numpy()
                _, floor = algorithm.get_abs_bench_with_eps(bench, dtype)
                relative = algorithm.get_rel_err_origin(algorithm.get_abs_err(bench, device), floor)
            shares = [algorithm.get_rel_err_ratio(relative, limit)[0] for limit in
                      (CompareConst.HUNDRED_RATIO_THRESHOLD, CompareConst.THOUSAND_RATIO_THRESHOLD, CompareConst.TEN_THOUSAND_RATIO_THRESHOLD)]
            figures[got["device"]] = [column.cosine_sim, column.max_abs_err, *shares, column.rmse, column.small_value_err_ratio,
                                      column.max_rel_error, column.mean_rel_error, column.eb, status]
    return figures, dtype


def told_figures(page):
    """The same from the report's page: by device, and the ratios beside the trusted one."""
    table, ratios = {}, []
    lines = page.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("| device | cosine |")), None)
    for line in lines[start + 2 :] if start is not None else []:
        if not line.startswith("|"):
            break
        cells = [part.strip() for cell in line.strip("|").split("|") for part in cell.split(",")]
        table[cells[0]] = cells[1:]
    for line in lines:
        if line.startswith("Beside the trusted device"):
            ratios = re.findall(r"([\d.einfa]+) of ([\d.]+) \((pass|error)\)", line)
    return table, ratios


def same(told, own):
    """Whether a printed number is the other one, to the digits that are printed."""
    if isinstance(own, str):
        return told == own or (told == "-" and not own.strip())
    own = float(own)
    if own != own or told in ("NaN", "inf"):
        return (told == "NaN") == (own != own) and (told == "inf") == (own == float("inf"))
    return abs(float(told) - own) <= 1e-3 * abs(own) + 6e-5 * (1.0 if "e" not in told else 0.0)


def figures_agree(inside, verbose=False):
    """What of a report's figures is not msprobe's own; empty where all are."""
    from msprobe.pytorch.api_accuracy_checker.compare.algorithm import calc_ratio
    from msprobe.pytorch.api_accuracy_checker.precision_standard.standard_config import StandardConfig
    from msprobe.core.common.const import CompareConst

    case = json.loads((inside / "case.json").read_text())
    operator = case["operator"]["operator"]
    output = next((o for o in case["outputs"] if o["dtype"] in ("f32", "bf16") and o["want"]), None)
    if output is None:
        return ""
    own, dtype = own_figures(output, APIS.get(operator, operator))
    table, ratios = told_figures((inside / "README.md").read_text())
    names = ["cosine", "max abs error", "1/100", "1/1,000", "1/10,000", "RMSE", "small-value errors", "max relative", "mean relative", "balance", "status"]
    off = []
    for device, told in table.items():
        for name, ours, theirs in zip(names, told, own[device]):
            if verbose:
                print(f"{device:<14} {name:<20} report {ours:<14} msprobe {theirs}")
            # What msprobe leaves out once the cosine has failed is no contradiction.
            left_out = name != "cosine" and isinstance(theirs, str) and not theirs.strip()
            if not left_out and not same(ours, theirs):
                off.append(f"{device} {name}: {ours}, msprobe {theirs}")
    first, last = list(own.values())[0], list(own.values())[-1]
    metrics = [(6, CompareConst.SMALL_VALUE), (5, CompareConst.RMSE), (7, CompareConst.MAX_REL_ERR), (8, CompareConst.MEAN_REL_ERR)]
    for (at, metric), (ratio, limit, status) in zip(metrics, ratios):
        theirs = calc_ratio(float(first[at]), float(last[at]), str(dtype))
        bound = StandardConfig.get_benchmark_ratio_threshold(metric, api_name=APIS.get(operator, operator))
        if verbose:
            print(f"beside trusted {metric:<20} report {ratio} of {limit} {status}; msprobe {theirs:.3f} of {bound}")
        if not same(ratio, theirs) or float(limit) != bound or (status == "error") != (theirs > bound):
            off.append(f"ratio of {metric}: {ratio} of {limit} {status}, msprobe {theirs} of {bound}")
    if len(table) < 2 or len(ratios) != 4:
        off.append("the page has no such figures")
    return "; ".join(off)


def main():
    if sys.argv[1:2] == ["child"]:
        what, index, wrong, *rest = sys.argv[2:]
        return {"dump": child_dump, "check": child_check}[what](int(index), wrong == "1", *rest)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["figures"])
    parser.add_argument("report", nargs="?", type=pathlib.Path, help="a report's folder, unpacked")
    parser.add_argument("--toprope", type=pathlib.Path, default=ROOT / "target/release/toprope")
    parser.add_argument("--only", help="these defects")
    arguments = parser.parse_args()
    arguments.toprope = arguments.toprope.resolve()
    if arguments.what == "figures":
        off = figures_agree(arguments.report, verbose=True)
        print(off or "all figures are msprobe's own")
        return 1 if off else 0
    return side_by_side(arguments)


if __name__ == "__main__":
    sys.exit(main())
