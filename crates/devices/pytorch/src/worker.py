"""Toprope's worker on PyTorch: any chip that the torch of this interpreter runs on, as a device of Toprope.

It speaks docs/worker-protocol.md over standard input and output and needs nothing but Python >= 3.8 and torch >= 2.1.
A program comes as JSON; the operators are in operators.py, which stands before this file in the script that runs.

Sections: frames, faults, the torch device, programs, the worker itself.
"""

import contextlib
import json
import mmap
import os
import platform
import queue
import re
import signal
import sys
import threading

PROTOCOL = 2
TORCH_LEAST = (2, 1)
HEAD_BYTES_MAX, PAYLOAD_BYTES_MAX = 256 << 20, 1 << 31

torch = None  # imported by `Chip.open`, so that its absence is an answer and not a traceback


# ---------------------------------------------------------------------------------------------------------------- frames


def read_exactly(stream, count):
    """`count` bytes, or None where the stream ends before the first of them."""
    data = bytearray()
    while len(data) < count:
        piece = stream.read(min(count - len(data), 1 << 24))
        if not piece:
            if data:
                raise EOFError("the supervisor's message ends early")
            return None
        data += piece
    return data


def read_frame(stream):
    """One request: its head as a dict and its payload as a bytearray; None at the end of the stream."""
    lengths = read_exactly(stream, 8)
    if lengths is None:
        return None
    head, payload = int.from_bytes(lengths[:4], "little"), int.from_bytes(lengths[4:], "little")
    if head > HEAD_BYTES_MAX or payload > PAYLOAD_BYTES_MAX:
        raise EOFError(f"a frame of {head} + {payload} bytes is not one of this protocol")
    head = json.loads((read_exactly(stream, head) or b"").decode())
    return head, (read_exactly(stream, payload) or bytearray()) if payload else bytearray()


def write_frame(stream, head, payload=b""):
    """One answer, flushed."""
    text = json.dumps(head).encode()
    stream.write(len(text).to_bytes(4, "little") + len(payload).to_bytes(4, "little") + text)
    stream.write(payload)
    stream.flush()


# ---------------------------------------------------------------------------------------------------------------- faults


class Fault(Exception):
    """What the supervisor is told: a class of docs/worker-protocol.md with its particulars."""

    def __init__(self, kind, **particulars):
        super().__init__(kind)
        self.body = {"class": kind, **particulars}


class Nonsense(Exception):
    """A message that no supervisor of this protocol sends; the worker ends."""


def unsupported(operator, reason, dtype=None, shape=()):
    return Fault("unsupported", operator=operator, dtype=dtype, shape=list(shape), reason=reason)


def fault_of(error):
    """The fault that an exception of torch is. Codes are those that CANN and CUDA print, -1 where there is none."""
    if isinstance(error, Fault):
        return error
    text = f"{type(error).__name__}: {error}"
    out_of_memory = getattr(torch, "OutOfMemoryError", None) or getattr(torch.cuda, "OutOfMemoryError", ())
    if isinstance(error, (out_of_memory, MemoryError)) or "out of memory" in text or "can't allocate memory" in text:
        asked = re.search(r"allocate ([\d.]+) ?(bytes|[KMG]iB)", text)
        unit = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
        needed = int(float(asked.group(1)) * unit[asked.group(2)]) if asked else 0
        return Fault("out_of_memory", needed_bytes=needed, available_bytes=None)
    code = re.search(r"error code (?:is |: ?)?(\d+)|CUDA error (\d+)", text)
    return Fault("driver", code=int(next(filter(None, code.groups()))) if code else -1, message=text[:2000])


# ------------------------------------------------------------------------------------------------------ the torch device

ATTENTION = ("plain", "sdpa-math", "sdpa-flash", "sdpa-efficient", "cudnn", "npu-fusion")


