"""Writes tests/golden/checkpoints: small checkpoints as PyTorch and Megatron-LM leave them, for `toprope inspect --verify`.

    python tests/golden/checkpoints.py

`dcp` is what torch.distributed.checkpoint saves from two processes, with tensors that are sharded by rows and by columns.
`megatron` has the layout of Megatron-LM's checkpoints of two tensor-parallel ranks; Megatron itself is not needed, since what
its pickles name of it are a few enumerations and named tuples. `pickled` is a folder with `pytorch_model.bin`. One of each form
goes into the fuzzer's corpus, as crates/fuzz reads them. Identifiers that PyTorch draws differ from run to run; nothing else does.
"""

import argparse
import collections
import enum
import json
import os
import pathlib
import random
import shutil
import sys
import tempfile
import types

import numpy
import torch
import torch.distributed as distributed
import torch.distributed.checkpoint as checkpoint
from torch.distributed.tensor import DeviceMesh, Replicate, Shard, distribute_tensor

FOLDER = pathlib.Path(__file__).parent / "checkpoints"
CORPUS = pathlib.Path(__file__).parents[2] / "fuzz" / "corpus" / "checkpoint"


def numbers(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def save_dcp(rank, folder):
    os.chdir(folder)
    store = distributed.FileStore(str(folder / "store"), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    mesh = DeviceMesh("cpu", [0, 1])
    state = {
        "model": {
            "embedding": distribute_tensor(numbers(7, 4, seed=1), mesh, [Shard(0)]),
            "head": distribute_tensor(numbers(4, 6, seed=2, dtype=torch.bfloat16), mesh, [Shard(1)]),
            "norm": distribute_tensor(numbers(4, seed=3), mesh, [Replicate()]),
        },
        "optimizer": {
            "state": {"embedding": {"step": torch.tensor(10.0), "exp_avg": numbers(7, 4, seed=4)}},
            "param_groups": [{"lr": 1e-3, "params": ["embedding"]}],
        },
        "step": 10,
    }
    # A relative name, so that no path of a machine gets into the metadata.
    checkpoint.save(state, checkpoint_id="dcp")
    distributed.barrier()
    distributed.destroy_process_group()


def megatron_modules():
    """`megatron.core.enums.ModelType`, which Megatron's arguments hold, and what the state of its re-runs is made of."""
    enums, rerun = "megatron.core.enums", "megatron.core.rerun_state_machine"
    for name in ["megatron", "megatron.core", enums, rerun]:
        sys.modules[name] = types.ModuleType(name)
    sys.modules[enums].ModelType = enum.Enum("ModelType", {"encoder_or_decoder": 1}, module=enums)
    machine = sys.modules[rerun]
    machine.RerunMode = enum.Enum("RerunMode", {"VALIDATE_RESULTS": "validate_results"}, module=rerun, type=str)
    machine.RerunState = enum.Enum("RerunState", {"NOT_RUNNING_YET": 0}, module=rerun)
    machine.RerunDiagnostic = enum.Enum("RerunDiagnostic", {"TRANSIENT_ERROR": "transient_error"}, module=rerun, type=str)
    machine.Caller = collections.namedtuple("Caller", ["filename", "lineno", "rank"], module=rerun)
    machine.Call = collections.namedtuple("Call", ["caller", "sequence"], module=rerun)
    return sys.modules[enums].ModelType, machine


def rerun_state(machine):
    """What Megatron keeps of its re-runs, with a check that failed."""
    return {
        "mode": machine.RerunMode.VALIDATE_RESULTS,
        "state": machine.RerunState.NOT_RUNNING_YET,
        "current_iteration": 10,
        "error_injector_checkpoint": {
            "error_injection_rate": 0,
            "error_injection_type": machine.RerunDiagnostic.TRANSIENT_ERROR,
        },
        "failed_validation_call": machine.Call(machine.Caller("train.py", 10, 0), 1),
        "data_iterator_checkpoints": None,
        "large_value_counts": {},
        "max_values": {"loss": 2.0},
    }


def save_megatron(folder):
    kind, machine = megatron_modules()
    for rank in range(2):
        random.seed(rank)
        numpy.random.seed(rank)
        torch.manual_seed(rank)
        model = collections.OrderedDict()
        model["embedding.word_embeddings.weight"] = numbers(8, 4, seed=rank, dtype=torch.bfloat16)
        model["decoder.layers.0.mlp.linear_fc1.weight"] = torch.nn.Parameter(numbers(6, 4, seed=2 + rank))
        # Views of one buffer, as a distributed optimizer has them; the second lies in it with gaps.
        buffer = numbers(40, seed=4 + rank)
        model["decoder.layers.0.mlp.linear_fc2.weight"] = buffer[8:32].view(4, 6)
        model["decoder.layers.0.gaps"] = buffer.view(5, 8)[:, 2:5]
        model["decoder.layers.0.transposed"] = numbers(3, 5, seed=6).t()
        model["decoder.layers.0._extra_state"] = None
        arguments = argparse.Namespace(
            tensor_model_parallel_size=2,
            pipeline_model_parallel_size=1,
            expert_model_parallel_size=1,
            params_dtype=torch.bfloat16,
            model_type=kind.encoder_or_decoder,
            lr=1e-4,
            seed=2**70,
        )
        rng = {
            "random_rng_state": random.getstate(),
            "np_rng_state": numpy.random.get_state(),
            "torch_rng_state": torch.get_rng_state(),
            "rng_tracker_states": {},
        }
        optimizer = {
            "optimizer": {"state": {0: {"exp_avg": numbers(8, 4, seed=8), "step": 10}}, "param_groups": [{"betas": (0.9, 0.95)}]},
            "fp32_from_fp16_params": [[numbers(8, 4, seed=9)]],
        }
        at = folder / "iter_0000010" / f"mp_rank_{rank:02d}"
        at.mkdir(parents=True)
        saved = {
            "args": arguments,
            "checkpoint_version": 3.0,
            "iteration": 10,
            "model": model,
            "optimizer": optimizer,
            "rng_state": [rng],
            "rerun_state_machine": rerun_state(machine),
        }
        torch.save(saved, at / "model_optim_rng.pt")
    (folder / "latest_checkpointed_iteration.txt").write_text("10")


def save_pickled(folder):
    folder.mkdir()
    state = {"a.weight": numbers(2, 3, seed=1), "b.weight": numbers(3, seed=2, dtype=torch.float16)}
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"architectures": ["AnyForCausalLM"]}) + "\n")


