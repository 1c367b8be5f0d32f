# What the guess at a kind is scored by. Whoever writes the guesser does not look here.
#
# The second set, written on 2026-11-29 by someone who has not read the guesser, the kinds before anything was run; the first
# was scored and went to defects.py. Many are modelled on what was reported of young kernels and backends; those are named.
# Where a defect fits the definitions of several kinds, all of them are written down. Once scored, they go to defects.py.


@defect("matmul", "low_precision_accumulation")
def slices_meet_in_bf16(right, op, *operands):
    """The sum is split into slices of 8 terms, and each slice's part waits for the others in a workspace of bf16."""

    def multiply(op, a, b):
        a, b = floats(a, b)
        if a.shape[1] <= 8:
            return a @ b
        return sum(in_bf16(a[:, k : k + 8] @ b[k : k + 8]) for k in range(0, a.shape[1], 8))

    with replaced(product=multiply):
        return right(op, *operands)


@defect("grouped_matmul", "layout")
def expert_of_first_row(right, op, a, b, offsets):
    """A tile of 8 rows that crosses the border of two experts takes the matrix of its first row's (tile-ai/TileOPs#1952)."""
    return right(op, a, b, ((offsets + 7) // 8 * 8).clamp_max(a.shape[0]))


@defect("grouped_matmul", "race")
def stage_overwritten(right, op, a, b, offsets):
    """Once in 200 runs a stage of the pipeline is read before it is filled: the last terms' a is that of the first ones."""
    count = max(1, a.shape[1] // 4)
    if CHANCE.random() < 1.0 / 200:
        a = torch.cat([a[:, :-count], a[:, :count]], 1)
    return right(op, a, b, offsets)


def in_tf32(x):
    """f32 with 10 bits behind the point."""
    wide = x.float().contiguous()
    cut = (wide.view(torch.int32) & -0x2000).view(torch.float32)
    return torch.where(wide.isnan(), wide, cut)


@defect("grouped_outer", "low_precision_operands")
def tf32_for_f32(right, op, *operands):
    """f32 operands go through units that keep 10 bits of them, whatever the switch says."""
    with replaced(product=lambda op, a, b: in_tf32(a) @ in_tf32(b)):
        return right(op, *operands)


@defect("attention", "mask|empty_group")
def hidden_score_is_finite(right, op, q, k, v, *rest):
    """Hidden scores are -10000, not minus infinity: a row that sees no key gives the mean of all values."""
    out, lse = right(op, q, k, v, *rest)
    mean = v.float().mean(0).repeat_interleave(q.shape[1] // v.shape[1], 0)
    blind = lse == -torch.inf
    count = torch.tensor(float(k.shape[0]), device=q.device)
    return [torch.where(blind[..., None], mean, out.float()), torch.where(blind, count.log() - 1e4, lse)]


@defect("attention", "softmax_overflow")
def maximum_starts_at_zero(right, op, *operands):
    """The running maximum starts at 0: a row whose scores are all below -104 has no weights, and divides 0 by 0."""

    def attend_from_zero(op, q, k, v, mask):
        scores = ((q @ k.transpose(-1, -2)) * op.scale).masked_fill(~mask[:, None], -torch.inf)
        weights = (scores - scores.amax(-1, keepdim=True).clamp_min(0.0)).exp()
        return torch.where(mask.any(-1)[:, None, :, None], (weights / weights.sum(-1, keepdim=True)) @ v, 0.0)

    with replaced(attend=attend_from_zero):
        out, lse = right(op, *operands)
    return [out, torch.where(lse < 0.0, lse.exp().log(), lse)]


@defect("attention", "dropped_tail|missing_terms|mask")
def last_split_of_cache_lost(right, op, q, k, v, segment_start, query_offset=None, cache_length=None):
    """A decoding call shares the cache out in splits of 8 keys, their number rounded down, one at least."""
    keys = k.shape[0] // 8 * 8
    if query_offset is not None and keys:
        whole = torch.full_like(query_offset, keys)
        cache_length = whole if cache_length is None else torch.minimum(cache_length, whole)
    return right(op, q, k, v, segment_start, query_offset, cache_length)


@defect("attention_gradient", "wrong_operand|missing_terms")
def output_does_not_enter(right, op, *operands):
    """ds is p·dp: the rows' sums of dout·out are never taken off, as where their kernel has not run
    (Dao-AILab/flash-attention#2481)."""

    def attend_without_sums(op, q, k, v, mask):
        seen = mask.any(-1)[:, None, :, None]
        scores = ((q @ k.transpose(-1, -2)) * op.scale).masked_fill(~mask[:, None], -torch.inf)
        scores = torch.where(seen, scores, 0.0)
        # What is divided by has no gradient: it is what the sums come from.
        weights = (scores - torch.logsumexp(scores, -1, keepdim=True).detach()).exp()
        return torch.where(seen, weights @ v, 0.0)

    with replaced(attend=attend_without_sums):
        return right(op, *operands)


@defect("rms_norm", "wrong_factor")
def mean_over_block(right, op, x, weight):
    """The sum of squares is divided by the width of the block, the next power of two, not by that of the row."""
    block = 1 << (x.shape[-1] - 1).bit_length()
    rstd = torch.rsqrt(x.float().square().sum(-1, keepdim=True) / block + op.epsilon)
    return [x.float() * rstd * weight.float(), rstd.squeeze(-1)]


@defect("rms_norm", "constant_output")
def mean_square_is_zero(right, op, x, weight):
    """Rows of whole vectors of 16 go through a kernel whose mean square is compiled to 0 (vllm-project/vllm-ascend#12642)."""
    if x.shape[-1] % 16:
        return right(op, x, weight)
    rstd = torch.full(x.shape[:-1], op.epsilon, device=x.device).rsqrt()
    return [x.float() * rstd[..., None] * weight.float(), rstd]


@defect("rope", "low_precision_operands")
def table_in_bf16(right, op, x, positions, table):
    """Cosines and sines are kept in the model's bf16."""
    return right(op, x, positions, in_bf16(table))


@defect("swiglu", "layout")
def gates_between_values(right, op, x):
    """Gates and values are taken in turn, column by column, as other models store them."""
    return right(op, torch.cat([x[..., 0::2], x[..., 1::2]], -1))


@defect("cast", "special_values")
def nan_becomes_infinity(right, op, x):
    """What rounds to bf16 leaves no bit in a NaN: infinity of its sign (dotnet/runtime#130583, tenstorrent/tt-metal#51557)."""
    wide = x.float()
    infinity = torch.copysign(torch.full_like(wide, torch.inf), wide)
    return [torch.where(wide.isnan() & (op.outputs[0].dtype == torch.bfloat16), infinity, wide)]


@defect("activation_gradient", "strided_view|layout")
def strides_of_x_for_dy(right, op, x, dy):
    """One set of strides, that of x, is handed to the kernel for both operands (flagos-ai/FlagAttention#1)."""
    behind = dy.storage_offset() + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride())) + 1
    if behind <= dy.untyped_storage().nbytes() // dy.element_size():
        dy = dy.as_strided(x.shape, x.stride(), dy.storage_offset())
    return right(op, x, dy)


@defect("linear_cross_entropy", "not_written|stray_index")
def rows_without_target_return_early(right, op, x, weight, targets):
    """The kernel's program of a row that has no target writes its loss of 0 and ends: lse keeps what was there."""
    loss, lse = right(op, x, weight, targets)
    return [loss, torch.where(within(targets, weight.shape[0])[1], lse, op.outputs[1].float())]


@defect("linear_cross_entropy", "low_precision_store")
def loss_in_dtype_of_x(right, op, x, *rest):
    """The loss is stored in x's dtype and widened for who asks for f32."""
    loss, lse = right(op, x, *rest)
    return [loss.to(x.dtype).float(), lse]


@defect("linear_cross_entropy_gradient", "low_precision_accumulation|low_precision_store")
def chunks_added_in_bf16(right, op, x, weight, targets, dloss):
    """The head's gradient is added up over chunks of 4 rows in a buffer of bf16."""
    results = list(right(op, x, weight, targets, dloss))
    total = torch.zeros(weight.shape, device=weight.device)
    for start in range(0, x.shape[0], 4):
        chunk = slice(start, start + 4)
        total = in_bf16(total + right(op, x[chunk], weight, targets[chunk], dloss[chunk])[2].float())
    results[2] = total
    return results


@defect("router", "wrong_attribute")
def weights_of_softmax(right, op, logits, bias):
    """The chosen are right, and their weights those of a softmax whatever the scoring is (MetaX-MACA/vLLM-metax#270)."""
    plain = weigh
    with replaced(weigh=lambda op, scores, *rest: plain(op, torch.softmax(logits, -1), *rest)):
        return right(op, logits, bias)


@defect("router", "stale_buffer|empty_group")
def histogram_not_cleared(right, op, *operands):
    """The experts are counted in a workspace that no run clears: the runs before count too."""
    results = list(right(op, *operands))
    workspaces, experts = histogram_not_cleared.__dict__, str(results[3].shape[0])
    results[3] = workspaces[experts] = results[3] + workspaces.get(experts, 0)
    return results


@defect("router", "epsilon")
def sum_without_epsilon(right, op, *operands):
    """The chosen scores are divided by their sum alone: 0 by 0 where all of them vanish (flashinfer-ai/flashinfer#3803)."""

    def bare(op, scores, indices, there):
        chosen = torch.where(there, scores.gather(1, indices), 0.0)
        return op.scale * chosen / (chosen.sum(1, keepdim=True) if op.normalize else 1.0)

    with replaced(weigh=bare):
        return right(op, *operands)


@defect("router_gradient", "wrong_operand")
def gradient_of_balance_dropped(right, op, scores, indices, weights, dweights, dscores=None):
    """What the balance loss asks of the scores is not added to what the weights ask of them."""
    return right(op, scores, indices, weights, dweights)


@defect("expert_sort", "tie_break|layout")
def choices_before_tokens(right, op, indices):
    """Pairs of one expert come by choice first and by token then: all first choices stand before all second ones."""
    rows, choices = indices.shape
    order = torch.sort(indices.t().flatten().long().clamp(0, op.experts - 1), stable=True).indices
    slot = torch.empty_like(order)
    slot[order] = torch.arange(order.numel(), device=order.device)
    return [order % rows, slot.reshape(choices, rows).t(), right(op, indices)[2]]


@defect("expert_sort", "capacity")
def experts_have_room(right, op, indices):
    """An expert takes 1.25 times the mean number of pairs; later ones are dropped: they get the slot -1."""
    token, slot, offsets = right(op, indices)
    room = -(-5 * indices.numel() // (4 * op.experts))
    first = offsets[indices.long().clamp(0, op.experts - 1)]
    return [token, torch.where(slot - first < room, slot, -1), offsets]


@defect("combine", "layout")
def weights_in_order_of_slots(right, op, y, slot, weights):
    """The weight of a sorted row is looked for at the row's place among the weights, which are in the tokens' order."""
    place = slot.long().clamp(0, weights.numel() - 1)
    return right(op, y, slot, weights.flatten()[place])


@defect("combine_gradient", "edge_value|special_values")
def weight_divided_out(right, op, y, slot, weights, dout):
    """Only weighted rows were kept: a weight's gradient is theirs divided by the weight, 0 by 0 where it is 0."""
    dy, dweights = right(op, y, slot, weights, dout)
    return [dy, dweights * weights.float() / weights.float()]


@defect("adamw", "weight_decay")
def decay_behind_update(right, op, weight, gradient, m, v, factor, rates):
    """The decay is taken of the weight that the step has changed already (huggingface/transformers#14539)."""
    results = list(right(with_attributes(op, weight_decay=0.0), weight, gradient, m, v, factor, rates))
    results[0] = results[0] - (rates[0:1] * op.weight_decay) * results[0]
    if op.digests:
        results[3] = digest_of(results[:3])
    return results


@defect("adamw", "bias_correction")
def correction_of_first_step(right, op, weight, gradient, m, v, factor, rates):
    """The kernel's own count of steps never moves: each step is corrected as the first (allenai/OLMo-core#317)."""
    first = rates.clone()
    first[1], first[2] = 1.0 - op.beta1, 1.0 - op.beta2
    return right(op, weight, gradient, m, v, factor, first)


@defect("scatter_add", "collision")
def conflicts_within_vector(right, op, x, indices):
    """Rows are added in vectors of 8: of those in one vector that go to the same place the last counts."""
    y, rows = op.zeros(op.sizes[0]), indices.tolist()
    for start in range(0, len(rows), 8):
        before = y.clone()
        for at, row in enumerate(rows[start : start + 8], start):
            if 0 <= row < y.shape[0]:
                y[row] = before[row] + x[at].float()
    return [y]


@defect("column_sum", "saturation|special_values")
def saturation_mode(right, op, x):
    """The chip runs in a mode without infinity and NaN: sums end at the largest number, and NaN is 0."""
    most = torch.finfo(op.outputs[0].dtype).max
    return [torch.nan_to_num(right(op, x)[0], nan=0.0, posinf=most, neginf=-most)]


@defect("multiply", "writes_outside")
def store_without_mask(right, op, *operands):
    """The last block of 256 elements is stored whole: zeros behind the output."""
    results, out = [y.clone() for y in right(op, *operands)], op.outputs[0]
    start = out.storage_offset() + out.numel()
    room = out.untyped_storage().nbytes() // out.element_size() - start
    out.as_strided((min(-out.numel() % 256, room),), (1,), start).fill_(0.0)
    return results


@defect("dot", "missing_terms|dropped_tail")
def odd_partial_lost(right, op, a, b):
    """Partial sums of 16 terms meet in a tree that halves their number: of an odd number the last is lost."""
    partials = [terms.sum() for terms in (a * b).split(16)]
    while len(partials) > 1:
        half = len(partials) // 2
        partials = [partials[at] + partials[at + half] for at in range(half)]
    return [partials[0].reshape(1)]


@defect("append", "stray_index")
def start_moved_to_fit(right, op, cache, rows, position):
    """A position from which the rows do not all fit is moved to the last from which they do, as in XLA's slices."""
    return right(op, cache, rows, position.clamp_max(max(cache.shape[0] - rows.shape[0], 0)))