class Chip:
    """A torch device with the variants that its name asks for: `pytorch:cuda:0+attention=sdpa-flash+tf32=on`."""

    def __init__(self, name):
        self.name = name
        base, *variants = name.split("+")
        self.torch_name = base.split(":", 1)[1] if ":" in base else ""
        self.backend = self.torch_name.split(":")[0]
        if self.backend == "cpu":
            self.torch_name = "cpu"  # a number tells processes apart, and torch has one processor
        asked = dict(variant.split("=", 1) for variant in variants)
        self.attention = asked.pop("attention", "plain")
        self.matmul = asked.pop("matmul", "f32")
        self.tf32, self.hf32 = asked.pop("tf32", "off") == "on", asked.pop("hf32", "off") == "on"
        self.reduced = asked.pop("reduced", "off") == "on"
        self.mode = asked.pop("mode", "eager")
        self.deterministic = asked.pop("deterministic", "on") == "on"
        self.stream = asked.pop("stream", "default")
        if asked or self.attention not in ATTENTION or self.mode not in ("eager", "compile") or self.stream not in ("default", "side"):
            raise unsupported("open", f"the variants of `{name}` are not known to this worker")

    def open(self, threads):
        """Imports torch, sets every switch, and computes once on the device."""
        global torch
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
        try:
            import torch as imported
        except ImportError as error:
            reason = (
                f"{sys.executable} (Python {platform.python_version()}) cannot import torch ({error}); "
                "install torch there, or name the interpreter that has it with --python or TOPROPE_PYTHON"
            )
            raise unsupported("open", reason) from None
        torch = imported
        version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
        if version < TORCH_LEAST:
            reason = f"{sys.executable} has torch {torch.__version__}; this worker needs 2.1 at least: upgrade it"
            raise unsupported("open", reason)
        if threads:
            torch.set_num_threads(threads)
        if self.backend == "npu":
            try:
                import torch_npu  # noqa: F401  (registers the backend)
            except ImportError as error:
                raise unsupported("open", f"`{self.name}` needs torch_npu beside torch: {error}") from None
        torch.set_grad_enabled(False)
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        cuda = torch.backends.cuda.matmul
        cuda.allow_tf32, torch.backends.cudnn.allow_tf32 = self.tf32, self.tf32
        cuda.allow_bf16_reduced_precision_reduction = self.reduced
        cuda.allow_fp16_reduced_precision_reduction = self.reduced
        if self.backend == "npu":
            torch.npu.matmul.allow_hf32 = self.hf32
            torch.npu.conv.allow_hf32 = self.hf32
        torch.use_deterministic_algorithms(self.deterministic)
        if hasattr(torch.utils, "deterministic"):
            torch.utils.deterministic.fill_uninitialized_memory = False
        try:
            self.device = torch.device(self.torch_name)
            if (torch.ones(3, device=self.device) * 2).sum().item() != 6.0:
                raise RuntimeError("3 x 2 is not 6 on it")
        except Exception as error:  # whatever a backend throws that is not there
            there = ", ".join(f"`pytorch:{name}`" for name in self.backends())
            text = str(error).splitlines()[0][:300]
            reason = f"torch {torch.__version__} cannot compute on `{self.torch_name}`: {text}; it can on {there}"
            raise unsupported("open", reason) from None
        self.side = self.noise = None
        if self.stream == "side":
            module = getattr(torch, self.backend, None)
            if self.backend not in ("cuda", "npu", "xpu") or not hasattr(module, "Stream"):
                raise unsupported("open", f"`{self.torch_name}` has no streams")
            self.side = module.Stream(device=self.device)
            self.noise = torch.ones(512, 512, device=self.device)
        # Sums that want more than f32 take it where the chip has it.
        self.wide = torch.float64 if self.backend != "mps" else torch.float32
        self.names = {"f32": torch.float32, "bf16": torch.bfloat16, "i32": torch.int32, "u32": torch.int32}

    def backends(self):
        """The devices that this torch could compute on, by its own word."""
        found = ["cpu"]
        for backend in ("cuda", "xpu", "npu"):
            module = getattr(torch, backend, None)
            if module is not None and module.is_available():
                found += [f"{backend}:{index}" for index in range(module.device_count())]
        mps = getattr(torch.backends, "mps", None)
        return found + (["mps"] if mps is not None and mps.is_available() else [])

    def describe(self):
        """The description that `ready` carries; every switch is in it, since each may change bits."""
        module, index = getattr(torch, self.backend, None), self.device.index or 0
        hardware, memory = platform.processor() or platform.machine(), None
        if self.backend in ("cuda", "npu", "xpu"):
            hardware = module.get_device_name(index)
            memory = module.get_device_properties(index).total_memory
        elif self.backend == "cpu":
            try:
                with open("/proc/cpuinfo") as file:
                    hardware = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
            except (OSError, StopIteration):
                pass
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        switch = {True: "on", False: "off"}
        level = [f"attention={self.attention}", f"matmul={self.matmul}", f"tf32={switch[self.tf32]}"]
        level += [f"hf32={switch[self.hf32]}", f"reduced={switch[self.reduced]}", f"mode={self.mode}"]
        level += [f"deterministic={switch[self.deterministic]}", f"stream={self.stream}"]
        versions = [["python", platform.python_version()], ["torch", torch.__version__], *versions_of(self.backend, index)]
        return {
            "name": self.name,
            "hardware": hardware,
            "level": " ".join(level),
            "versions": versions,
            "dtypes": ["f32", "bf16", "i32", "u32"],
            "memory_bytes": memory,
            "units": torch.get_num_threads() if self.backend == "cpu" else 1,
            "deterministic": self.deterministic,
            "emulated": False,
            "health": [],
        }

    @contextlib.contextmanager
    def on_stream(self):
        """Work inside goes to the stream that the name asks for: the side one, behind all that was queued, while the default
        one multiplies for nobody; what is queued later waits for it."""
        if self.side is None:
            yield
            return
        module = getattr(torch, self.backend)
        default = module.current_stream(self.device)
        self.side.wait_stream(default)
        for _ in range(4):
            torch.mm(self.noise, self.noise)
        try:
            with module.stream(self.side):
                yield
        finally:
            default.wait_stream(self.side)

    def synchronize(self):
        module = getattr(torch, self.backend, None)
        if self.backend != "cpu" and hasattr(module, "synchronize"):
            module.synchronize()


