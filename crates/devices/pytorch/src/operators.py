"""The contract's operators in plain torch, in its order; the other half of this worker is worker.py beside it.

docs/operators.md says what each means. Where one is the gradient of another, it is `torch.autograd.grad` of that forward
operator and not Toprope's formula, so that the two check each other. The binary joins the two files into one script, this
one first: `torch` and `unsupported` are worker.py's.

Each takes the instruction (`op`: its attributes, the chip, the bound sizes) and its operands as tensors, and gives its
outputs; the caller rounds each to the output's dtype (to nearest even). Operands may be strided. Those that write in
place give None.
"""


def floats(*tensors):
    return [x.float() for x in tensors]


def gradient(forward, inputs, upstream):
    """d(forward)/d(inputs) along `upstream`, by torch's own rules. Inputs are f32; outputs may be a list."""
    with torch.enable_grad():
        leaves = [x.detach().float().requires_grad_() for x in inputs]
        return torch.autograd.grad(forward(*leaves), leaves, upstream)


def within(indices, bound):
    """Indices as int64 clamped to 0..bound, and which of them needed no clamping."""
    wide = indices.long()
    return wide.clamp(0, max(bound - 1, 0)), (wide >= 0) & (wide < bound)


def cast(op, x):
    return [x]


def add(op, a, b):
    return [a.float() + b.float()]


def multiply(op, a, b):
    return [a.float() * b.float()]


def scale(op, x):
    return [x.float() * op.factor]


def function(kind):
    functional = torch.nn.functional
    return {
        "silu": functional.silu,
        "gelu": lambda x: functional.gelu(x, approximate="tanh"),
        "relu": lambda x: torch.relu(x) + 0.0,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }[kind]


def activation(op, x):
    return [function(op.kind)(x.float())]


def activation_gradient(op, x, dy):
    """torch's, but for relu: of a NaN torch hands dy on as if nothing were wrong, and where it is 0 no dy comes through, whatever
    it is; a product with 0 keeps what is no number."""
    dy = dy.float()
    dx = gradient(function(op.kind), [x], dy)[0]
    if op.kind == "relu":
        dx = torch.where(x > 0, dx, dy * 0.0)
    return [torch.where(x.isnan(), torch.nan, dx)]


def gated(x):
    gate, up = x.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


def swiglu(op, x):
    return [gated(x.float())]


def swiglu_gradient(op, x, dy):
    return gradient(gated, [x], dy.float())


def assemble(op, *parts):
    """The gradient of reading windows out of y is adding into them."""
    windows = [(op.bind(view["shape"]), view["strides"], view["offset"]) for view in op.views]
    read = lambda y: [y.as_strided(*window) for window in windows]  # noqa: E731
    return gradient(read, [op.zeros(op.sizes[0])], floats(*parts))


def gather(op, table, indices):
    rows, there = within(indices, table.shape[0])
    return [torch.where(there[:, None], table.index_select(0, rows), 0)]


def scatter_add(op, x, indices):
    """The gradient of gather."""
    table = op.zeros(op.sizes[0])
    rows, there = within(indices, table.shape[0])
    upstream = x.float() if bool(there.all()) else x.float()[there]
    return gradient(lambda table: table.index_select(0, rows[there]), [table], upstream)


def column_sum(op, x):
    return [x.float().sum(0)]


def dot(op, a, b):
    return [(a * b).sum().reshape(1)]


def product(op, a, b):
    """a·b in f32. bf16 operands are widened, which is exact; `matmul=native` asks the chip's own bf16 product."""
    if op.chip.matmul == "native" and a.dtype == b.dtype == torch.bfloat16:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def matmul(op, a, b, bias=None):
    y = product(op, a, b)
    sums = [y.sum(1)] if op.row_sums else []
    return [y if bias is None else y + bias.float()] + sums


def rows_of(offsets, rows):
    """Each expert's rows, clipped to those that are there."""
    clipped = [min(max(offset, 0), rows) for offset in offsets.tolist()]
    return [(start, max(start, end)) for start, end in zip(clipped, clipped[1:])]


def grouped_matmul(op, a, b, offsets):
    y = op.zeros(op.sizes[0])
    for expert, (start, end) in enumerate(rows_of(offsets, a.shape[0])):
        if start < end:
            y[start:end] = product(op, a[start:end], b[expert])
    return [y] + ([y.sum(1)] if op.row_sums else [])


