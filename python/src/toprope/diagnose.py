"""Runs a user's training script and judges every operator of one of its steps."""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import Iterator, List, Optional

import torch

from .watch import lockstep


class DiagnoseError(Exception):
    """What stands in the way, with the process's exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


#: Exit codes, the same as the program's (docs/exit-codes.md): nothing is wrong; the command line; a file of cases; a file
#: that cannot be written; torch or a device; nothing could be judged; an operator is wrong; the script.
AGREE, USAGE, DATA, RUN, DEVICE, INCONCLUSIVE, WRONG, SCRIPT = 0, 2, 4, 5, 6, 13, 14, 15

#: What a verdict leaves.
VERDICTS = {"agree": AGREE, "differ": WRONG, "inconclusive": INCONCLUSIVE}


class _StepDone(BaseException):
    """Ends the script after the step in question; no `except Exception` of the script's catches it."""


def open_device(name: str) -> torch.device:
    """A device that is there, tried with one element; else an error that says what is."""
    if name.split(":")[0] == "npu":
        with contextlib.suppress(ImportError):
            __import__("torch_npu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError, AttributeError) as error:
        first = (str(error).splitlines() or [""])[0]
        if "device type" in first:
            first = "this torch does not know it; is its package installed?"
        raise DiagnoseError(f"no device {name!r} here: {first[:160]}; there is {', '.join(devices())}", DEVICE) from error
    return device


def devices() -> List[str]:
    """The devices that torch sees here."""
    found = ["cpu"]
    for kind in ("cuda", "npu", "xpu", "mps"):
        module = getattr(torch, kind, None)
        with contextlib.suppress(RuntimeError, AttributeError):
            if module is not None and module.is_available():
                count = module.device_count() if hasattr(module, "device_count") else 1
                found += [f"{kind}:{index}" for index in range(count)]
    return found


def diagnose(script: str, step: int, device: Optional[str] = None, arguments: Optional[List[str]] = None) -> lockstep:
    """Runs `script` until its `step`-th optimizer step has ended and judges what belongs to that step.

    A step begins where the optimizer step before it ended. `device` becomes torch's default device; a script that does
    not use it is an error.
    """
    if step < 1:
        raise DiagnoseError(f"--step {step}: steps are counted from 1", USAGE)
    path = Path(script)
    if not path.is_file():
        raise DiagnoseError(f"{script}: no such file", USAGE)
    target = open_device(device) if device is not None else None
    run = lockstep(steps=range(step, step + 1))
    run.where.on_step.append(lambda begun: _stop_after(step, begun))
    reached = False
    with _script_surroundings(path, arguments or [], target):
        try:
            with run:
                runpy.run_path(str(path), run_name="__main__")
        except _StepDone:
            reached = True
        except SystemExit as exit_:
            if exit_.code not in (None, 0):
                raise DiagnoseError(f"{script}: left with exit code {exit_.code} in step {run.where.step}", SCRIPT) from exit_
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            print(_users_traceback(error, path), file=sys.stderr, end="")
            message = f"{script}: raised {type(error).__name__} in step {run.where.step}: {error}"
            raise DiagnoseError(message, SCRIPT) from error
    if not reached:
        done = run.where.step - 1
        hint = "is `step` of a torch.optim.Optimizer called?" if done == 0 else f"ask for a step from 1 to {done}"
        raise DiagnoseError(f"{script}: ended after {done} optimizer step(s), step {step} was never reached: {hint}", SCRIPT)
    if target is not None and not any(_same(target, used) for used in run.devices):
        used = ", ".join(run.devices) or "none"
        raise DiagnoseError(
            f"{script}: no operator of step {step} ran on {device} (used: {used}); take the device from "
            f"torch.get_default_device() or the environment variable TOPROPE_DEVICE",
            DEVICE,
        )
    return run


def _stop_after(step: int, begun: int) -> None:
    if begun > step:
        raise _StepDone


def _same(target: torch.device, used: str) -> bool:
    other = torch.device(used)
    return other.type == target.type and (other.index or 0) == (target.index or 0)


@contextlib.contextmanager
def _script_surroundings(path: Path, arguments: List[str], device: Optional[torch.device]) -> Iterator[None]:
    """Command line, import path and default device as the script would have them; put back at the end."""
    argv, search = sys.argv, list(sys.path)
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.resolve().parent))
    if device is not None:
        os.environ["TOPROPE_DEVICE"] = str(device)
        torch.set_default_device(device)
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, search
        if device is not None:
            torch.set_default_device(None)


def _users_traceback(error: BaseException, path: Path) -> str:
    """The traceback from the script's own first line on."""
    frames = traceback.extract_tb(error.__traceback__)
    starts = [index for index, frame in enumerate(frames) if Path(frame.filename).resolve() == path.resolve()]
    shown = frames[starts[0] :] if starts else frames
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(shown)]
    return "".join(lines + traceback.format_exception_only(type(error), error))