def versions_of(backend, index):
    """Names and versions of what stands between torch and the chip, as far as anybody tells: a change of one is an expiry."""

    def asked(ask):
        try:
            version = ask()
        except Exception:  # whatever a library throws that is not there, or too old to tell
            return None
        if isinstance(version, bytes):
            version = version.decode(errors="replace")
        return str(version).strip().splitlines()[0][:100] if version not in (None, "", 0) else None

    def first_line(path):
        with open(path) as file:
            return file.readline()

    def smi(*query):
        import subprocess

        word = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        return word.strip().splitlines()[0]

    def cann():
        home = os.environ.get("ASCEND_HOME_PATH") or os.environ.get("ASCEND_TOOLKIT_HOME") or "/usr/local/Ascend/ascend-toolkit/latest"
        for name in ("version.cfg", f"{platform.machine()}-linux/ascend_toolkit_install.info", "ascend_toolkit_install.info"):
            try:
                with open(os.path.join(home, name)) as file:
                    found = re.search(r"(?:version|runtime_running_version)\s*=\s*\[?([^\s\]]+)", file.read())
            except OSError:
                continue
            if found:
                return found.group(1)
        return None

    def drivers(path):
        with open(path) as file:
            return re.search(r"(?im)^(?:package_)?version\s*=\s*(\S+)", file.read()).group(1)

    def npu():
        import torch_npu

        return torch_npu.__version__

    properties = lambda: getattr(torch, backend).get_device_properties(index)  # noqa: E731
    asks = []
    if backend == "cuda" and getattr(torch.version, "hip", None):
        asks = [
            ("hip", lambda: torch.version.hip),
            ("driver", lambda: first_line("/sys/module/amdgpu/version")),
            ("architecture", lambda: properties().gcnArchName),
        ]
    elif backend == "cuda":
        # The process may see some of the chips only; drivers are the same for all of them, and the image's number is a chip's.
        chip = lambda: "GPU-" + str(properties().uuid)  # noqa: E731
        query = lambda what: smi("nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader", "-i", chip())  # noqa: E731
        asks = [
            ("cuda", lambda: torch.version.cuda),
            ("cudnn", torch.backends.cudnn.version),
            ("driver", lambda: query("driver_version")),
            ("firmware", lambda: query("vbios_version")),
            ("nccl", lambda: ".".join(map(str, torch.cuda.nccl.version()))),
        ]
    elif backend == "npu":
        asks = [
            ("torch_npu", npu),
            ("cann", lambda: getattr(torch.version, "cann", None) or cann()),
            ("driver", lambda: drivers("/usr/local/Ascend/driver/version.info")),
            ("firmware", lambda: drivers("/usr/local/Ascend/firmware/version.info")),
        ]
    elif backend == "xpu":
        asks = [
            ("xpu", lambda: torch.version.xpu),
            ("driver", lambda: properties().driver_version),
            ("platform", lambda: properties().platform_name),
        ]
    elif backend == "mps":
        asks = [("macos", lambda: platform.mac_ver()[0])]
    elif backend == "cpu":
        asks = [
            ("mkl", lambda: re.search(r"Math Kernel Library Version (\S+)", torch.__config__.show()).group(1)),
            ("onednn", lambda: re.search(r"MKL-DNN v(\S+)", torch.__config__.show()).group(1)),
            ("capability", torch.backends.cpu.get_cpu_capability),
            ("microcode", lambda: re.search(r"microcode\s*: (\S+)", open("/proc/cpuinfo").read()).group(1)),
        ]
    told = ((name, asked(ask)) for name, ask in asks)
    return [[name, version] for name, version in told if version is not None]


