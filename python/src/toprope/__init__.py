"""Is an operator wrong, and which one? Reruns every operator of a PyTorch training step in f64 on the CPU.

    import toprope

    with toprope.lockstep() as run:
        loss = model(batch).loss
        loss.backward()
        optimizer.step()
    print(run.table())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .watch import lockstep
    from .report import Report

OLDEST_TORCH = (2, 1)

__all__ = ["Report", "__version__", "lockstep"]


def require_torch() -> None:
    """Raises ImportError, with the mend, where torch is not there or too old."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"toprope needs torch 2.1 or newer, and none can be imported ({error}): pip install torch") from error
    version = str(torch.__version__)
    parts = version.split("+")[0].split(".")
    found = tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts[:2])
    if found < OLDEST_TORCH:
        raise ImportError(f"toprope needs torch 2.1 or newer, this is {version}: pip install --upgrade torch")


def __getattr__(name: str) -> Any:
    """Imports what needs torch when it is first asked for: without torch the command line can still say so."""
    if name == "lockstep":
        require_torch()
        from .watch import lockstep

        return lockstep
    if name == "Report":
        require_torch()
        from .report import Report

        return Report
    raise AttributeError(f"module 'toprope' has no attribute {name!r}")
