"""One rank of Toprope's look at collectives: torch.distributed on integer payloads, compared bit for bit.

Whoever started it sends one line of JSON on standard input (`rank`, `device`, `port`), rank 0 first, which answers with the
port of the store that it opened; then a second line with the number of ranks and the operations, and a third when all are
ready. Each rank writes a line of JSON on standard output before it enters an operation and behind it, so that the one that
never enters is seen at once.
"""

import datetime
import json
import os
import platform
import sys
import threading
import time

OUT = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print goes to standard error
torch = dist = None
BACKENDS = {"cpu": "gloo", "cuda": "nccl", "npu": "hccl", "xpu": "xccl"}
DTYPES = {"i32": "int32", "i64": "int64", "f32": "float32"}


def say(event, **fields):
    OUT.write(json.dumps({"event": event, **fields}) + "\n")
    OUT.flush()


class Refused(Exception):
    """What this rank cannot do, as a sentence."""


def line():
    text = sys.stdin.buffer.readline()
    if not text:
        os._exit(0)
    return json.loads(text)


def end_with_parent():
    while sys.stdin.buffer.read(1):
        pass
    os._exit(0)


def load(device):
    """Imports torch and says how many devices of this kind there are; a host has as many as one likes."""
    global torch, dist
    try:
        import torch as imported
        import torch.distributed as distributed
    except ImportError as error:
        reason = f"{sys.executable} (Python {platform.python_version()}) cannot import torch ({error}); "
        raise Refused(reason + "name the interpreter that has it with --python or TOPROPE_PYTHON") from None
    torch, dist = imported, distributed
    if not dist.is_available():
        raise Refused(f"torch {torch.__version__} was built without torch.distributed")
    torch.set_num_threads(1)
    if device == "cpu":
        return None
    if device == "npu":
        try:
            import torch_npu  # noqa: F401  (registers the backend)
        except ImportError as error:
            raise Refused(f"collectives on npu need torch_npu beside torch: {error}") from None
    module = getattr(torch, device, None)
    if module is None or not module.is_available():
        raise Refused(f"torch {torch.__version__} sees no {device} here")
    return module.device_count()


def payload(rank, at, count, dtype, device):
    """Small integers that differ by rank, operation and place; sums over ranks are exact in f32."""
    place = torch.arange(count, dtype=torch.int64, device=device)
    return ((place * 31 + rank * 17 + at * 7) % 251 - 125).to(dtype)


def stored(x):
    """The bits, so that -0 is not 0."""
    return x.view(torch.int32) if x.dtype == torch.float32 else x


def difference(got, want, source):
    """What is wrong in a received block; none where every bit is right."""
    wrong = (stored(got) != stored(want)).nonzero().flatten()
    if wrong.numel() == 0:
        return []
    at = int(wrong[0])
    found = {"from": source, "element": at, "count": int(wrong.numel())}
    return [{**found, "got": float(got[at]), "want": float(want[at])}]


class Operation:
    """One collective with its operands; `run` may be repeated, `check` compares what it gave."""

    def __init__(self, at, item, rank, ranks, device):
        self.name, self.at, self.rank, self.ranks, self.device = item["operation"], at, rank, ranks, device
        self.dtype, self.count = getattr(torch, DTYPES[item["dtype"]]), item["elements"]
        self.root = at % ranks
        blocks = {"all_gather": (1, ranks), "reduce_scatter": (ranks, 1), "all_to_all": (ranks, ranks)}
        self.given, self.taken = blocks.get(self.name, (1, 1))
        self.source = self.of(rank)
        # What nobody writes shows.
        self.result = torch.full((self.taken * self.count,), -999_999, dtype=self.dtype, device=device)

    def of(self, rank):
        return payload(rank, self.at, self.given * self.count, self.dtype, self.device)

    def block(self, x, index):
        return x[index * self.count : (index + 1) * self.count]

    def run(self):
        if self.name == "all_reduce":
            self.result.copy_(self.source)
            dist.all_reduce(self.result)
        elif self.name == "all_gather":
            dist.all_gather([self.block(self.result, index) for index in range(self.ranks)], self.source)
        elif self.name == "reduce_scatter":
            dist.reduce_scatter_tensor(self.result, self.source)
        elif self.name == "broadcast":
            if self.rank == self.root:
                self.result.copy_(self.source)
            dist.broadcast(self.result, self.root)
        elif self.name == "all_to_all":
            dist.all_to_all_single(self.result, self.source)
        else:
            raise Refused(f"this script does not know the collective `{self.name}`: use one installation")
        if self.device.type != "cpu":
            getattr(torch, self.device.type).synchronize()

    def check(self):
        if self.name == "broadcast":
            return difference(self.result, self.of(self.root), self.root)
        if self.name in ("all_gather", "all_to_all"):
            mine = 0 if self.name == "all_gather" else self.rank
            wants = [self.block(self.of(rank), mine) for rank in range(self.ranks)]
            found = [difference(self.block(self.result, rank), want, rank) for rank, want in enumerate(wants)]
            return sum(found, [])
        total = sum(self.of(rank).long() for rank in range(self.ranks))
        want = total if self.name == "all_reduce" else self.block(total, self.rank)
        return difference(self.result, want.to(self.dtype), None)


def absent(error):
    text = str(error)
    lacking = ("not support", "unsupported", "not implemented", "no support", "Invalid scalar type")
    return isinstance(error, NotImplementedError) or any(words in text for words in lacking)


def arrive(at):
    say("arrived", at=at)


def rank_main():
    about = line()
    rank, kind = about["rank"], about["device"]
    devices = load(kind)
    limit = datetime.timedelta(seconds=about["limit_s"])
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=limit)
        say("store", port=store.port, devices=devices)
    plan = line()
    ranks, backend = plan["ranks"], BACKENDS.get(kind)
    if backend is None or not getattr(dist, f"is_{backend}_available", lambda: True)():
        raise Refused(f"torch {torch.__version__} has no collectives for {kind}")
    if rank > 0:
        store = dist.TCPStore("127.0.0.1", about["port"], is_master=False, timeout=limit)
    if kind == "cpu":
        # All ranks are on this machine; a host name that leads nowhere is no obstacle.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
        device, hardware = torch.device("cpu"), platform.machine()
    else:
        device, module = torch.device(kind, rank), getattr(torch, kind)
        module.set_device(rank)
        hardware = module.get_device_name(rank)
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=limit)
    say("ready", backend=backend, torch=torch.__version__, hardware=hardware)
    line()  # all are ready
    threading.Thread(target=end_with_parent, daemon=True).start()
    for at, item in enumerate(plan["operations"]):
        operation = Operation(at, item, rank, ranks, device)
        arrive(at)
        seconds, wrong = [], []
        try:
            for turn in range(1 + plan["repeats"]):
                started = time.perf_counter()
                operation.run()
                seconds.append(time.perf_counter() - started)
                if turn == 0:
                    wrong = operation.check()
        except Exception as error:
            if not absent(error):
                raise
            say("absent", at=at, reason=str(error).splitlines()[0][:300])
            continue
        say("left", at=at, seconds=seconds[1:], wrong=wrong or operation.check())
    say("end")
    # Nobody leaves before the parent closes the pipe: the store is rank 0's.
    threading.Event().wait()


try:
    rank_main()
except Refused as error:
    say("refused", reason=str(error))
except Exception as error:
    say("failed", reason=f"{type(error).__name__}: {str(error).splitlines()[0][:500] if str(error) else ''}")
    os._exit(3)
os._exit(0)