def write_corpus(room):
    """One file each: the first byte is the form, or how many KiB the metadata has."""
    pickled = (FOLDER / "pickled" / "pytorch_model.bin").read_bytes()
    (CORPUS / "pickled").write_bytes(bytes([0]) + pickled)
    state = {"a": numbers(3, 2, seed=1), "b": numbers(4, seed=2, dtype=torch.bfloat16), "c": {"d": torch.tensor(1.0)}, "step": 3}
    checkpoint.save(state, checkpoint_id=room / "one", no_dist=True)
    metadata, items = ((room / "one" / name).read_bytes() for name in [".metadata", "__0_0.distcp"])
    kibibytes = -(-len(metadata) // 1024)
    (CORPUS / "dcp").write_bytes(bytes([kibibytes]) + metadata.ljust(kibibytes << 10, b"\0") + items)
    rank = FOLDER / "megatron" / "iter_0000010" / "mp_rank_00" / "model_optim_rng.pt"
    (CORPUS / "megatron").write_bytes(bytes([255]) + rank.read_bytes())


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    with tempfile.TemporaryDirectory() as room:
        room = pathlib.Path(room)
        torch.multiprocessing.spawn(save_dcp, (room,), nprocs=2)
        shutil.copytree(room / "dcp", FOLDER / "dcp")
    save_megatron(FOLDER / "megatron")
    save_pickled(FOLDER / "pickled")
    with tempfile.TemporaryDirectory() as room:
        write_corpus(pathlib.Path(room))


if __name__ == "__main__":
    main()