def grouped_outer(op, a, b, offsets):
    y = op.zeros(op.sizes[0])
    for expert, (start, end) in enumerate(rows_of(offsets, a.shape[0])):
        if start < end:
            y[expert] = product(op, a[start:end].t(), b[start:end])
    return [y] + ([y.sum(2)] if op.row_sums else [])


def blocks_of(segment_start, rows, split):
    """Runs of rows that see nothing of each other, as (first row of each run, rows of a run), runs of one length
    together: documents in a pack never meet, and scores between them are not computed."""
    if not split:
        return [([0], rows)]
    starts, least = [], rows
    segments = segment_start.tolist()
    for row in range(rows - 1, -1, -1):
        least = min(least, segments[row])
        if least >= row:
            starts.append(row)
    starts.reverse()
    if not starts or starts[0] != 0:
        starts.insert(0, 0)
    lengths = [end - start for start, end in zip(starts, starts[1:] + [rows])]
    if len(set(lengths)) == 1:
        return [(starts, lengths[0])]
    return [([start], length) for start, length in zip(starts, lengths)]


def visible(starts, length, keys, segment_start, offset, limit):
    """[runs, length, keys of a run]: which row sees which key, both counted from the run's first row."""
    device = segment_start.device
    first = torch.tensor(starts, device=device)[:, None, None]
    row = torch.arange(length, device=device)[None, :, None] + first
    key = torch.arange(keys, device=device)[None, None, :] + first
    begin = segment_start.long().clamp_min(0)[row]
    end = torch.clamp(row + offset + 1, max=limit)
    return (key >= begin) & (key < end)


def attend(op, q, k, v, mask):
    """[runs, heads, rows, Dv] from q, k, v of [runs, heads, rows, D] and the mask; a row that sees nothing gives 0."""
    seen, variant = mask.any(-1)[:, None, :, None], op.chip.attention
    mask = mask[:, None]
    if variant == "plain":
        scores = (q @ k.transpose(-1, -2)) * op.scale
        scores = torch.where(seen, scores.masked_fill(~mask, -torch.inf), 0.0)
        return torch.where(seen, torch.softmax(scores, -1) @ v, 0.0)
    if variant == "npu-fusion":
        import torch_npu

        out = torch_npu.npu_fusion_attention(
            q, k, v, q.shape[1], "BNSD", atten_mask=~mask.expand(-1, 1, -1, -1), scale=op.scale
        )[0]
        return torch.where(seen, out, 0.0)
    rows, keys = mask.shape[-2:]
    causal = rows == keys and bool((mask == torch.ones(rows, keys, dtype=torch.bool, device=mask.device).tril()).all())
    # The kernels with no mask of their own take a plain triangle only.
    which = {"is_causal": True} if causal else {"attn_mask": torch.where(seen, mask, True)}
    with sdpa_only(variant):
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=op.scale, **which)
    return torch.where(seen, out, torch.zeros((), dtype=out.dtype, device=out.device))


def sdpa_only(variant):
    """A context in which torch may use this kernel of scaled_dot_product_attention and no other."""
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError:  # torch 2.1 and 2.2
        flags = {f"enable_{kernel}": variant == f"sdpa-{name}" for kernel, name in
                 (("flash", "flash"), ("math", "math"), ("mem_efficient", "efficient"))}
        return torch.backends.cuda.sdp_kernel(**flags)
    kernel = {"sdpa-math": "MATH", "sdpa-flash": "FLASH_ATTENTION", "sdpa-efficient": "EFFICIENT_ATTENTION",
              "cudnn": "CUDNN_ATTENTION"}[variant]
    if not hasattr(SDPBackend, kernel):
        raise unsupported("attention", f"torch {torch.__version__} has no kernel {kernel}")
    return sdpa_kernel([getattr(SDPBackend, kernel)])


