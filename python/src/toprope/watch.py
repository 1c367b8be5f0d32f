"""Runs a training step and, beside each operator, the same operator in f64 on the CPU on the same operands."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import judge as judging
from . import rules
from .call import PLAIN, Call, NotChecked, tensors
from .cases import note_case, write_cases
from .guess import Guess, History, guess, setting_of
from .judge import Judgement
from .report import Report
from .reproducer import reproducer
from .where import Place, Whereabouts

#: Wrong calls that are kept one by one; beyond, only their number is.
WRONG_KEPT = 200

#: An oracle's name: where it runs, and in what arithmetic.
AGAINST = "cpu:f64"


@dataclass
class Finding:
    """One judged call."""

    #: Its number among all calls that were seen, from 0.
    number: int
    operator: str
    place: Place
    device: str
    #: Shapes and dtypes of the tensor operands.
    shapes: Tuple[Tuple[int, ...], ...]
    dtypes: Tuple[str, ...]
    judgement: Judgement
    guess: Optional[Guess] = None
    #: A script of its own that shows it, where there is one.
    reproducer: Optional[str] = None


@dataclass
class Group:
    """All calls of an operator in one place with operands of one shape and dtype."""

    worst: Finding
    calls: int = 0
    #: How many were checked with a tolerance so wide that it sees little.
    coarse: int = 0
    statuses: Dict[str, int] = field(default_factory=dict)
    bits_least: Optional[float] = None
    control_bits: Optional[float] = None

    def add(self, finding: Finding) -> None:
        """Counts one call in."""
        judgement = finding.judgement
        self.calls += 1
        self.coarse += judgement.coarse
        self.statuses[judgement.status] = self.statuses.get(judgement.status, 0) + 1
        rank = (judgement.status == judging.WRONG, judgement.units)
        if rank > (self.worst.judgement.status == judging.WRONG, self.worst.judgement.units):
            self.worst = finding
        if judgement.bits is not None and (self.bits_least is None or judgement.bits < self.bits_least):
            self.bits_least, self.control_bits = judgement.bits, judgement.control_bits


class lockstep:  # noqa: N801 - it reads as a statement: `with toprope.lockstep():`
    """Reruns every ATen operator of the enclosed code in f64 on the CPU and judges it.

    Forward, backward and optimizer are seen, on whatever device they run. `model` only serves to name layers where the
    enclosed code calls modules other than through their root. `steps` limits checking to these optimizer steps
    (counted from 1); other steps run as if the mode were not there. Compiled functions run eagerly inside.
    """

    def __init__(
        self,
        against: str = AGAINST,
        *,
        model: Optional[torch.nn.Module] = None,
        steps: Optional[range] = None,
    ) -> None:
        if against != AGAINST:
            raise ValueError(f"lockstep against {against!r}: the oracle is {AGAINST!r}, there is no other")
        self.where = Whereabouts(model)
        self.groups: Dict[Tuple[Any, ...], Group] = {}
        self.wrong: List[Finding] = []
        self.first_wrong: Optional[Finding] = None
        self.wrong_calls = 0
        self.calls = 0
        self.devices: Dict[str, int] = {}
        self.cases: Dict[str, Any] = {}
        self.seconds_operators = 0.0
        self.seconds_checks = 0.0
        self.seconds_total = 0.0
        self.steps_seen: List[int] = []
        self._steps = steps
        self._history = History()
        self._lock = threading.RLock()
        self._process = os.getpid()
        self._mode: Optional[_Mode] = None
        self._stance: Any = None
        self._entered = 0.0

    def __enter__(self) -> "lockstep":
        """Begins to watch."""
        if self._mode is not None:
            raise RuntimeError("this lockstep has been entered before: make a new one")
        self.where.attach()
        set_stance = getattr(torch.compiler, "set_stance", None)
        if set_stance is not None:
            # Compiled code would hide its operators.
            self._stance = set_stance("force_eager")
            if hasattr(self._stance, "__enter__"):
                self._stance.__enter__()
        self._mode = _Mode(self)
        self._mode.__enter__()
        self._entered = time.perf_counter()
        return self

    def __exit__(self, *raised: Any) -> None:
        """Ends to watch; what was found stays."""
        self.seconds_total = time.perf_counter() - self._entered
        assert self._mode is not None
        self._mode.__exit__(*raised)
        if self._stance is not None and hasattr(self._stance, "__exit__"):
            self._stance.__exit__(*raised)
        self.where.detach()

    @property
    def active(self) -> bool:
        """Whether calls are being judged now."""
        wanted = self._steps is None or self.where.step in self._steps
        return wanted and os.getpid() == self._process

    def run(self, func: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        """Runs one operator and judges it."""
        begin = time.perf_counter()
        place = self.where.place(args)
        call, judgement = None, None
        if rules.base_name(func._schema.name.split("::")[-1]) in rules.BOOKKEEPING:
            judgement = Judgement(judging.BOOKKEEPING, "touches no numbers")
        else:
            try:
                with judging.out_of_sight():
                    call = Call(func, args, kwargs)
            except NotChecked as reason:
                judgement = Judgement(judging.NOT_CHECKED, str(reason))
        start = time.perf_counter()
        returned = func(*args, **kwargs)
        stop = time.perf_counter()
        with self._lock:
            with judging.out_of_sight():
                if judgement is None and call is not None:
                    judgement = judging.judge(call, args, kwargs, returned)
                assert judgement is not None
                if judgement.status == judging.WRONG and call is not None:
                    judgement.reason = setting_of(call, args, kwargs, returned, judgement) or judgement.reason
                finding = self._finding(func, args, kwargs, returned, call, place, judgement)
            if judgement.status == judging.WRONG:
                self._wrong(finding, func, call, args, kwargs, returned)
            if call is not None:
                with judging.out_of_sight():
                    if judgement.status != judging.NOT_CHECKED:
                        self._history.note(finding.operator, call, args, kwargs, returned)
                    note_case(self.cases, call)
            self._count(finding)
            self.seconds_operators += stop - start
            self.seconds_checks += time.perf_counter() - stop + start - begin
        return returned

    def _finding(
        self,
        func: Any,
        args: Tuple[Any, ...],
        kwargs: Dict[str, Any],
        returned: Any,
        call: Optional[Call],
        place: Place,
        judgement: Judgement,
    ) -> Finding:
        operands = call.captured() if call is not None else tensors([args, kwargs])
        devices = [str(t.device) for t in operands] or [str(t.device) for t in tensors(returned)]
        for device in set(devices):
            self.devices[device] = self.devices.get(device, 0) + 1
        return Finding(
            number=self.calls,
            operator=str(func),
            place=place,
            device=devices[0] if devices else "",
            shapes=tuple(tuple(t.shape) for t in operands),
            dtypes=tuple(dict.fromkeys(str(t.dtype).replace("torch.", "") for t in operands)),
            judgement=judgement,
        )

    def _count(self, finding: Finding) -> None:
        """Enters a finding into its group."""
        self.calls += 1
        place, status = finding.place, finding.judgement.status
        if status != judging.BOOKKEEPING and place.step not in self.steps_seen[-1:]:
            self.steps_seen.append(place.step)
        key = (finding.operator, place.phase, place.layer, finding.shapes, finding.dtypes, status)
        if key not in self.groups:
            self.groups[key] = Group(finding)
        self.groups[key].add(finding)

    def _wrong(
        self, finding: Finding, func: Any, call: Optional[Call], args: Tuple[Any, ...], kwargs: Dict[str, Any], returned: Any
    ) -> None:
        self.wrong_calls += 1
        if finding.place.phase == "optimizer":
            finding.place = self._parameter_place(finding, call, args, kwargs)
        if self.first_wrong is None and call is not None:
            finding.guess = guess(self._history, func, call, args, kwargs, returned, finding.judgement)
            finding.reproducer = reproducer(func, call, finding.judgement, finding.device, finding.place.layer)
            self.first_wrong = finding
        if len(self.wrong) < WRONG_KEPT:
            self.wrong.append(finding)

    def _parameter_place(
        self, finding: Finding, call: Optional[Call], args: Tuple[Any, ...], kwargs: Dict[str, Any]
    ) -> Place:
        """Names the parameter where a call works on a list of them: the result `self[3]` is that of `self`'s fourth."""
        output = finding.judgement.output
        if call is None or "[" not in output or not args or not isinstance(args[0], (list, tuple)):
            return finding.place
        position = int(output[output.index("[") + 1 : -1])
        name = self.where.parameter(args[0][position]) if position < len(args[0]) else ""
        return Place(finding.place.step, finding.place.phase, name) if name else finding.place

    # What is told: see `report.py`.

    def report(self) -> Report:
        """Everything that was found, as a `Report`."""
        return Report.of(self)

    def table(self, rows: int = 20) -> str:
        """The ranked table and the summary as text."""
        return self.report().table(rows)

    def json(self) -> str:
        """The report as one line of JSON; see the README for its fields."""
        return self.report().json()

    def html(self) -> str:
        """The report as one self-contained page."""
        return self.report().html()

    def write_cases(self, path: Any) -> int:
        """Writes each distinct call as a line of `path`, without data; gives their number. See CASES.md."""
        return write_cases(self.cases, path)


class _Mode(TorchDispatchMode):
    """Hands each operator to the run that it belongs to."""

    def __init__(self, run: lockstep) -> None:
        super().__init__()
        self._run = run

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._run.active:
            return func(*args, **kwargs)
        if any(kind not in PLAIN for kind in types):
            # A tensor made of others (DTensor): its own dispatch comes next, and we see what that calls.
            return NotImplemented
        return self._run.run(func, args, kwargs)
