"""Shows that what `toprope export` writes opens in transformers and computes the same: of runs that are trained here from
their first step, and of every record in hub/.

    python opened_by_transformers.py target/release/toprope [--only RECORD,RECORD]

Models that went on from a published one, in full and with adapters, are looked at by fine_tuned_by_transformers.py. Ends with 1
where a logit lies further than 1e-4 of the largest one from `toprope eval`'s.
"""

import sys
import tempfile
from pathlib import Path

from folders import BOUND, apart, asked, opened, records, toprope
from safetensors.torch import load_file

STEPS = 20


def main():
    arguments = asked(__doc__).parse_args()
    binary, failed = arguments.toprope, False
    with tempfile.TemporaryDirectory() as room:
        room = Path(room)
        sources = {}
        for recipe in ("tiny-moe", "tiny-dense"):
            run = room / recipe
            toprope(binary, "train", recipe, "--run", run, "--steps", STEPS, "--set", "evaluation.final_tokens=512")
            sources[f"{recipe} trained for {STEPS} steps"] = (run, list(b"Hello world"))
        for record in records(arguments):
            tokens = load_file(record / "expected.safetensors")["tokens"].tolist()
            sources[record.name] = (record, tokens)
        for number, (name, (source, tokens)) in enumerate(sources.items()):
            folder = room / f"exported-{number}"
            toprope(binary, "export", source, folder)
            far = apart(binary, folder, opened(folder), tokens, room / f"{number}.safetensors")
            print(f"{name}: logits {far:.1e} apart{'' if far < BOUND else ', too far'}", flush=True)
            failed |= not far < BOUND
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