class Pack:
    """Packed q, k, v as batches of runs, and back."""

    def __init__(self, op, q, k, v, segment_start, query_offset=None, cache_length=None):
        self.rows, self.keys = q.shape[0], k.shape[0]
        offset = 0 if query_offset is None else int(query_offset)
        limit = self.keys if cache_length is None else min(int(cache_length), self.keys)
        split = query_offset is None and cache_length is None and self.rows == self.keys
        self.group = q.shape[1] // k.shape[1]
        self.blocks = []
        for starts, length in blocks_of(segment_start, self.rows, split):
            keys = length if split else self.keys
            mask = visible(starts, length, keys, segment_start, offset, limit)
            self.blocks.append((starts, length, keys, mask))

    def cut(self, x, starts, length):
        """[runs, heads, length, D] of [rows, heads, D]."""
        return x[starts[0] : starts[0] + length * len(starts)].unflatten(0, (len(starts), length)).transpose(1, 2)

    def out(self, op, q, k, v):
        """Attention's output, [T, Hq, Dv]; differentiable. Plain torch computes in f32, kernels in the operands' dtype."""
        parts = []
        for starts, length, keys, mask in self.blocks:
            query = self.cut(q, starts, length)
            key, value = [self.cut(x, starts, keys).repeat_interleave(self.group, 1) for x in (k, v)]
            parts.append(attend(op, query, key, value, mask).transpose(1, 2).flatten(0, 1))
        return torch.cat(parts)

    def log_sums(self, op, q, k):
        """The log-sum-exp of each row's scores, [T, Hq], in f32: torch's kernels don't give theirs to the public."""
        parts = []
        for starts, length, keys, mask in self.blocks:
            query = self.cut(q, starts, length)
            key = self.cut(k, starts, keys).repeat_interleave(self.group, 1)
            scores = ((query @ key.transpose(-1, -2)) * op.scale).masked_fill(~mask[:, None], -torch.inf)
            parts.append(torch.logsumexp(scores, -1).transpose(1, 2).flatten(0, 1))
        return torch.cat(parts)


def in_kernel_dtype(op, *tensors):
    return floats(*tensors) if op.chip.attention == "plain" else list(tensors)


def attention(op, q, k, v, segment_start, query_offset=None, cache_length=None):
    pack = Pack(op, q, k, v, segment_start, query_offset, cache_length)
    return [pack.out(op, *in_kernel_dtype(op, q, k, v)), pack.log_sums(op, *floats(q, k))]


def attention_gradient(op, q, k, v, out, lse, dout, segment_start):
    """torch's gradient of the forward operator, which it runs again: `out` and `lse` are its results and not needed, but
    where the sums are asked for: a row whose `lse` is not its own has probabilities that many times too large."""
    pack = Pack(op, q, k, v, segment_start)
    upstream, sums = dout, ()
    if op.sums:
        seen = torch.cat([mask.any(-1).flatten() for _, _, _, mask in pack.blocks])
        of_row = torch.where(seen[:, None], (pack.log_sums(op, *floats(q, k)) - lse).exp(), 0.0)
        upstream, sums = dout.float() * torch.where(seen[:, None], of_row, 1.0)[..., None], (of_row,)
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in in_kernel_dtype(op, q, k, v)]
        result = pack.out(op, *leaves)
        return torch.autograd.grad(result, leaves, upstream.to(result.dtype)) + sums


def norm(x, weight, rstd):
    return x * rstd * weight


def rms_norm(op, x, weight):
    x, weight = floats(x, weight)
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + op.epsilon)
    return [norm(x, weight, rstd), rstd.squeeze(-1)]


def rms_norm_gradient(op, x, weight, rstd, dy):
    """torch's gradient of rms_norm. The operator isn't told epsilon: it is what rstd implies, 1/rstd² - mean(x²)."""
    rstd = rstd.float()[..., None]

    def forward(x, weight):
        mean = x.square().mean(-1, keepdim=True)
        return norm(x, weight, torch.rsqrt((mean - mean.detach()) + rstd.pow(-2)))

    return gradient(forward, [x, weight], dy.float())


def rotate(op, x, positions, table):
    rows, there = within(positions, table.shape[0])
    cosine, sine = (table[rows, part][:, None, :] for part in (0, 1))
    kept, turned = x[..., : op.start], x[..., op.start :]
    pairs = turned.shape[-1] // 2
    if op.interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned[..., :pairs], turned[..., pairs:]
    new = (first * cosine - second * sine, first * sine + second * cosine)
    turned = torch.stack(new, -1).flatten(-2) if op.interleaved else torch.cat(new, -1)
    return torch.cat([kept, torch.where(there[:, None, None], turned, 0.0)], -1)


