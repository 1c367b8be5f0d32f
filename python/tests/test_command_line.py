"""`python -m toprope`: what it prints, and its exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

SCRIPT = """
import sys, torch
torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(20, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
optimizer = torch.optim.AdamW(model.parameters())
for step in range(1, 6):
    loss = model(torch.randn(4, 20)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print("step", step, sys.argv[1:], flush=True)
    if "raise" in sys.argv and step == 2:
        raise KeyError("no such batch")
    if "leave" in sys.argv and step == 2:
        sys.exit(7)
"""

#: A chip whose product of f32 matrices leaves out what lies behind the 16th term.
BAD_CHIP = """
import torch
from torch import library as extension
chip = extension.Library("aten", "IMPL")
def addmm(bias, a, b, *, beta=1, alpha=1):
    if a.dtype == torch.float32:
        a = a.clone()
        a[:, 16:] = 0
    return (a[:, :, None] * b[None]).sum(1) * alpha + bias * beta
chip.impl("addmm", addmm, "CPU")
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


class Done:
    """What a command left: exit code and both outputs."""

    def __init__(self, returncode: int, stdout: str, stderr: str) -> None:
        self.returncode, self.stdout, self.stderr = returncode, stdout, stderr


def toprope(*arguments: Any) -> Done:
    """Runs the command line in this process."""
    from toprope.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as left:
            code = int(left.code or 0)
    return Done(code, out.getvalue(), err.getvalue())


def process(*arguments: Any, path: Any = ()) -> subprocess.CompletedProcess:
    """Runs the command line in a process of its own."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), str(HERE.parent / "src")])}
    command = [sys.executable, "-W", "ignore", "-m", "toprope", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_one_step_of_a_script(script: Path, tmp_path: Path) -> None:
    cases, page = tmp_path / "cases.jsonl", tmp_path / "report.html"
    done = toprope("diagnose", script, "--step", 3, "--json", "--cases", cases, "--html", page, "--", "--rate", "3")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "step 1 ['--rate', '3']" and "step 3" not in done.stdout.replace("'--rate', '3'", "")
    told = json.loads(lines[-1])
    assert told["steps"] == [3] and told["first_wrong"] is None and told["verdict"] == "agree"
    assert told["coverage"]["not_checked"] == 0 and told["cost"]["seconds_checks"] > 0
    assert page.read_text().startswith("<!doctype html>")
    replayed = toprope("cases", cases, "--json")
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert json.loads(replayed.stdout.splitlines()[-1])["coverage"]["run"] > 10


def test_a_wrong_operator_has_an_exit_code_and_a_script(script: Path, tmp_path: Path) -> None:
    script.write_text(BAD_CHIP + SCRIPT)
    done = process("diagnose", script, "--step", 2, "--json", "--reproducer", tmp_path / "repro.py")
    assert done.returncode == 14, done.stderr
    first = json.loads(done.stdout.splitlines()[-1])["first_wrong"]
    assert first["operator"] == "aten.addmm.default" and first["layer"] == "0" and first["step"] == 2
    assert (tmp_path / "repro.py").read_text() == first["reproducer"]


def test_a_step_that_never_comes(script: Path) -> None:
    for step in (6, 9):
        done = toprope("diagnose", script, "--step", step)
        assert done.returncode == 15
        assert f"ended after 5 optimizer step(s), step {step} was never reached" in done.stderr
        assert "Traceback" not in done.stderr
    script.write_text("print('nothing')")
    done = toprope("diagnose", script, "--step", 1)
    assert done.returncode == 15 and "torch.optim.Optimizer" in done.stderr


def test_a_script_that_raises_or_leaves(script: Path) -> None:
    done = toprope("diagnose", script, "--step", 4, "--", "raise")
    assert done.returncode == 15
    assert "raised KeyError in step 3" in done.stderr
    assert "no such batch" in done.stderr and "watch.py" not in done.stderr and "runpy" not in done.stderr
    done = toprope("diagnose", script, "--step", 4, "--", "leave")
    assert done.returncode == 15 and "exit code 7 in step 3" in done.stderr


def test_devices_and_files_that_are_not_there(script: Path, tmp_path: Path) -> None:
    done = toprope("diagnose", script, "--step", 1, "--device", "npu:0")
    assert done.returncode == 6 and "no device 'npu:0' here" in done.stderr and "cpu" in done.stderr
    done = toprope("diagnose", tmp_path / "none.py", "--step", 1)
    assert done.returncode == 2 and "no such file" in done.stderr
    done = toprope("diagnose", script, "--step", 0)
    assert done.returncode == 2 and "from 1" in done.stderr
    done = toprope("cases", tmp_path / "none.jsonl")
    assert done.returncode == 4 and "cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_script_that_does_not_use_the_device(script: Path) -> None:
    done = toprope("diagnose", script, "--step", 1, "--device", "meta")
    assert done.returncode == 6, done.stdout


def test_an_unknown_operator_among_cases(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text('{"version": 1, "operator": "npu.fancy.default", "args": [], "kwargs": {}, "count": 3}\n')
    done = toprope("cases", path)
    assert "not run: npu.fancy.default" in done.stdout and "inconclusive" in done.stdout
    assert done.returncode == 13


@pytest.mark.parametrize(
    "source, message",
    [("raise ImportError('No module named torch')", "none can be imported"), ("__version__ = '1.13.1'", "this is 1.13.1")],
    ids=["no torch", "torch too old"],
)
def test_no_torch_or_one_too_old(source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(source)
    done = process("cases", "x", path=[tmp_path])
    assert done.returncode == 6 and message in done.stderr and "Traceback" not in done.stderr
    assert "2.1" in done.stderr


def test_exit_codes_are_those_of_the_program() -> None:
    from toprope import diagnose

    table = (Path(__file__).parents[2] / "docs" / "exit-codes.md").read_text()
    meanings = {
        diagnose.AGREE: "done",
        diagnose.USAGE: "the command line",
        diagnose.DATA: "data",
        diagnose.RUN: "cannot be written",
        diagnose.DEVICE: "a device",
        diagnose.INCONCLUSIVE: "too little was judged",
        diagnose.WRONG: "computes an operator wrong",
        diagnose.SCRIPT: "the script raised",
    }
    for code, words in meanings.items():
        assert any(line.startswith(f"| {code} |") and words in line for line in table.splitlines()), (code, words)


def test_usage() -> None:
    assert toprope().returncode == 2
    assert toprope("--version").stdout.startswith("toprope ")
    assert toprope("diagnose", "x").returncode == 2
