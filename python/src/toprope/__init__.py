"""Is an operator wrong, and which one? Reruns every operator of a PyTorch training step in f64 on the CPU.

    import toprope

    with toprope.lockstep() as run:
        loss = model(batch).loss
        loss.backward()
        optimizer.step()
    print(run.table())
"""

from .version import __version__

OLDEST_TORCH = (2, 1)


def _require_torch() -> None:
    """Says what is missing where torch is not there or too old."""
    try:
        import torch
    except ImportError as error:
        raise ImportError("toprope needs torch 2.1 or newer, and there is none: pip install torch") from error
    parts = torch.__version__.split("+")[0].split(".")
    found = tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts[:2])
    if found < OLDEST_TORCH:
        raise ImportError(f"toprope needs torch 2.1 or newer, this is {torch.__version__}: pip install --upgrade torch")


_require_torch()

from .lockstep import lockstep  # noqa: E402
from .report import Report  # noqa: E402

__all__ = ["Report", "__version__", "lockstep"]