def rope(op, x, positions, table):
    """The inverse is torch's gradient of the rotation."""
    if op.inverse:
        return gradient(lambda x: rotate(op, x, positions, table), [torch.zeros_like(x)], x.float())
    return [rotate(op, x.float(), positions, table)]


def head_chunks(x, weight):
    """Rows of x whose logits take 64 MiB at most."""
    step = max(1, (1 << 24) // max(weight.shape[0], 1))
    return [(start, min(start + step, x.shape[0])) for start in range(0, x.shape[0], step)]


def linear_cross_entropy(op, x, weight, targets):
    place, there = within(targets, weight.shape[0])
    losses, sums = [], []
    for start, end in head_chunks(x, weight):
        z = product(op, x[start:end], weight.t())
        lse = torch.logsumexp(z, -1)
        target = z.gather(1, place[start:end, None]).squeeze(1)
        losses.append(torch.where(there[start:end], lse - target, 0.0))
        sums.append(lse)
    return [torch.cat(losses), torch.cat(sums)]


def linear_cross_entropy_gradient(op, x, weight, targets, dloss):
    """torch's gradient of its own cross_entropy through the product; the sums for `loss_check` beside it."""
    place, there = within(targets, weight.shape[0])
    labels = torch.where(there, place, -100)
    losses, dxs, rows = [], [], []
    words, columns = weight.shape
    dweight = op.zeros(weight.shape)
    wide = weight.float()
    if op.sums:
        word_sum, word_norm = wide.sum(1), wide.norm(dim=1)
        want = op.zeros((2, words))
    for start, end in head_chunks(x, weight):
        with torch.enable_grad():
            leaf, head = x[start:end].detach().float().requires_grad_(), wide.detach().requires_grad_()
            z = leaf @ head.t()
            loss = torch.nn.functional.cross_entropy(z, labels[start:end], ignore_index=-100, reduction="none")
            g, dx, dhead = torch.autograd.grad(loss, [z, leaf, head], dloss[start:end])
        z, loss, leaf = z.detach(), loss.detach(), leaf.detach()
        losses.append(loss)
        dxs.append(dx)
        dweight += dhead
        if op.sums:
            along = (g * word_sum).sum(1)
            bound = (words + columns) ** 0.5 * (g.abs() @ word_norm)
            target = z.gather(1, place[start:end, None]).squeeze(1)
            other = torch.logsumexp(z, -1) - target
            size = 1.0 + z.amax(-1).abs() + target.abs() + loss.abs()
            of_row = [dx.sum(1), along, bound, other, size]
            none = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0], device=z.device)
            rows.append(torch.where(there[start:end, None], torch.stack(of_row, 1), none))
            want += torch.stack([g.t() @ leaf.sum(1), g.abs().t() @ leaf.norm(dim=1)])
    results = [torch.cat(losses), torch.cat(dxs), dweight]
    if op.sums:
        bound = (x.shape[0] + columns) ** 0.5 * want[1]
        results += [torch.cat(rows), torch.stack([dweight.sum(1), want[0], bound], 1)]
    return results


def largest(values, eligible, count):
    """Places of the `count` largest eligible values of each row, descending, ties to the lower index, NaN last."""
    bad = values.isnan()
    order = torch.sort(torch.where(bad, -torch.inf, values), dim=-1, descending=True, stable=True).indices
    rank = torch.where(eligible, bad.int(), 2).gather(-1, order)
    return order.gather(-1, torch.sort(rank, dim=-1, stable=True).indices)[..., :count]


def mark(indices, count):
    """[rows, count]: which of 0..count stand in each row of `indices`, and how often."""
    return (indices[..., None] == torch.arange(count, device=indices.device)).sum(-2)


def weigh(op, scores, indices, there):
    """The chosen experts' weights from all scores."""
    chosen = torch.where(there, scores.gather(1, indices), 0.0)
    return op.scale * chosen / (chosen.sum(1, keepdim=True) + 1e-20) if op.normalize else op.scale * chosen


