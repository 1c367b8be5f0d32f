# ----------------------------------------------------------------------------------------------------------- defects
# A defect takes the place of one operator of the worker. It gets the right operator first, then what that one gets.

import contextlib
import copy
import functools
import random
import time

DEFECTS = {}
IN_RANGE = [False]  # whether the operator that runs is one of several
CHANCE = random.Random(1)  # of the defects that show now and then


def defect(operator, kinds):
    """Registers the function below as a defect of `operator`; the crate reads these lines too, and the kinds in them."""

    def register(function):
        DEFECTS[function.__name__] = (operator, function)
        return function

    return register


def switch_on(name):
    """Puts a defect in; the description of the device says so."""
    watch_ranges()
    say("DEFECT=" + name)
    put_in(name)


def switched_by_host():
    """Before each program the last region that the host gave says which defect is in: 0 for none, else its place."""
    watch_ranges()
    say("DEFECT=switched")
    right, prepare = dict(OPERATORS), Worker.on_prepare

    def prepared(worker, request, payload):
        place = int.from_bytes(worker.regions[-1].map[:8], sys.byteorder)
        OPERATORS.update(right)
        if place:
            put_in(list(DEFECTS)[place - 1])
        return prepare(worker, request, payload)

    Worker.on_prepare = prepared


def put_in(name):
    operator, wrong = DEFECTS[name]
    OPERATORS[operator] = functools.partial(wrong, OPERATORS[operator])


def say(words):
    describe = Chip.describe

    def told(chip):
        description = describe(chip)
        description["level"] += " " + words
        return description

    Chip.describe = told


def watch_ranges():
    run = Worker.on_run

    def watched(worker, request, payload):
        IN_RANGE[0] = request["to"] - request["from"] > 1
        return run(worker, request, payload)

    Worker.on_run = watched


@contextlib.contextmanager
def replaced(**parts):
    """Other code in the place of functions of operators.py while one operator runs."""
    kept = {name: globals()[name] for name in parts}
    globals().update(parts)
    try:
        yield
    finally:
        globals().update(kept)


def with_attributes(op, **attributes):
    """The instruction with other attributes."""
    other = copy.copy(op)
    other.__dict__.update(attributes)
    return other


def running_product(keep, block):
    """A product whose running sum is kept in few bits: `keep` rounds it behind each `block` of terms."""

    def multiply(op, a, b):
        y = torch.zeros(a.shape[0], b.shape[1], device=a.device)
        for k in range(0, a.shape[1], block):
            y = keep(y + a[:, k : k + block].float() @ b[k : k + block].float())
        return y

    return multiply


def in_bf16(x):
    return x.bfloat16().float()


def in_fp16(x):
    return x.half().float()


def truncated(x):
    """f32 with the lower half of its bits dropped; NaN stays."""
    cut = (x.float().contiguous().view(torch.int32) & -0x10000).view(torch.float32)
    return torch.where(x.isnan(), x.float(), cut)


def flipped(x, rate):
    """Bits of stored elements flipped, each element with this probability."""
    y = x.clone()
    words = y.view(torch.int16 if y.element_size() == 2 else torch.int32).view(-1)
    # The number of hits is drawn first, so that a rate of one in a million costs nothing.
    hits = sum(CHANCE.random() < rate for _ in range(words.numel())) if words.numel() < 4096 else round(
        max(0.0, CHANCE.gauss(rate * words.numel(), (rate * words.numel()) ** 0.5)))
    for _ in range(hits):
        words[CHANCE.randrange(words.numel())] ^= 1 << CHANCE.randrange(8 * y.element_size() - 2)
    return y


def slowed(factor, right, op, operands):
    """The right result, `factor` times as late."""
    started = time.perf_counter()
    results = right(op, *operands)
    until = started + factor * (time.perf_counter() - started)
    while time.perf_counter() < until:
        pass
    return results