# -------------------------------------------------------------------------------------------------------------- programs


class Instruction:
    """One operator with its attributes as fields, bound to tensors by `Program.bind`."""

    def __init__(self, chip, record):
        self.__dict__.update(DEFAULTS)
        self.__dict__.update(record)  # the attributes, and: operator, operands, outputs, part, check
        self.chip, self.check, self.first = chip, record.get("check"), True

    def bind(self, shape):
        """Sizes of a shape; a dimension is a factor, or a factor times a symbol."""
        return [dim["factor"] * (1 if dim.get("symbol") is None else self.symbols[dim["symbol"]]) for dim in shape]

    def zeros(self, sizes):
        return torch.zeros(tuple(sizes), device=self.chip.device)


class Program:
    """A prepared program: its instructions by range, where its values lie, and what was bound before."""

    def __init__(self, chip, program, places):
        self.chip, self.values, self.places = chip, program["values"], places
        self.ranges = {name: program.get(name, []) for name in ("accumulate", "update")}
        self.bound = {}
        for record in self.ranges["accumulate"] + self.ranges["update"]:
            self.refuse(record)

    def refuse(self, record):
        """Refuses what this chip lacks, before anything runs."""
        name = record["operator"]
        if name not in OPERATORS:
            raise unsupported(name, f"this worker does not know the operator `{name}`: use one installation for both")
        for operand in record["operands"]:
            if operand.get("view") is None and self.places[operand["value"]] is None:
                raise Nonsense(f"an operand of `{name}` has no place")
        if self.chip.matmul == "native" and name in ("matmul", "grouped_matmul", "grouped_outer"):
            try:
                one = torch.ones(16, 16, device=self.chip.device, dtype=torch.bfloat16)
                torch.mm(one, one, out_dtype=torch.float32)
            except Exception as error:
                reason = f"matmul=native needs torch.mm with out_dtype, which this torch lacks here: {error}"
                raise unsupported(name, reason, "bf16") from None
        if self.chip.attention != "plain" and name in ("attention", "attention_gradient"):
            sizes = [self.values[record["operands"][at]["value"]] for at in (0, 2)]
            views = [record["operands"][at].get("view") for at in (0, 2)]
            shapes = [(view or value)["shape"] for view, value in zip(views, sizes)]
            dtype = self.chip.names[sizes[0]["dtype"]]
            heads, d, dv = shapes[0][1]["factor"], shapes[0][2]["factor"], shapes[1][2]["factor"]
            trial = Instruction(self.chip, record)
            q, v = (torch.ones(1, heads, 4, width, device=self.chip.device, dtype=dtype) for width in (d, dv))
            try:
                with torch.enable_grad():
                    leaf = q.clone().requires_grad_()
                    mask = torch.ones(1, 4, 4, dtype=torch.bool, device=self.chip.device).tril()
                    attend(trial, leaf, q, v, mask).sum().backward()
            except Fault:
                raise
            except Exception as error:
                reason = f"attention={self.chip.attention} does not take heads of {d} and {dv}: {str(error)[:300]}"
                raise unsupported(name, reason, sizes[0]["dtype"], [heads, d, dv]) from None

    def bind(self, name, buffers, symbols):
        """The instructions of a range with tensors for operands and outputs: views of the buffers, made once."""
        key = (name, tuple(id(buffer) for buffer in buffers), tuple(symbols))
        if key not in self.bound:
            if len(self.bound) > 32:
                self.bound.clear()
            self.bound[key] = [self.instruction(record, buffers, symbols) for record in self.ranges[name]]
        return self.bound[key]

    def instruction(self, record, buffers, symbols):
        op = Instruction(self.chip, record)
        op.symbols = symbols
        tensor = lambda value, view=None: self.tensor(op, value, view, buffers)  # noqa: E731
        op.tensors = [tensor(operand["value"], operand.get("view")) for operand in record["operands"]]
        op.outputs = [tensor(value) for value in record["outputs"]]
        op.sizes = [list(output.shape) for output in op.outputs]
        op.compute = OPERATORS[record["operator"]]
        if self.chip.mode == "compile" and record["operator"] not in ("digest", "adamw_digest", "random_bits", "append"):
            op.compute = compiled(op.compute)
        return op

    def tensor(self, op, value, view, buffers):
        declared, place = self.values[value], self.places[value]
        if place is None:
            raise Nonsense(f"`{declared['name']}` has no place")
        region, offset = place
        typed = buffers[region].typed(self.chip.names[declared["dtype"]])
        start = typed.storage_offset() + offset // typed.element_size()
        if view is not None:
            return typed.as_strided(op.bind(view["shape"]), view["strides"], start + view["offset"])
        sizes, strides, step = op.bind(declared["shape"]), [], 1
        for size in reversed(sizes):
            strides.insert(0, step)
            step *= size
        return typed.as_strided(sizes, strides, start)