def router(op, logits, bias):
    scores = torch.sigmoid(logits) if op.scoring == "sigmoid" else torch.softmax(logits, -1)
    biased = scores + bias
    rows, experts = biased.shape
    grouped = biased.reshape(rows, op.groups, experts // op.groups)
    best = largest(grouped, torch.ones_like(grouped, dtype=torch.bool), min(2, grouped.shape[-1]))
    group_scores = grouped.gather(-1, best).sum(-1)
    groups = largest(group_scores, torch.ones_like(group_scores, dtype=torch.bool), op.top_groups)
    eligible = (mark(groups, op.groups) > 0).repeat_interleave(experts // op.groups, 1)
    indices = largest(biased, eligible, op.top_k)
    weights = weigh(op, scores, indices, torch.ones_like(indices, dtype=torch.bool))
    return [scores, indices, weights, mark(indices.reshape(1, -1), experts)[0]]


def router_gradient(op, scores, indices, weights, dweights, dscores=None):
    """torch's gradients: of the weights with respect to the scores, then of sigmoid or softmax from their results."""
    place, there = within(indices, scores.shape[1])
    g = gradient(lambda scores: weigh(op, scores, place, there), [scores], dweights)[0]
    g = g if dscores is None else g + dscores
    if op.scoring == "sigmoid":
        return [torch.ops.aten.sigmoid_backward(g, scores.contiguous())]
    return [torch.ops.aten._softmax_backward_data(g, scores.contiguous(), -1, torch.float32)]


def balance(op, scores, indices):
    experts, choices = scores.shape[1], indices.shape[1]
    load = mark(indices.reshape(-1, op.sequence * choices), experts) * (experts / (choices * op.sequence))
    share = (scores / scores.sum(-1, keepdim=True)).unflatten(0, (-1, op.sequence)).mean(1)
    return (load.float() * share).sum(-1)


def balance_loss(op, scores, indices):
    return [balance(op, scores, indices)]


def balance_loss_gradient(op, scores, indices, dloss):
    return gradient(lambda scores: balance(op, scores, indices), [scores], dloss)


def expert_sort(op, indices):
    expert = indices.flatten().long().clamp(0, op.experts - 1)
    order = torch.sort(expert, stable=True).indices
    slot = torch.empty_like(order)
    slot[order] = torch.arange(order.numel(), device=order.device)
    counts = mark(expert[None], op.experts)[0]
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return [order // indices.shape[1], slot.reshape(indices.shape), offsets]


def weighted(y, weights, rows, there):
    chosen = torch.where(there[..., None], y[rows], 0.0)
    return (torch.where(there, weights, 0.0)[..., None] * chosen).sum(1)


def combine(op, y, slot, weights):
    return [weighted(y.float(), weights, *within(slot, y.shape[0]))]


def combine_gradient(op, y, slot, weights, dout):
    rows, there = within(slot, y.shape[0])
    return gradient(lambda y, weights: weighted(y, weights, rows, there), [y, weights], dout.float())


def global_norm(op, *gradients):
    wide = op.chip.wide
    norm = torch.stack([x.to(wide).square().sum() for x in gradients]).sum().sqrt()
    factor = torch.ones_like(norm)
    if op.clip > 0:
        factor = torch.clamp(op.clip / (norm + 1e-6), max=1.0)
    factor = torch.where(norm.float().isfinite(), factor, 0.0)
    return [norm.reshape(1), factor.reshape(1)]


def adamw_next(op, weight, gradient, m, v, factor, rates):
    """One f32 operation at a time in the order that the contract writes; torch rounds each number from Python to f32.
    torch's own f32 root is an ulp off now and then; that of f64 rounded to f32 is IEEE's."""
    rate, c1, c2 = rates[0:1], rates[1:2], rates[2:3]
    g = gradient * factor
    m = m * op.beta1 + g * (1.0 - op.beta1)
    v = v * op.beta2 + (g * (1.0 - op.beta2)) * g
    root = (v / c2).to(op.chip.wide).sqrt().float()
    decayed = weight - (rate * op.weight_decay) * weight
    return decayed - rate * ((m / c1) / (root + op.epsilon)), m, v


def adamw(op, *operands):
    results = list(adamw_next(op, *operands))
    if op.digests:
        weight, gradient, m, v = operands[:4]
        results += [digest_of(results[:3]), digest_of([weight, m, v]), digest_of([gradient])]
    return results


def bias_update(op, bias, counts):
    counts = counts.long()
    return [bias + torch.sign(counts.sum() - counts.numel() * counts).float() * op.rate]


def increment(op, x):
    return [x + op.by]


def accumulate(op, target, x):
    return [x if op.first else target + x]


def random_bits(op, key, counter):
    """Philox4x32-10 in int64, where 32-bit words never lose their sign."""
    low = 0xFFFFFFFF
    count = 1
    for size in op.sizes[0]:
        count *= size
    block = torch.arange((count + 3) // 4, device=key.device, dtype=torch.int64)
    c = [block, torch.zeros_like(block), (counter.long() & low).expand_as(block), torch.full_like(block, op.stream)]
    k = [word & low for word in key.long()]
    for _ in range(10):
        # The upper word of a product of two 32-bit words, by 16-bit halves of one.
        high = [(((m * (x & 0xFFFF)) >> 16) + m * (x >> 16)) >> 16 for m, x in ((0xD2511F53, c[0]), (0xCD9E8D57, c[2]))]
        first, second = (0xD2511F53 * c[0]) & low, (0xCD9E8D57 * c[2]) & low
        c = [high[1] ^ c[1] ^ k[0], second, high[0] ^ c[3] ^ k[1], first]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return [word_bits(torch.stack(c, 1).flatten()[:count]).reshape(op.sizes[0])]


def word_bits(x):
    """The low 32 bits of an int64 as int32."""
    return ((x << 32) >> 32).to(torch.int32)


def append(op, cache, rows, position):
    start = int(position)
    first, last = max(0, -start), min(rows.shape[0], cache.shape[0] - start)
    if first < last:
        op.outputs[0][start + first : start + last] = rows[first:last]
    return None


def bits(x):
    """An element's stored bits, zero-extended to int64, flat and row-major."""
    if x.dtype == torch.bfloat16:
        return x.contiguous().view(torch.int16).flatten().long() & 0xFFFF
    return x.contiguous().view(torch.int32).flatten().long() & 0xFFFFFFFF


def signed(word):
    return word - (1 << 64) if word >> 63 else word


def mixed(z):
    """SplitMix64's finalizer; int64 wraps as it must, and right shifts are made logical."""
    z = z + signed(0x9E3779B97F4A7C15)
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * signed(0xBF58476D1CE4E5B9)
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * signed(0x94D049BB133111EB)
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def digest_of(tensors, step=1 << 21):
    """Two words: the sum of each element times the key of its place in its block of 512 and the block's factor."""
    device = tensors[0].device
    total = torch.zeros((), dtype=torch.int64, device=device)
    keys = mixed(-1 - torch.arange(512, device=device)) & 0xFFFFFFFF | 1
    for x in tensors:
        flat = bits(x)
        for start in range(0, flat.numel(), step):
            part = flat[start : start + step]
            blocks = torch.nn.functional.pad(part, (0, -part.numel() % 512)).view(-1, 512)
            factors = mixed(torch.arange(start // 512, start // 512 + blocks.shape[0], device=device)) | 1
            total = total + ((blocks * keys).sum(1) * factors).sum()
    return torch.stack([word_bits(total), word_bits(total >> 32)])


def digest(op, *tensors):
    return [digest_of(tensors)]


def worst_of(distances):
    """The largest of a list of tensors, NaN counting as infinity."""
    flat = torch.cat([x.reshape(-1) for x in distances] + [distances[0].new_zeros(1)])
    return [torch.where(flat.isnan(), torch.inf, flat).amax().reshape(1)]


def row_sum_distance(op, a, b, sums):
    a, b, sums = (x.to(op.chip.wide) for x in (a, b, sums))
    size = (b.shape[0] + b.shape[1]) ** 0.5 * (a.abs() @ b.norm(dim=1))
    return (sums - a @ b.sum(1)).abs() / (2.0**-24 * size + 2.0**-70)


def product_check(op, a, b, row_sums, offsets=None):
    if op.form == "matmul":
        return worst_of([row_sum_distance(op, a, b, row_sums)])
    found = [op.zeros((1,)).to(op.chip.wide)]
    for expert, (start, end) in enumerate(rows_of(offsets, a.shape[0])):
        if op.form == "grouped_matmul":
            found.append(row_sum_distance(op, a[start:end], b[expert], row_sums[start:end]))
        else:
            found.append(row_sum_distance(op, a[start:end].t(), b[start:end], row_sums[expert]))
    return worst_of(found)


def compare(op, *values):
    half, count = len(values) // 2, 0
    for a, b in zip(values[:half], values[half:]):
        differ = bits(a) != bits(b)
        if a.is_floating_point():
            differ &= ~(a.isnan() & b.isnan()).flatten()
        count = count + differ.sum()
    return [count.reshape(1)]


def attention_check(op, q, k, v, out, dout, dq, dk, dv, segment_start, sums):
    """The identities of docs/operators.md over each run of rows and each key head."""
    unit = 2.0**-8 if out.dtype == torch.bfloat16 else 2.0**-24
    pack, heads, found = Pack(op, q, k, v, segment_start), k.shape[1], []
    wide = op.chip.wide
    split = q.shape[0] == k.shape[0]
    for starts, length, keys, mask in pack.blocks:
        # [runs, key head, query head of it, row, column] and [runs, key head, key, column].
        query = lambda x: pack.cut(x, starts, length).to(wide).unflatten(1, (heads, -1))  # noqa: E731
        key = lambda x: pack.cut(x, starts, keys)[:, :, : keys if split else length].to(wide)  # noqa: E731
        q_, out_, dout_, dq_ = query(q), query(out), query(dout), query(dq)
        sums_ = query(sums[..., None])
        k_, v_, dk_, dv_ = key(k), key(v), key(dk), key(dv)
        seen = mask.any(-1)[:, None, None, :, None]
        here = unit + 2.0**-24 * length**0.5

        def meet(total, first, second):
            found.append(total.abs() / (here * (first.sqrt() + second.sqrt()) + 2.0**-70))

        given = torch.where(seen, dout_, 0.0)
        meet(dv_.sum(2) - given.sum((2, 3)), dv_.square().sum(2), given.square().sum((2, 3)))
        along = (dout_ * out_).square().sum(-1, keepdim=True)
        meet(dk_.sum(2), dk_.square().sum(2), ((op.scale * q_).square() * along).sum((2, 3)))
        for left, right in ((q_ * dq_, k_ * dk_), (out_ * dout_, v_ * dv_)):
            total = left.sum((2, 3, 4)) - right.sum((2, 3))
            meet(total, left.square().sum((2, 3, 4)), right.square().sum((2, 3)))
        most = v_.abs().amax(2)
        meet((out_.abs().amax((2, 3)) - most).clamp_min(0), most.square(), torch.zeros_like(most))
        size = op.scale * q.shape[2] * q_.abs().amax((2, 3, 4)) * k_.abs().amax((2, 3))
        bound = 2.0**-24 * (1.0 + length**0.5 + size)[:, :, None, None, None]
        far = (sums_ - 1.0).abs() / bound
        found.append(torch.where(far.isfinite(), far, torch.inf)[seen.expand_as(far)])
    return worst_of(found)


def loss_check(op, loss, row_sums, weight_sums):
    loss, rows, words = (x.to(op.chip.wide) for x in (loss, row_sums, weight_sums))
    unit, least = 2.0**-24, 2.0**-70
    return worst_of([
        (rows[:, 0] - rows[:, 1]).abs() / (unit * rows[:, 2] + least),
        (loss - rows[:, 3]).abs() / (32 * unit * rows[:, 4]),
        (words[:, 0] - words[:, 1]).abs() / (unit * words[:, 2] + least),
    ])


def adamw_digest(op, *operands):
    return [digest_of(adamw_next(op, *operands))]


OPERATORS = {f.__name__: f for f in (
    cast, add, multiply, scale, activation, activation_gradient, swiglu, swiglu_gradient, assemble, gather, scatter_add,
    column_sum, dot, matmul, grouped_matmul, grouped_outer, attention, attention_gradient, rms_norm, rms_norm_gradient,
    rope, linear_cross_entropy, linear_cross_entropy_gradient, router, router_gradient, balance_loss,
    balance_loss_gradient, expert_sort, combine, combine_gradient, global_norm, adamw, bias_update, increment, accumulate,
    random_bits, append, digest, product_check, compare, attention_check, loss_check, adamw_digest,
)}

DEFAULTS = {"row_sums": False, "sums": False, "digests": False, "inverse": False, "form": "matmul"}
