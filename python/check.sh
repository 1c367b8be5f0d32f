#!/usr/bin/env bash
# What must pass before the package lands: its tests, and a wheel that runs where nothing else of ours is.
# TOPROPE_PYTHON names the interpreter that has torch, pytest and build (default: python3).
set -euo pipefail
cd "$(dirname "$0")"
python=${TOPROPE_PYTHON:-python3}
"$python" -m pytest -q
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git ls-files -z --cached --others --exclude-standard . | tar --null -T - -c | tar -x -C "$work"
"$python" -m build --wheel --no-isolation --outdir "$work/dist" "$work" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$python" -m pip install --quiet --no-deps --no-index --target "$work/installed" "$work"/dist/*.whl
cat >"$work/train.py" <<'SCRIPT'
import torch
model = torch.nn.Sequential(torch.nn.Linear(20, 8), torch.nn.GELU(), torch.nn.Linear(8, 3))
optimizer = torch.optim.AdamW(model.parameters())
for _ in range(3):
    model(torch.randn(4, 20)).square().mean().backward()
    optimizer.step()
SCRIPT
cd "$work"
PYTHONPATH="$work/installed" "$python" -W ignore -m toprope diagnose train.py --step 2 --cases cases.jsonl
PYTHONPATH="$work/installed" "$python" -W ignore -m toprope cases cases.jsonl
ls -l "$work"/dist