COMPILED = {}


def compiled(function):
    """torch.compile of one operator; autograd.grad breaks the graph, so that gradients compile around it."""
    if function not in COMPILED:
        COMPILED[function] = torch.compile(function, dynamic=False)
    return COMPILED[function]


class Buffer:
    """Bytes that programs compute on."""

    def __init__(self, data):
        self.data, self.views = data, {}

    def typed(self, dtype):
        if dtype not in self.views:
            self.views[dtype] = self.data[: self.data.numel() // 4 * 4].view(dtype)
        return self.views[dtype]

    def part(self, offset, count):
        if offset < 0 or count < 0 or offset + count > self.data.numel():
            raise Nonsense(f"{count} bytes from {offset} leave a buffer of {self.data.numel()}")
        return self.data[offset : offset + count]


# ------------------------------------------------------------------------------------------------------------ the worker


class Region:
    """Shared memory that the supervisor gave: `<descriptor>:<bytes>`."""

    def __init__(self, handle):
        descriptor, count = (int(part) for part in handle.split(":"))
        folder = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
        file = os.open(f"{folder}/{descriptor}", os.O_RDWR)
        self.map = mmap.mmap(file, count)
        os.close(file)
        self.count = count

    def part(self, offset, count):
        if offset < 0 or count < 0 or offset + count > self.count:
            raise Nonsense(f"{count} bytes from {offset} leave a region of {self.count}")
        if count == 0:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(self.map, dtype=torch.uint8, count=count, offset=offset)


class Worker:
    """Carries out one request after the other; what has no answer leaves its fault for the next that has one."""

    UNANSWERED = ("write", "run", "copy_out")

    def __init__(self, chip, hello):
        self.chip = chip
        self.regions = [Region(handle) for handle in hello["regions"]]
        region, offset = hello["progress"]
        self.progress = memoryview(self.regions[region].map)[offset : offset + 24].cast("Q")
        self.buffers, self.prepared, self.pending = {}, {}, None
        self.next_buffer = 0

    def serve(self, request, payload, out):
        call, done, fault = request["call"], ("done", {}, b""), self.pending
        if fault is None:
            try:
                done = getattr(self, "on_" + call)(request, payload) or done
            except (Nonsense, EOFError):
                raise
            except Exception as error:  # torch's: told as a fault
                fault = fault_of(error).body
        if call in self.UNANSWERED:
            self.pending = fault
            return
        self.pending = None
        outcome, fields, data = ("fault", {"fault": fault}, b"") if fault else done
        if fault:
            fault.setdefault("device", self.chip.name)
        head = {"id": request["id"], "generation": request["generation"], "outcome": outcome, **fields}
        write_frame(out, head, data)

    def buffer(self, number):
        if number not in self.buffers:
            raise Nonsense(f"no buffer {number}")
        return self.buffers[number]

    def keep(self, data):
        number, self.next_buffer = self.next_buffer, self.next_buffer + 1
        self.buffers[number] = Buffer(data)
        return "buffer", {"buffer": number}, b""

    def on_allocate(self, request, payload):
        return self.keep(torch.zeros(max(request["bytes"], 4), dtype=torch.uint8, device=self.chip.device))

    def on_adopt(self, request, payload):
        if self.chip.backend != "cpu":
            raise unsupported("adopt", "this chip has memory of its own")
        region = self.regions[request["region"]]
        return self.keep(region.part(request["offset"], request["bytes"]))

    def on_release(self, request, payload):
        self.buffer(request["buffer"])
        del self.buffers[request["buffer"]]
        for program in self.prepared.values():
            program.bound.clear()

    def on_write(self, request, payload):
        to = self.buffer(request["buffer"]).part(request["offset"], len(payload))
        if payload:
            to.copy_(torch.frombuffer(payload, dtype=torch.uint8))

    def on_read(self, request, payload):
        data = bytearray(request["bytes"])
        part = self.buffer(request["buffer"]).part(request["offset"], len(data))
        if data:
            torch.frombuffer(data, dtype=torch.uint8).copy_(part)
        return "done", {}, data

    def on_copy_out(self, request, payload):
        part = self.buffer(request["buffer"]).part(request["offset"], request["bytes"])
        self.regions[request["region"]].part(request["region_offset"], request["bytes"]).copy_(part)

    def on_prepare(self, request, payload):
        number = len(self.prepared)
        self.prepared[number] = Program(self.chip, request["program"], request["places"])
        return "prepared", {"prepared": number}, b""

    def on_run(self, request, payload):
        if request["prepared"] not in self.prepared:
            raise Nonsense(f"no program {request['prepared']}")
        program, checks = self.prepared[request["prepared"]], request["checks"]
        buffers = [self.buffer(number) for number in request["buffers"]]
        bound = program.bind(request["range"], buffers, request["symbols"])
        self.progress[1], self.progress[2] = request["id"], 0
        with self.chip.on_stream():
            self.run_span(bound, checks, request)

    def run_span(self, bound, checks, request):
        for index in range(request["from"], request["to"]):
            op = bound[index]
            word = None if op.check is None else op.check // 64
            if word is not None and not (word < len(checks) and checks[word] >> (op.check % 64) & 1):
                continue
            self.progress[2] = index + 1
            op.first = request["first"]
            try:
                results = op.compute(op, *op.tensors)
                for output, result in zip(op.outputs, results or ()):
                    output.copy_(result)
            except Exception as error:
                fault = fault_of(error)
                place = {"range": request["range"], "index": index, "operator": op.operator}
                fault.body["place"] = {**place, "part": op.__dict__.get("part", "")}
                raise fault from None

    def on_wait(self, request, payload):
        self.chip.synchronize()


def requests_behind():
    """Requests, read by a thread of its own that ends the process when the supervisor is gone."""
    waiting = queue.Queue()

    def read_all():
        try:
            while True:
                frame = read_frame(sys.stdin.buffer)
                if frame is None:
                    os._exit(0)
                waiting.put(frame)
        except Exception as error:
            waiting.put(error)

    threading.Thread(target=read_all, daemon=True).start()
    return waiting


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor says when to end
    # Frames go to a copy of standard output; what libraries print goes to standard error.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    waiting = requests_behind()

    def next_request():
        frame = waiting.get()
        if isinstance(frame, Exception):
            raise frame
        return frame

    hello, _ = next_request()
    answer = {"id": hello["id"], "generation": hello["generation"]}
    if hello.get("call") != "hello":
        raise Nonsense("the first request must be `hello`")
    try:
        if hello["version"] != PROTOCOL:
            reason = f"the supervisor speaks protocol version {hello['version']}, this worker {PROTOCOL}"
            raise Fault("lost", reason=reason + "; use one installation for both")
        if hello.get("faults"):
            raise unsupported("faults", "this worker injects nothing: a rehearsal's faults are `toprope worker`'s")
        chip = Chip(hello["device"])
        chip.open(hello.get("threads"))
        worker, description = Worker(chip, hello), chip.describe()
    except Fault as fault:
        write_frame(out, {**answer, "outcome": "fault", "fault": {**fault.body, "device": hello["device"]}})
        return
    write_frame(out, {**answer, "outcome": "ready", "version": PROTOCOL, "description": description})
    while True:
        request, payload = next_request()
        if request["generation"] != hello["generation"]:
            raise Nonsense(f"generation {request['generation']} was addressed, this worker is {hello['generation']}")
        worker.serve(request, payload, out)


try:
    main()
except (Nonsense, EOFError) as error:
    print(f"error: the supervisor's message makes no sense: {error}", file=sys.stderr)
    os._exit(1)
