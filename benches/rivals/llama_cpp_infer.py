"""Times llama.cpp on one GGUF file: tokens read at once, and tokens made one by one. Prints one line of JSON.

    pip install llama-cpp-python                  # built with -DGGML_AMX_INT8=OFF where its quantised AMX kernels crash
    python llama_cpp_infer.py MODEL.gguf --bf16 WHERE.gguf [--read 512] [--made 64] [--threads 2] [--rounds 3]

MODEL's matrices are written as BF16 to WHERE first (llama.cpp's own quantiser) unless that file is there. Each of its settings
that matters here is tried (flash attention on and off) and the best median of each figure is given. Tokens are read as one
batch with logits of the last one alone, as it does by default; what is made is the likeliest token.
"""

import argparse
import ctypes
import json
import time
from pathlib import Path

import llama_cpp
import numpy as np

BF16 = 32  # LLAMA_FTYPE_MOSTLY_BF16


def converted(source, target):
    if not target.exists():
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype = BF16
        parameters.allow_requantize = True
        part = target.with_suffix(".part")
        code = llama_cpp.llama_model_quantize(str(source).encode(), str(part).encode(), parameters)
        assert code == 0, f"llama.cpp could not write {part}"
        part.rename(target)
    return target


class Context:
    def __init__(self, model, length, threads, flash):
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = length
        parameters.n_batch = parameters.n_ubatch = max(length, 512)
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.flash_attn_type = int(flash)
        self.context = llama_cpp.llama_init_from_model(model, parameters)
        assert self.context, "no context"
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def clear(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def best(self, tokens):
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        code = llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(tokens)))
        assert code == 0, f"llama_decode gave {code}"
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return int(np.argmax(np.ctypeslib.as_array(logits, (self.vocabulary,))))

    def close(self):
        llama_cpp.llama_free(self.context)


def median(values):
    return sorted(values)[len(values) // 2]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--bf16", type=Path, required=True)
    parser.add_argument("--read", type=int, default=512)
    parser.add_argument("--made", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    log = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    path = converted(arguments.model, arguments.bf16)
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    assert model, f"{path} cannot be loaded"
    prompt = [(7 + 31 * at) % 4096 + 100 for at in range(arguments.read)]
    tried = {}
    for name, flash in (("flash attention", True), ("plain attention", False)):
        context = Context(model, arguments.read + arguments.made, arguments.threads, flash)
        reads, makes = [], []
        for round in range(arguments.rounds + 1):
            context.clear()
            began = time.perf_counter()
            token = context.best(prompt)
            read = time.perf_counter()
            for _ in range(arguments.made):
                token = context.best([token])
            made = time.perf_counter()
            # The first round warms up.
            if round:
                reads.append(arguments.read / (read - began))
                makes.append(arguments.made / (made - read))
        context.close()
        tried[name] = (median(reads), median(makes))
    best = [max(tried, key=lambda name: tried[name][figure]) for figure in (0, 1)]
    system = llama_cpp.llama_print_system_info().decode()
    print(json.dumps({
        "prefill_tokens_per_second": tried[best[0]][0], "prefill_setting": best[0],
        "decode_tokens_per_second": tried[best[1]][1], "decode_setting": best[1],
        "version": llama_cpp.__version__, "bf16": "AVX512_BF16 = 1" in system, "system": system.strip(),
    }))


if __name__ == "__main__":
    main()
