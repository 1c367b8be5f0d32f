"""What a run found, as a structure, a table, a line of JSON, or a page."""

from __future__ import annotations

import html as escaping
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Dict, List, Optional

import torch

from . import judge as judging
from .version import __version__


@dataclass
class Row:
    """One operator: all its calls with operands of one dtype."""

    operator: str
    dtype: str
    calls: int = 0
    checked: int = 0
    wrong: int = 0
    #: Checked calls whose tolerance is more than an eighth of their result: little can be seen there.
    coarse: int = 0
    #: Worst call: error in units of its tolerance; None where nothing is allowed and something is off.
    units: Optional[float] = 0.0
    error: Optional[float] = None
    tolerance: Optional[float] = None
    effective_bits: Optional[float] = None
    control_bits: Optional[float] = None
    layer: str = ""
    phase: str = ""
    step: int = 0
    shape: List[List[int]] = field(default_factory=list)
    #: Why calls were not checked or not comparable, or which setting explains them.
    reason: str = ""
    status: str = judging.RIGHT


@dataclass
class Report:
    """Everything that a run found."""

    toprope: str
    torch: str
    against: str
    verdict: str
    devices: Dict[str, int]
    steps: List[int]
    calls: int
    coverage: Dict[str, Any]
    wrong_calls: int
    first_wrong: Optional[Dict[str, Any]]
    operators: List[Row]
    settings: List[Dict[str, Any]]
    not_checked: List[Dict[str, Any]]
    cost: Dict[str, float]

    @staticmethod
    def of(run: Any) -> "Report":
        """Made of a `lockstep` that has run."""
        rows: Dict[Any, Row] = {}
        statuses: Dict[str, int] = {}
        unchecked: Dict[Any, int] = {}
        settings: Dict[Any, int] = {}
        for group in run.groups.values():
            _enter(rows, group)
            worst = group.worst
            for status, count in group.statuses.items():
                statuses[status] = statuses.get(status, 0) + count
                if status in (judging.NOT_CHECKED, judging.NOT_COMPARABLE):
                    key = (worst.operator, status, worst.judgement.reason)
                    unchecked[key] = unchecked.get(key, 0) + count
                if status == judging.SETTING:
                    key = (worst.operator, worst.judgement.reason)
                    settings[key] = settings.get(key, 0) + count
        ranked = sorted(rows.values(), key=lambda row: (row.wrong > 0, math.inf if row.units is None else row.units), reverse=True)
        checked = sum(statuses.get(s, 0) for s in (judging.RIGHT, judging.WRONG, judging.SETTING))
        counted = run.calls - statuses.get(judging.BOOKKEEPING, 0)
        verdict = "differ" if run.wrong_calls else ("agree" if checked else "inconclusive")
        total = run.seconds_total
        return Report(
            toprope=__version__,
            torch=torch.__version__,
            against="cpu:f64",
            verdict=verdict,
            devices=dict(sorted(run.devices.items())),
            steps=list(run.steps_seen),
            calls=run.calls,
            coverage={
                "checked": checked,
                "not_checked": statuses.get(judging.NOT_CHECKED, 0),
                "not_comparable": statuses.get(judging.NOT_COMPARABLE, 0),
                "bookkeeping": statuses.get(judging.BOOKKEEPING, 0),
                "share": round(checked / counted, 6) if counted else 0.0,
                "coarse": sum(row.coarse for row in rows.values()),
            },
            wrong_calls=run.wrong_calls,
            first_wrong=first_wrong(run.first_wrong),
            operators=ranked,
            settings=[{"operator": o, "setting": line, "calls": n} for (o, line), n in settings.items()],
            not_checked=[{"operator": o, "status": s, "reason": r, "calls": n} for (o, s, r), n in unchecked.items()],
            cost={
                "seconds": round(total, 6),
                "seconds_operators": round(run.seconds_operators, 6),
                "seconds_checks": round(run.seconds_checks, 6),
                "seconds_without": round(max(total - run.seconds_checks, 0.0), 6),
                "share": round(run.seconds_checks / total, 6) if total else 0.0,
            },
        )

    def dictionary(self) -> Dict[str, Any]:
        """Plain values, as `json` prints them."""
        return asdict(self)

    def json(self) -> str:
        """One line. Numbers that JSON does not have are null."""
        return json.dumps(_plain(self.dictionary()), sort_keys=False)

    def table(self, rows: int = 20) -> str:
        """The ranked operators, what was not checked, the first wrong call, the cost."""
        lines = [_HEAD]
        for row in self.operators[:rows]:
            lines.append(_line(row))
        if len(self.operators) > rows:
            lines.append(f"… {len(self.operators) - rows} more operators")
        lines += ["", *self.summary()]
        return "\n".join(lines)

    def summary(self) -> List[str]:
        """The same in sentences."""
        cover = self.coverage
        where = ", ".join(f"{device} ({count})" for device, count in self.devices.items()) or "no device"
        lines = [
            f"{self.calls} calls on {where}; {cover['checked']} checked against {self.against} ({cover['share']:.1%} of those that "
            f"touch numbers), {cover['not_checked']} not checked, {cover['not_comparable']} not comparable, "
            f"{cover['bookkeeping']} without numbers"
        ]
        coarse = sorted((row for row in self.operators if row.coarse), key=lambda row: -row.coarse)
        if coarse:
            names = ", ".join(f"{row.operator} ×{row.coarse}" for row in coarse[:4]) + (", …" if len(coarse) > 4 else "")
            lines.append(f"  coarse: {cover['coarse']} checked with a tolerance above an eighth of the result: {names}")
        for item in self.not_checked:
            lines.append(f"  {item['status']}: {item['operator']} ×{item['calls']}: {item['reason']}")
        for item in self.settings:
            lines.append(f"  setting, no defect: {item['operator']} ×{item['calls']}: {item['setting']}")
        first = self.first_wrong
        if first is None:
            lines.append("no operator is wrong" if self.verdict == "agree" else "nothing was checked: this says nothing")
        else:
            layer = f" in {first['layer']}" if first["layer"] else ""
            lines.append(f"first wrong: {first['operator']}{layer} ({first['phase']}), step {first['step']}: {first['reason']}")
            if first["error"] is not None:
                lines.append(
                    f"  {first['output']}{first['index']} is {first['got']:.9g}, {first['want']:.9g} expected: "
                    f"error {first['error']:.3g}, tolerance {first['tolerance']:.3g}"
                )
            lines.append(f"  looks like: {first['defect_guess'] or 'no experiment tells'}")
            lines.append(f"  {self.wrong_calls} wrong call(s) in all")
        cost = self.cost
        lines.append(
            f"{cost['seconds']:.2f} s, of which {cost['seconds_checks']:.2f} s were checks ({cost['share']:.0%}); "
            f"without them {cost['seconds_without']:.2f} s"
        )
        return lines

    def html(self) -> str:
        """One page with nothing outside of it."""
        text = escaping.escape
        body = [f"<h1>Toprope lockstep: {text(self.verdict)}</h1>", f"<p>torch {text(self.torch)}, against {self.against}</p>"]
        body.append("<pre>" + text("\n".join(self.summary())) + "</pre>")
        body.append("<table><tr>" + "".join(f"<th>{text(name)}</th>" for name in _COLUMNS) + "</tr>")
        for row in self.operators:
            cells = "".join(f"<td>{text(cell)}</td>" for cell in _cells(row))
            body.append(f'<tr class="{row.status.replace(" ", "-")}">{cells}</tr>')
        body.append("</table>")
        if self.first_wrong and self.first_wrong["reproducer"]:
            body.append("<h2>Reproducer</h2><pre>" + text(self.first_wrong["reproducer"]) + "</pre>")
        return _PAGE.replace("BODY", "\n".join(body))


