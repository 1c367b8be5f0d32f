

class Chip:
    """What the operator asks of the device."""

    attention, matmul, mode = "plain", "f32", "eager"

    def __init__(self, device):
        self.device, self.backend = device, torch.device(device).type
        self.wide = torch.float32 if self.backend == "mps" else torch.float64


class Instruction:
    """The operator's attributes as fields."""

    def __init__(self, chip, record, first, sizes):
        self.__dict__.update({"row_sums": False, "sums": False, "digests": False, "inverse": False, "form": "matmul"})
        self.__dict__.update(record)
        self.chip, self.first, self.sizes, self.symbols = chip, first, sizes, []

    def bind(self, shape):
        return [dim["factor"] for dim in shape]

    def zeros(self, sizes):
        return torch.zeros(tuple(sizes), device=self.chip.device)


DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "i32": torch.int32, "u32": torch.int32}
MASK = (1 << 64) - 1


def drawn(seed, operand, index, positive):
    """SplitMix64; the upper 24 bits as a multiple of 2^-22 in [-2, 2), exact in f32."""
    z = (seed + ((operand << 40) + index + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    z ^= z >> 31
    x = ((z >> 40) - 8388608) / 4194304
    return max(abs(x), 0.0625) if positive else x


def tensor_of(operand, device):
    count = math.prod(operand["sizes"])
    if "draw" in operand:
        draw = operand["draw"]
        data = [drawn(draw["seed"], draw["operand"], index, draw["positive"]) for index in range(count)]
    else:
        data = [float(x) for x in operand["data"]]
    if operand["dtype"] == "u32":
        data = [x - 4294967296 if x >= 2147483648 else x for x in data]
    dtype = DTYPES[operand["dtype"]]
    wide = torch.tensor(data, dtype=torch.float64).reshape(operand["sizes"])
    return wide.to(dtype).to(device)


def is_right(got, want, bound):
    """Whether an element is right: anything that is not shown to be right is wrong, NaN among it."""
    if math.isnan(want):
        return math.isnan(got)
    if got == want:
        return True
    return bound is not None and math.isfinite(want) and math.isfinite(got) and abs(got - want) <= bound


def judge_outputs(case, outputs):
    """Prints a line for each output; gives the number of wrong elements."""
    all_wrong = 0
    for declared, output in zip(case["outputs"], outputs):
        dtype = DTYPES[declared["dtype"]]
        numbers = output.to(dtype).reshape(-1).cpu().double().tolist()
        if declared["dtype"] == "u32":
            numbers = [x + 4294967296 if x < 0 else x for x in numbers]
        want = [float(x) for x in declared["want"]]
        if "bound" in declared:
            bounds = [float(x) for x in declared["bound"]]
        else:
            bounds = [None] * len(want)
            if dtype.is_floating_point:
                want = torch.tensor(want, dtype=torch.float64).to(dtype).double().tolist()
        wrong = [i for i, (g, w, b) in enumerate(zip(numbers, want, bounds)) if not is_right(g, w, b)]
        all_wrong += len(wrong)
        line = f"{declared['name']}: {len(wrong)} of {len(want)} elements are wrong"
        if wrong:
            worst = max(wrong, key=lambda i: abs(numbers[i] - want[i]) if math.isfinite(numbers[i]) else math.inf)
            line += f"; element {worst}: got {numbers[worst]!r}, exact {want[worst]!r}, error {abs(numbers[worst] - want[worst])!r}, bound {bounds[worst]!r}"
        print(line)
    return all_wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeat", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.device.startswith("npu"):
        import torch_npu  # noqa: F401
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "case.json")) as file:
        case = json.load(file)
    sizes = [output["sizes"] for output in case["outputs"]]
    chip = Chip(arguments.device)
    print(f"torch {torch.__version__} on {arguments.device}: {case['operator']['operator']}")
    failed = 0
    for _ in range(arguments.repeat):
        op = Instruction(chip, case["operator"], case["first"], sizes)
        operands = [tensor_of(operand, arguments.device) for operand in case["operands"]]
        # Operators that write in place change their first operand.
        op.outputs = [operands[0]]
        with torch.no_grad():
            results = OPERATOR(op, *operands) or op.outputs
        failed += 1 if judge_outputs(case, results) else 0
    print(f"{failed} of {arguments.repeat} run(s) are wrong")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception as error:  # noqa: BLE001
        print(f"it could not be run: {error}", file=sys.stderr)
        sys.exit(2)