def _enter(rows: Dict[Any, Row], group: Any) -> None:
    """Adds a group's calls to its operator's row."""
    worst = group.worst
    judgement = worst.judgement
    key = (worst.operator, worst.dtypes)
    row = rows.setdefault(key, Row(worst.operator, "+".join(worst.dtypes)))
    row.calls += group.calls
    row.coarse += group.coarse
    for status, count in group.statuses.items():
        if status in (judging.RIGHT, judging.WRONG, judging.SETTING):
            row.checked += count
        if status == judging.WRONG:
            row.wrong += count
    units = None if math.isinf(judgement.units) else judgement.units
    rank = math.inf if units is None else units
    if not row.layer and not row.shape or rank > (math.inf if row.units is None else row.units):
        row.units, row.error, row.tolerance = units, judgement.error, judgement.tolerance
        row.layer, row.phase, row.step = worst.place.layer, worst.place.phase, worst.place.step
        row.shape = [list(shape) for shape in worst.shapes]
    if group.bits_least is not None and (row.effective_bits is None or group.bits_least < row.effective_bits):
        row.effective_bits, row.control_bits = round(group.bits_least, 2), round(group.control_bits, 2)
    severity = [judging.RIGHT, judging.BOOKKEEPING, judging.NOT_COMPARABLE, judging.NOT_CHECKED, judging.SETTING, judging.WRONG]
    if severity.index(judgement.status) > severity.index(row.status):
        row.status, row.reason = judgement.status, judgement.reason


def first_wrong(finding: Any) -> Optional[Dict[str, Any]]:
    """The first wrong call as plain values; None where all agree."""
    if finding is None:
        return None
    judgement = finding.judgement
    return {
        "operator": finding.operator,
        "layer": finding.place.layer,
        "step": finding.place.step,
        "phase": finding.place.phase,
        "device": finding.device,
        "shape": [list(shape) for shape in finding.shapes],
        "dtype": list(finding.dtypes),
        "output": judgement.output,
        "index": list(judgement.index) if judgement.index is not None else None,
        "got": judgement.got,
        "want": judgement.want,
        "error": judgement.error,
        "tolerance": judgement.tolerance,
        "effective_bits": judgement.bits,
        "control_bits": judgement.control_bits,
        "wrong_elements": judgement.wrong,
        "elements": judgement.elements,
        "reason": judgement.reason,
        "defect_guess": str(finding.guess) if finding.guess is not None else None,
        "reproducer": finding.reproducer,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


_COLUMNS = ("operator", "dtype", "calls", "checked", "wrong", "error/tolerance", "bits", "control", "worst in")
_WIDTHS = (52, 14, 6, 7, 6, 15, 6, 7, 0)
_HEAD = "  ".join(name.ljust(width) for name, width in zip(_COLUMNS, _WIDTHS))


def _cells(row: Row) -> List[str]:
    units = "—" if not row.checked else ("beyond" if row.units is None else f"{row.units:.3g}")
    bits = "" if row.effective_bits is None else f"{row.effective_bits:.1f}"
    control = "" if row.control_bits is None else f"{row.control_bits:.1f}"
    place = row.layer or row.phase
    if row.status not in (judging.RIGHT, judging.WRONG):
        place = f"{row.status}: {row.reason}"
    return [row.operator, row.dtype, str(row.calls), str(row.checked), str(row.wrong), units, bits, control, place]


def _line(row: Row) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(_cells(row), _WIDTHS)).rstrip()


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Toprope lockstep</title><style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8884; }
tr.wrong { background: #d332; } tr.not-checked { opacity: .7; } tr.setting { background: #da32; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #8881; padding: 1rem; }
</style></head><body>
BODY
</body></html>
"""
