# What the tests of the suite, of `qualify` and of `diagnose` are written with.


@defect("matmul", "low_precision_accumulation")
def bf16_accumulation(right, op, *operands):
    """The running sum is rounded to bf16."""
    with replaced(product=running_product(in_bf16, 4)):
        return right(op, *operands)


@defect("grouped_matmul", "low_precision_accumulation")
def fp16_accumulation(right, op, *operands):
    """The running sum is rounded to fp16, whose largest number is 65504."""
    with replaced(product=running_product(in_fp16, 4)):
        return right(op, *operands)


@defect("attention_gradient", "low_precision_accumulation")
def bf16_value_gradient(right, op, q, k, v, out, lse, dout, *rest):
    """The gradient of values is summed over tiles of 4 queries, and the sum so far kept in bf16."""
    results = list(right(op, q, k, v, out, lse, dout, *rest))
    total = torch.zeros(v.shape, device=v.device)
    for start in range(0, dout.shape[0], 4):
        tile = torch.zeros_like(dout)
        tile[start : start + 4] = dout[start : start + 4]
        total = in_bf16(total + right(op, q, k, v, out, lse, tile, *rest)[2].float())
    results[2] = total
    return results


@defect("matmul", "dropped_tail")
def dropped_tail_columns(right, op, *operands):
    """Columns behind the last multiple of 16 are never written."""
    results = right(op, *operands)
    results[0] = results[0].clone()
    results[0][:, results[0].shape[1] // 16 * 16 :] = 0.0
    return results


@defect("matmul", "dropped_tail")
def dropped_last_terms(right, op, a, b, *rest):
    """The last terms of a sum are left out where its length does not divide by 8."""
    terms = a.shape[1] // 8 * 8
    return right(op, a[:, :terms], b[:terms], *rest)


@defect("rms_norm", "dropped_tail")
def tail_not_in_mean(right, op, x, weight):
    """The mean square is that of the whole vectors of 8; the tail does not enter it."""
    whole = x.shape[-1] // 8 * 8
    square = x[..., :whole].float().square().sum(-1, keepdim=True) / x.shape[-1]
    rstd = torch.rsqrt(square + op.epsilon)
    return [x.float() * rstd * weight.float(), rstd.squeeze(-1)]


@defect("matmul", "wrong_operand")
def bias_twice(right, op, a, b, bias=None):
    """The bias is added in the product's epilogue and again behind it."""
    if bias is None:
        return right(op, a, b)
    results = right(op, a, b, bias)
    results[0] = results[0] + bias.float()
    return results


@defect("matmul", "low_precision_operands")
def row_sums_of_rounded_product(right, op, *operands):
    """Row sums are those of the stored bf16, not of the f32 behind it."""
    results = right(op, *operands)
    if len(results) > 1:
        results[1] = results[0].to(op.outputs[0].dtype).float().sum(1)
    return results


@defect("attention", "mask")
def mask_off_by_one(right, op, *operands):
    """A row sees the key behind its own."""
    seen = visible

    def wrong(starts, length, keys, segment_start, offset, limit):
        return seen(starts, length, keys, segment_start, offset + 1, limit)

    with replaced(visible=wrong):
        return right(op, *operands)


@defect("attention", "mask")
def mask_corner(right, op, *operands):
    """In the last tile of 16 rows of a run the upper right corner is not masked."""
    seen = visible

    def wrong(starts, length, keys, *rest):
        mask = seen(starts, length, keys, *rest)
        tile = (length - 1) // 16 * 16
        if tile and keys == length:
            mask[:, tile:, tile:] |= mask[:, tile:, tile : tile + 1]
        return mask

    with replaced(visible=wrong):
        return right(op, *operands)


@defect("attention", "mask")
def documents_not_masked(right, op, q, k, v, segment_start, *rest):
    """Rows look into the documents in front of theirs."""
    with replaced(blocks_of=lambda segments, rows, split: [([0], rows)]):
        return right(op, q, k, v, torch.zeros_like(segment_start), *rest)


@defect("attention", "mask")
def cache_length_ignored(right, op, q, k, v, segment_start, query_offset=None, cache_length=None):
    """Rows see what stands behind the cache's end."""
    return right(op, q, k, v, segment_start, query_offset)


@defect("attention", "softmax_overflow")
def softmax_without_maximum(right, op, *operands):
    """exp of the scores as they are: infinite from 89 on."""

    def naive(op, q, k, v, mask):
        weights = torch.where(mask[:, None], ((q @ k.transpose(-1, -2)) * op.scale).exp(), 0.0)
        return torch.where(mask.any(-1)[:, None, :, None], weights @ v / weights.sum(-1, keepdim=True), 0.0)

    with replaced(attend=naive):
        return right(op, *operands)


@defect("attention", "wrong_factor|wrong_attribute")
def scale_of_value_size(right, op, q, k, v, *rest):
    """The scores are scaled for the size of a value's head."""
    scale = op.scale * (q.shape[-1] / v.shape[-1]) ** 0.5
    return right(with_attributes(op, scale=scale), q, k, v, *rest)


@defect("attention", "layout")
def heads_interleaved(right, op, q, k, *rest):
    """Key heads are dealt out to query heads in turn instead of in blocks."""
    heads = torch.arange(q.shape[1], device=q.device).view(-1, k.shape[1]).t().flatten()
    out, lse = right(op, q[:, heads], k, *rest)
    back = torch.argsort(heads)
    return [out[:, back], lse[:, back]]


@defect("attention", "empty_group")
def blind_rows_are_nan(right, op, *operands):
    """A row that sees no key divides 0 by 0."""
    out, lse = right(op, *operands)
    return [torch.where(lse[..., None] == -torch.inf, torch.nan, out), lse]


@defect("attention_gradient", "missing_terms")
def first_query_missing(right, op, q, k, v, out, lse, dout, *rest):
    """The gradient of values is summed from the second query on."""
    results = list(right(op, q, k, v, out, lse, dout, *rest))
    later = dout.clone()
    later[0] = 0.0
    results[2] = right(op, q, k, v, out, lse, later, *rest)[2]
    return results


@defect("attention_gradient", "constant_output")
def sums_always_one(right, op, *operands):
    """The rows' sums of probabilities are written as 1, not summed."""
    return [x if index < 3 else torch.ones_like(x) for index, x in enumerate(right(op, *operands))]


@defect("add", "stale_buffer")
def previous_result(right, op, *operands):
    """The output is read before the kernel has written it: it holds the previous run's."""
    previous, op.previous = op.__dict__.get("previous"), [x.clone() for x in right(op, *operands)]
    return op.previous if previous is None else previous


@defect("multiply", "subnormals_flushed")
def subnormals_flushed(right, op, *operands):
    """Products below 2^-126 are zero."""
    y = right(op, *operands)[0]
    return [torch.where(y.abs() < 2.0**-126, torch.zeros_like(y), y)]


@defect("adamw", "subnormals_flushed")
def subnormal_moments_flushed(right, op, *operands):
    """Moments below 2^-126 are stored as zero."""
    results = right(op, *operands)
    for index in (1, 2):
        results[index] = torch.where(results[index].abs() < 2.0**-126, 0.0, results[index])
    return results


@defect("cast", "saturation")
def infinity_saturates(right, op, x):
    """Infinity becomes the largest number."""
    largest = torch.finfo(op.outputs[0].dtype).max
    wide = x.float()
    return [torch.where(wide.isinf(), torch.sign(wide) * largest, wide)]


@defect("cast", "truncating_store")
def truncating_cast(right, op, x):
    """A cast to bf16 drops the lower half instead of rounding."""
    return [truncated(x)] if op.outputs[0].dtype == torch.bfloat16 else right(op, x)


@defect("rms_norm_gradient", "all_nan")
def all_nan(right, op, *operands):
    """A whole output is NaN."""
    results = list(right(op, *operands))
    results[0] = torch.full_like(results[0], torch.nan)
    return results


@defect("swiglu", "all_zero")
def all_zero(right, op, *operands):
    """The kernel is never launched: the output stays zero."""
    return [torch.zeros_like(right(op, *operands)[0])]


@defect("scale", "stuck_elements")
def stuck_lane(right, op, x):
    """Four neighbouring elements are stuck at 1."""
    y = right(op, x)[0].contiguous()
    y.view(-1)[4:8] = 1.0
    return [y]


@defect("activation", "differs_in_range")
def differs_in_range(right, op, *operands):
    """Behind another operator the last bit differs from what it is alone."""
    y = right(op, *operands)[0].to(op.outputs[0].dtype).contiguous().clone()
    if IN_RANGE[0]:
        y.view(torch.int16 if y.element_size() == 2 else torch.int32).view(-1)[:1] ^= 1
    return [y]


@defect("dot", "order_changes")
def order_of_sum_changes(right, op, a, b):
    """Partial sums meet in the order in which they happen to be ready."""
    order = list(range(a.numel()))
    CHANCE.shuffle(order)
    total = torch.zeros((), device=a.device)
    for term in (a * b)[order].split(4):
        total = total + term.sum()
    return [total.reshape(1)]


@defect("rms_norm", "epsilon")
def epsilon_ten_times(right, op, *operands):
    """Epsilon is 1e-5 where 1e-6 is asked for."""
    return right(with_attributes(op, epsilon=10.0 * op.epsilon), *operands)


@defect("adamw", "epsilon")
def epsilon_inside_root(right, op, weight, gradient, m, v, factor, rates, *rest):
    """sqrt(v + epsilon) instead of sqrt(v) + epsilon."""
    results = right(op, weight, gradient, m, v, factor, rates, *rest)
    m_next, v_next = results[1], results[2]
    root = (v_next / rates[2:3] + op.epsilon).sqrt()
    decayed = weight - (rates[0:1] * op.weight_decay) * weight
    results[0] = decayed - rates[0:1] * ((m_next / rates[1:2]) / root)
    if op.digests:
        results[3] = digest_of(results[:3])
    return results


@defect("adamw", "bias_correction")
def bias_correction_missing(right, op, weight, gradient, m, v, factor, rates, *rest):
    """The moments are not corrected for their start at zero."""
    uncorrected = rates.clone()
    uncorrected[1:3] = 1.0
    return right(op, weight, gradient, m, v, factor, uncorrected, *rest)


@defect("adamw", "weight_decay")
def weight_decay_coupled(right, op, weight, gradient, m, v, factor, *rest):
    """Weight decay goes through the moments, as in Adam with an L2 penalty."""
    coupled = gradient * factor + op.weight_decay * weight
    results = right(with_attributes(op, weight_decay=0.0), weight, coupled, m, v, torch.ones_like(factor), *rest)
    if op.digests:
        results[5] = digest_of([gradient])
    return results


@defect("adamw", "stale_buffer")
def digest_of_old_state(right, op, weight, gradient, m, v, *rest):
    """The digest is taken before the update has been written."""
    results = right(op, weight, gradient, m, v, *rest)
    if op.digests:
        results[3] = digest_of([weight, m, v])
    return results


@defect("rms_norm_gradient", "wrong_factor")
def doubled_weight_gradient(right, op, *operands):
    """A weight's gradient is reduced twice."""
    dx, dweight = right(op, *operands)
    return [dx, 2.0 * dweight]


@defect("accumulate", "first_micro_batch")
def first_is_added(right, op, *operands):
    """The gradients of a first micro-batch are added to what was there."""
    return right(with_attributes(op, first=False), *operands)


@defect("router", "tie_break")
def ties_to_higher(right, op, *operands):
    """Of equal experts the higher is chosen."""
    lower = largest

    def higher(values, eligible, count):
        return values.shape[-1] - 1 - lower(values.flip(-1), eligible.flip(-1), count)

    with replaced(largest=higher):
        return right(op, *operands)


@defect("router", "wrong_attribute")
def group_limit_ignored(right, op, logits, bias):
    """Experts are chosen from all groups."""
    return right(with_attributes(op, top_groups=op.groups), logits, bias)


@defect("router", "wrong_operand")
def weights_with_bias(right, op, logits, bias):
    """The weights are those of the biased scores."""
    plain = weigh

    def biased(op, scores, *rest):
        return plain(op, scores + bias, *rest)

    with replaced(weigh=biased):
        return right(op, logits, bias)


@defect("rope", "layout|wrong_attribute")
def pairs_swapped(right, op, *operands):
    """Pairs are neighbours where they are halves, and the other way round."""
    return right(with_attributes(op, interleaved=not op.interleaved), *operands)


@defect("rope", "wrong_attribute")
def rotates_backwards(right, op, *operands):
    """Rotates the wrong way."""
    return right(with_attributes(op, inverse=not op.inverse), *operands)


@defect("grouped_outer", "empty_group")
def empty_expert_keeps_gradient(right, op, a, b, offsets):
    """An expert without rows keeps what its gradient held."""
    results = right(op, a, b, offsets)
    empty = (offsets[1:] == offsets[:-1]).nonzero().flatten()
    results[0][empty] = 0.5
    return results


@defect("scatter_add", "collision")
def collisions_overwrite(right, op, x, indices):
    """The last of the rows that meet in one wins."""
    y = right(op, x, indices)[0].clone()
    for at, row in enumerate(indices.tolist()):
        if 0 <= row < y.shape[0]:
            y[row] = x[at].float()
    return [y]


@defect("activation_gradient", "edge_value")
def relu_gradient_at_zero(right, op, x, dy):
    """The gradient of relu at 0 is 1."""
    dx = right(op, x, dy)[0]
    return [torch.where(x.float() == 0.0, dy.float(), dx)] if op.kind == "relu" else [dx]


@defect("gather", "stray_index")
def index_clamped(right, op, table, indices):
    """An index outside of the table gives its nearest row instead of zeros."""
    return right(op, table, indices.clamp(0, max(table.shape[0] - 1, 0)))


@defect("global_norm", "special_values")
def infinite_norm_passes(right, op, *operands):
    """A norm that is not finite lets the gradients through."""
    norm, factor = right(op, *operands)
    return [norm, torch.where(norm.float().isfinite(), factor, torch.ones_like(factor))]


@defect("bias_update", "wrong_factor")
def bias_moves_away(right, op, bias, counts):
    """The bias moves the wrong way."""
    return right(with_attributes(op, rate=-op.rate), bias, counts)


@defect("linear_cross_entropy", "stray_index")
def stray_target_counts(right, op, x, weight, targets):
    """A target outside of the vocabulary counts as the first word."""
    stray = (targets < 0) | (targets >= weight.shape[0])
    return right(op, x, weight, torch.where(stray, torch.zeros_like(targets), targets))


@defect("linear_cross_entropy", "softmax_overflow")
def loss_without_maximum(right, op, x, weight, targets):
    """The log-sum-exp of the logits as they are: infinite from 89 on."""
    results = right(op, x, weight, targets)
    sums = product(op, x, weight.t()).exp().sum(-1).log()
    return [torch.where(results[0] == 0.0, results[0], results[0] + sums - results[1]), sums]


@defect("linear_cross_entropy_gradient", "missing_terms")
def target_term_missing(right, op, x, weight, targets, dloss):
    """The head's gradient is that of the softmax alone."""
    results = right(op, x, weight, targets, dloss)
    place, there = within(targets, weight.shape[0])
    term = torch.where(there[:, None], dloss[:, None] * x.float(), 0.0)
    results[2] = results[2].index_add(0, place, term)
    return results


@defect("expert_sort", "tie_break")
def unstable_sort(right, op, indices):
    """Rows of one expert come in reverse order."""
    token, slot, offsets = (x.clone() for x in right(op, indices))
    for start, end in zip(offsets.tolist(), offsets.tolist()[1:]):
        token[start:end] = token[start:end].flip(0)
        here = (slot >= start) & (slot < end)
        slot[here] = start + end - 1 - slot[here]
    return [token, slot, offsets]


@defect("append", "stray_index")
def append_wraps(right, op, cache, rows, position):
    """Rows behind the cache's end are written to its start."""
    right(op, cache, rows, position)
    start, most = int(position), cache.shape[0]
    for at in range(rows.shape[0]):
        if start + at >= most and most:
            op.outputs[0][(start + at) % most] = rows[at]


@defect("random_bits", "wrong_attribute")
def stream_ignored(right, op, *operands):
    """Every stream gives the same bits."""
    return right(with_attributes(op, stream=0), *operands)


@defect("balance_loss", "low_precision_store")
def mean_in_bf16(right, op, *operands):
    """The mean of shares is kept in bf16."""
    return [in_bf16(x) for x in right(op, *operands)]


@defect("product_check", "constant_output|all_zero")
def product_check_passes(right, op, *operands):
    """Products always hold their sums."""
    return [torch.zeros_like(right(op, *operands)[0])]


@defect("compare", "constant_output|all_zero")
def compare_passes(right, op, *operands):
    """Two runs are always the same."""
    return [torch.zeros_like(right(op, *operands)[0])]


@defect("attention_check", "constant_output|all_zero")
def attention_check_passes(right, op, *operands):
    """Attention always holds its identities."""
    return [torch.zeros_like(right(op, *operands)[0])]


@defect("loss_check", "constant_output|all_zero")
def loss_check_passes(right, op, *operands):
    """The loss is always right."""
    return [torch.zeros_like(right(op, *operands)[0])]


@defect("verify", "constant_output|all_zero")
def verify_passes(right, op, *operands):
    """Another route always leads to the same result."""
    return [torch.zeros_like(right(op, *operands)[0])]


@defect("adamw_digest", "constant_output")
def update_digest_constant(right, op, *operands):
    """Every update has the same digest."""
    return [torch.full_like(right(op, *operands)[0], 7)]


@defect("digest", "constant_output")
def digest_constant(right, op, *operands):
    """Every value has the same digest."""
    return [torch.full_like(right(op, *operands)[0], 7)]


@defect("combine", "writes_outside")
def writes_behind_output(right, op, *operands):
    """One element is written behind the output's last cache line."""
    out = op.outputs[0]
    line = 64 // out.element_size()
    behind = out.storage_offset() + (out.numel() + line - 1) // line * line
    out.as_strided((1,), (1,), behind).fill_(1.0)
    return right(op, *operands)


@defect("column_sum", "refusal")
def refuses_in_run(right, op, *operands):
    """`prepare` took the shape, the run does not."""
    raise unsupported("column_sum", "in the middle of a run")


@defect("column_sum", "race")
def race(right, op, x):
    """Once in 1,000 runs the last tile of rows is read before it is there."""
    return right(op, x[: x.shape[0] - (x.shape[0] + 3) // 4] if CHANCE.random() < 1e-3 else x)


@defect("matmul", "bit_flips")
def bit_flips(right, op, *operands):
    """One stored element in 20,000 has a bit flipped."""
    results = right(op, *operands)
    results[0] = flipped(results[0].to(op.outputs[0].dtype).contiguous(), 1.0 / 20_000)
    return results


@defect("swiglu", "slow")
def eight_times_slower(right, op, *operands):
    """Right, and 8 times as late."""
    return slowed(8.0, right, op, operands)


@defect("grouped_outer", "low_precision_accumulation")
def outer_in_fp16(right, op, *operands):
    """The running sum over an expert's rows is rounded to fp16."""
    with replaced(product=running_product(in_fp16, 2)):
        return right(op, *operands)


@defect("linear_cross_entropy", "low_precision_accumulation")
def logits_in_bf16(right, op, *operands):
    """Logits are summed in bf16."""
    with replaced(product=running_product(in_bf16, 8)):
        return right(op, *operands)


@defect("column_sum", "low_precision_accumulation")
def columns_in_bf16(right, op, x):
    """The column's sum is kept in bf16 from row to row."""
    total = torch.zeros(x.shape[1:], device=x.device)
    for row in x.float():
        total = in_bf16(total + row)
    return [total]


@defect("swiglu", "dropped_tail")
def last_columns_not_activated(right, op, x):
    """Behind the last 8 columns the kernel's remainder loop forgets the gate."""
    y = right(op, x)[0].clone()
    whole = y.shape[-1] // 8 * 8
    y[..., whole:] = x.float().chunk(2, -1)[1][..., whole:]
    return [y]


@defect("grouped_matmul", "dropped_tail")
def last_rows_of_expert_dropped(right, op, a, b, offsets):
    """Rows behind an expert's last tile of 4 are not computed."""
    results = [x.clone() for x in right(op, a, b, offsets)]
    for start, end in rows_of(offsets, a.shape[0]):
        for result in results:
            result[start + (end - start) // 4 * 4 : end] = 0.0
    return results


@defect("attention_gradient", "mask")
def backward_mask_off_by_one(right, op, *operands):
    """The backward pass lets a row see the key behind its own; the forward pass does not."""
    return mask_off_by_one(right, op, *operands)


@defect("attention", "mask")
def own_key_masked(right, op, *operands):
    """From its second row on a run does not see its own key."""
    seen = visible

    def wrong(*rest):
        mask = seen(*rest)
        own = torch.eye(mask.shape[1], mask.shape[2], dtype=torch.bool, device=mask.device)
        own[:1] = False
        return mask & ~own

    with replaced(visible=wrong):
        return right(op, *operands)


@defect("matmul", "layout|strided_view")
def strides_ignored(right, op, a, b, *rest):
    """A second operand that lies transposed is read as if it did not."""
    if not b.is_contiguous() and b.t().is_contiguous():
        b = b.t().reshape(b.shape)
    return right(op, a, b, *rest)


@defect("rms_norm", "epsilon")
def epsilon_outside_root(right, op, x, weight):
    """1/(sqrt(mean) + epsilon) instead of 1/sqrt(mean + epsilon)."""
    rstd = 1.0 / (x.float().square().mean(-1, keepdim=True).sqrt() + op.epsilon)
    return [x.float() * rstd * weight.float(), rstd.squeeze(-1)]


@defect("adamw", "bias_correction")
def second_moment_not_corrected(right, op, weight, gradient, m, v, factor, rates, *rest):
    """Only the first moment is corrected for its start at zero."""
    wrong = rates.clone()
    wrong[2] = 1.0
    return right(op, weight, gradient, m, v, factor, wrong, *rest)


@defect("add", "truncating_store")
def sum_truncated(right, op, *operands):
    """A bf16 sum is stored by dropping bits."""
    y = right(op, *operands)[0]
    return [truncated(y)] if op.outputs[0].dtype == torch.bfloat16 else [y]


@defect("multiply", "saturation")
def product_saturates(right, op, *operands):
    """A product that overflows is the largest number."""
    y = right(op, *operands)[0]
    return [torch.where(y.isinf(), torch.sign(y) * torch.finfo(op.outputs[0].dtype).max, y)]


@defect("router", "softmax_overflow")
def exponentials_not_shifted(right, op, logits, bias):
    """Softmax and sigmoid by exp of the logits as they are."""
    scores = logits.exp()
    scores = scores / (1.0 + scores) if op.scoring == "sigmoid" else scores / scores.sum(-1, keepdim=True)
    return [scores] + list(right(op, logits, bias))[1:]


@defect("rms_norm_gradient", "stale_buffer|race")
def every_third_is_stale(right, op, *operands):
    """Every third run gives what the run before it gave, where that was of the same shapes."""
    mine = every_third_is_stale.__dict__
    mine["turn"] = mine.get("turn", 0) + 1
    previous, fresh = mine.get("previous"), [x.clone() for x in right(op, *operands)]
    mine["previous"] = fresh
    same = previous is not None and [x.shape for x in previous] == [x.shape for x in fresh]
    return previous if same and mine["turn"] % 3 == 0 else fresh


@defect("combine_gradient", "wrong_factor")
def weight_gradient_doubled(right, op, *operands):
    """The gradient of the experts' weights is added twice."""
    results = list(right(op, *operands))
    results[1] = 2.0 * results[1]
    return results


@defect("linear_cross_entropy_gradient", "wrong_factor")
def loss_averaged_twice(right, op, x, weight, targets, dloss):
    """The gradient is divided by the number of rows once more."""
    results = list(right(op, x, weight, targets, dloss))
    results[2] = results[2] / x.shape[0]
    return results


@defect("global_norm", "order_changes")
def atomics_in_norm(right, op, *gradients):
    """Squares are added in f32 by whichever block comes first."""
    terms = torch.cat([x.float().flatten() for x in gradients]).square()
    order = list(range(terms.numel()))
    CHANCE.shuffle(order)
    total = torch.zeros((), device=terms.device)
    for block in terms[order].split(64):
        total = total + block.sum()
    return [total.sqrt().reshape(1)] + list(right(op, *gradients))[1:]


@defect("rope", "race")
def rows_before_they_are_there(right, op, x, positions, table):
    """Once in 300 runs the first rows are rotated by the positions of their neighbours."""
    return right(op, x, positions.roll(1) if CHANCE.random() < 1.0 / 300 else positions, table)


@defect("assemble", "bit_flips")
def memory_flips(right, op, *operands):
    """One stored element in 10,000 has a bit flipped."""
    return [flipped(right(op, *operands)[0].to(op.outputs[0].dtype).contiguous(), 1e-4)]


@defect("rms_norm", "slow")
def six_times_slower(right, op, *operands):
    """Right, and 6 times as late."""
    return slowed(6.0, right, op, operands)


@defect("router", "tie_break|low_precision_operands")
def coarse_scores(right, op, logits, bias):
    """Scores that differ by less than 2^-8 count as equal, and the lower index wins."""
    exact = largest

    def coarse(values, eligible, count):
        return exact((values * 256.0).round() / 256.0, eligible, count)

    with replaced(largest=coarse):
        return right(op, logits, bias)


@defect("gather", "stray_index")
def index_wraps(right, op, table, indices):
    """An index outside of the table counts from its end."""
    return right(op, table, indices.remainder(max(table.shape[0], 1)))


@defect("activation", "subnormals_flushed")
def results_flushed(right, op, x):
    """Results below 2^-126 are zero."""
    y = right(op, x)[0]
    return [torch.where(y.abs() < 2.0**-126, torch.zeros_like(y), y)]


# The first set that was held out, in its order; it went here when it had been scored.


@defect("matmul", "low_precision_operands")
def two_bf16_for_f32(right, op, *operands):
    """f32 operands are taken apart into two bf16 each, and the product of the two lower parts is left out."""

    def parts(x):
        high = truncated(x)
        return high, torch.where(x.isfinite(), in_bf16(x.float() - high), 0.0)

    def multiply(op, a, b):
        (a_high, a_low), (b_high, b_low) = parts(a), parts(b)
        return a_high @ b_high + (a_high @ b_low + a_low @ b_high)

    with replaced(product=multiply):
        return right(op, *operands)


@defect("matmul", "dropped_tail|not_written")
def grid_rounded_down(right, op, *operands):
    """The grid has rows/16 blocks rounded down, one at least: the rows behind them are not written."""
    results = right(op, *operands)
    written = max(results[0].shape[0] // 16, 1) * 16
    kept = [output.float().clone() for output in op.outputs]
    for old, new in zip(kept, results):
        old[:written] = new[:written]
    return kept


@defect("matmul", "special_values|edge_value")
def zero_terms_skipped(right, op, *operands):
    """Terms whose left factor is 0 are left out: 0 times infinity is 0."""

    def multiply(op, a, b):
        a, b = floats(a, b)
        if bool(b.isfinite().all()):
            return a @ b
        return torch.stack([torch.where(row == 0.0, 0.0, row * b).sum(0) for row in a[:, :, None]])

    with replaced(product=multiply):
        return right(op, *operands)


@defect("grouped_matmul", "capacity|not_written")
def grid_for_mean_load(right, op, a, b, offsets):
    """The grid has room for 1.25 times the mean rows of an expert; rows beyond are not written."""
    results = right(op, a, b, offsets)
    room = -(-5 * a.shape[0] // (4 * b.shape[0]))
    kept = [output.float().clone() for output in op.outputs]
    for start, end in rows_of(offsets, a.shape[0]):
        end = min(end, start + room)
        for old, new in zip(kept, results):
            old[start:end] = new[start:end]
    return kept


@defect("grouped_matmul", "layout")
def matrices_without_gaps(right, op, a, b, offsets):
    """Experts without rows have no tiles, and the list of tiles counts matrices as if there were none of them."""
    busy = [expert for expert, (start, end) in enumerate(rows_of(offsets, a.shape[0])) if start < end]
    taken = b.clone()
    for place, expert in enumerate(busy):
        taken[expert] = b[place]
    return right(op, a, taken, offsets)


@defect("grouped_matmul", "truncating_store")
def tiles_truncated(right, op, *operands):
    """A bf16 result is stored without rounding (ROCm/composable_kernel#1812)."""
    results = right(op, *operands)
    return [truncated(results[0]) if op.outputs[0].dtype == torch.bfloat16 else results[0]] + list(results[1:])


@defect("grouped_outer", "low_precision_store")
def gradient_through_bf16(right, op, *operands):
    """The product's result is bf16, and an f32 gradient is made of it by a cast."""
    results = right(op, *operands)
    return [in_bf16(results[0])] + list(results[1:])


@defect("attention", "mask|wrong_operand")
def triangle_at_top_left(right, op, q, k, v, segment_start, query_offset=None, cache_length=None):
    """The triangle of a few queries over a long cache begins at the first key (Dao-AILab/flash-attention#282)."""
    offset = None if query_offset is None else torch.zeros_like(query_offset)
    return right(op, q, k, v, segment_start, offset, cache_length)


@defect("attention", "mask")
def documents_begin_a_row_early(right, op, q, k, v, segment_start, *rest):
    """Each document sees the last key of the one before."""
    return right(op, q, k, v, (segment_start - 1).clamp_min(0), *rest)


@defect("attention", "low_precision_accumulation")
def output_summed_in_fp16(right, op, *operands):
    """The output so far is kept in fp16 from one tile of 8 keys to the next."""

    def tiled(op, q, k, v, mask):
        seen = mask.any(-1)[:, None, :, None]
        scores = ((q @ k.transpose(-1, -2)) * op.scale).masked_fill(~mask[:, None], -torch.inf)
        weights = torch.where(seen, torch.softmax(torch.where(seen, scores, 0.0), -1), 0.0)
        total = torch.zeros(q.shape[:-1] + v.shape[-1:], device=q.device)
        for key in range(0, k.shape[-2], 8):
            total = in_fp16(total + weights[..., key : key + 8] @ v[..., key : key + 8, :])
        return total

    with replaced(attend=tiled):
        return right(op, *operands)


def by_query_head(right, op, q, k, v, *rest):
    """The gradient with a key head of its own for each query head, and how many of them share one."""
    group = q.shape[1] // k.shape[1]
    wide = [x.repeat_interleave(group, 1) for x in (k, v)]
    return list(right(op, q, *wide, *rest)), group


@defect("attention_gradient", "missing_terms|collision")
def last_head_of_group_wins(right, op, q, k, v, *rest):
    """Of the query heads that share a key head the last one's gradient is stored over the others'
    (marin-community/levanter#449)."""
    results, group = by_query_head(right, op, q, k, v, *rest)
    for index in (1, 2):
        results[index] = results[index].unflatten(1, (-1, group))[:, :, -1]
    return results


@defect("attention_gradient", "layout")
def key_heads_in_turn(right, op, q, k, v, *rest):
    """The gradients of keys and values go to head h % Hk instead of h / group
    (XunhaoLai/native-sparse-attention-triton#27)."""
    results, group = by_query_head(right, op, q, k, v, *rest)
    for index in (1, 2):
        results[index] = results[index].unflatten(1, (group, -1)).sum(1)
    return results


@defect("rms_norm", "epsilon")
def epsilon_of_the_type(right, op, *operands):
    """Epsilon is the spacing of f32 at 1, as where none is given."""
    return right(with_attributes(op, epsilon=2.0**-23), *operands)


@defect("rms_norm", "low_precision_operands")
def inverse_root_in_bf16(right, op, x, weight):
    """Rows are multiplied by 1/rms rounded to bf16 (amd/IRON#139)."""
    rstd = right(op, x, weight)[1]
    return [x.float() * in_bf16(rstd)[..., None] * weight.float(), rstd]


@defect("rms_norm_gradient", "low_precision_accumulation")
def weight_gradient_in_bf16(right, op, x, weight, rstd, dy):
    """Blocks of 4 rows add their part of the weight's gradient to a buffer of bf16."""
    total = torch.zeros(weight.shape, device=weight.device)
    for start in range(0, x.shape[0], 4):
        block = slice(start, start + 4)
        total = in_bf16(total + right(op, x[block], weight, rstd[block], dy[block])[1].float())
    return [right(op, x, weight, rstd, dy)[0], total]


@defect("rope", "wrong_operand")
def positions_counted_from_zero(right, op, x, positions, table):
    """The angles are those of rows 0, 1, 2, whatever positions say (lucidrains/rotary-embedding-torch#11)."""
    return right(op, x, torch.arange(x.shape[0], device=x.device), table)


@defect("rope", "wrong_attribute|layout")
def rotated_part_in_front(right, op, x, positions, table):
    """The columns that stay as they are stand behind the rotated ones, as in partial rotary embeddings of other models."""
    turned = x.shape[-1] - op.start
    y = right(op, torch.cat([x[..., turned:], x[..., :turned]], -1), positions, table)[0]
    return [torch.cat([y[..., op.start :], y[..., : op.start]], -1)]


@defect("swiglu", "softmax_overflow")
def sigmoid_of_large_overflows(right, op, x):
    """The sigmoid is e^x / (e^x + 1): infinity over infinity from 89 on (NervanaSystems/ngraph#3118)."""
    gate, up = x.float().chunk(2, -1)
    raised = gate.exp()
    return [gate * (raised / (raised + 1.0)) * up]


@defect("swiglu_gradient", "race")
def gate_overwritten(right, op, x, dy):
    """Gradients are written over the operands; once in 200 runs the first rows' gate is read when its gradient stands
    there."""
    dx = right(op, x, dy)[0].clone()
    if CHANCE.random() < 1.0 / 200:
        gate = dx[:4].chunk(2, -1)[0]
        dx[:4, gate.shape[-1] :] = dy[:4].float() * torch.nn.functional.silu(gate)
    return [dx]


@defect("router", "mask")
def hidden_experts_score_zero(right, op, logits, bias):
    """Experts of groups that are out score 0, not minus infinity: more than one with a negative score
    (vllm-project/vllm#13474)."""
    exact = largest

    def zeroed(values, eligible, count):
        return exact(torch.where(eligible, values, 0.0), torch.ones_like(eligible), count)

    with replaced(largest=zeroed):
        return right(op, logits, bias)


@defect("router", "wrong_attribute")
def always_normalized(right, op, logits, bias):
    """The weights of the chosen always sum to one (lablup/mlxcel#391)."""
    return right(with_attributes(op, normalize=True), logits, bias)


@defect("router_gradient", "missing_terms|wrong_operand")
def sum_held_constant(right, op, *operands):
    """No gradient goes through the sum that weights are divided by."""

    def detached(op, scores, indices, there):
        chosen = torch.where(there, scores.gather(1, indices), 0.0)
        total = chosen.sum(1, keepdim=True).detach() + 1e-20 if op.normalize else 1.0
        return op.scale * chosen / total

    with replaced(weigh=detached):
        return right(op, *operands)


@defect("linear_cross_entropy", "dropped_tail|mask")
def padding_scores_zero(right, op, x, weight, targets):
    """Behind the vocabulary, up to the next multiple of 32, logits of 0 enter the sum instead of minus infinity."""
    loss, lse = right(op, x, weight, targets)
    padding = -weight.shape[0] % 32
    wrong = torch.logaddexp(lse, torch.full_like(lse, padding).log()) if padding else lse
    there = within(targets, weight.shape[0])[1]
    return [torch.where(there, loss + (wrong - lse), loss), wrong]


@defect("linear_cross_entropy_gradient", "wrong_operand|wrong_factor")
def first_upstream_for_all(right, op, x, weight, targets, dloss):
    """The upstream gradient of the first row stands for that of every row (linkedin/Liger-Kernel#1298)."""
    return right(op, x, weight, targets, dloss[:1].expand_as(dloss) if dloss.numel() else dloss)


@defect("gather", "edge_value")
def word_zero_is_padding(right, op, table, indices):
    """Index 0 is taken for padding and gives a row of zeros."""
    return [torch.where((indices == 0)[:, None], 0.0, right(op, table, indices)[0].float())]


@defect("scatter_add", "low_precision_accumulation")
def rows_added_in_bf16(right, op, x, indices):
    """The table that rows are added to lies in bf16 (flagos-ai/FlagGems#309, tenstorrent/tt-metal#53386)."""
    y = op.zeros(op.sizes[0])
    for at, row in enumerate(indices.tolist()):
        if 0 <= row < y.shape[0]:
            y[row] = in_bf16(y[row] + x[at].float())
    return [y]


@defect("scatter_add", "empty_group|not_written")
def table_not_cleared(right, op, x, indices):
    """Rows that nothing is added to keep what the memory held (tgale96/grouped_gemm#36)."""
    rows, there = within(indices, op.sizes[0][0])
    y = op.outputs[0].float().clone()
    reached = rows[there].unique()
    y[reached] = right(op, x, indices)[0][reached]
    return [y]


@defect("multiply", "strided_view|layout")
def strides_dropped(right, op, *operands):
    """An operand that is not dense is read as if it were (pytorch/pytorch#118115)."""

    def dense(x):
        fits = x.storage_offset() + x.numel() <= x.untyped_storage().nbytes() // x.element_size()
        if x.is_contiguous() or 0 in x.stride() or not fits:
            return x
        return x.as_strided(x.shape, torch.empty(x.shape, device="meta").stride(), x.storage_offset())

    return right(op, *(dense(x) for x in operands))


@defect("combine", "low_precision_operands")
def weights_in_bf16(right, op, y, slot, weights):
    """Weights are rounded to the rows' bf16 before they are used (sgl-project/sglang#39351)."""
    return right(op, y, slot, in_bf16(weights))


@defect("combine", "dropped_tail|missing_terms")
def choices_in_pairs(right, op, y, slot, weights):
    """The loop over a token's choices is unrolled by two: of three the last is left out."""
    if slot.shape[1] > 1 and slot.shape[1] % 2:
        slot = slot.clone()
        slot[:, -1] = -1
    return right(op, y, slot, weights)


@defect("column_sum", "order_changes")
def blocks_added_by_atomics(right, op, x):
    """Blocks of 4 rows add their part to the sum as they come."""
    blocks = list(x.float().split(4))
    CHANCE.shuffle(blocks)
    total = torch.zeros(x.shape[1:], device=x.device)
    for block in blocks:
        total = total + block.sum(0)
    return [total]


def updated(op, weight, m, v, rates):
    """The next weight from the next moments."""
    root = (v / rates[2:3]).to(op.chip.wide).sqrt().float()
    decayed = weight - (rates[0:1] * op.weight_decay) * weight
    return decayed - rates[0:1] * ((m / rates[1:2]) / (root + op.epsilon))


@defect("adamw", "weight_decay")
def decay_without_rate(right, op, weight, *rest):
    """Weights shrink by the decay itself, not by the rate times the decay (modern-fortran/neural-fortran#152)."""
    results = list(right(with_attributes(op, weight_decay=0.0), weight, *rest))
    results[0] = results[0] - op.weight_decay * weight
    if op.digests:
        results[3] = digest_of(results[:3])
    return results


@defect("adamw", "bias_correction")
def root_over_whole_correction(right, op, weight, gradient, m, v, factor, rates):
    """The root of the second moment is divided by its correction, not by the root of that."""
    wrong = rates.clone()
    wrong[2] = rates[2] * rates[2]
    return right(op, weight, gradient, m, v, factor, wrong)


@defect("adamw", "wrong_operand")
def second_moment_not_clipped(right, op, weight, gradient, m, v, factor, rates):
    """The clipping factor does not enter the second moment."""
    results = list(right(op, weight, gradient, m, v, factor, rates))
    results[2] = right(op, weight, gradient, m, v, torch.ones_like(factor), rates)[2]
    results[0] = updated(op, weight, results[1], results[2], rates)
    if op.digests:
        results[3] = digest_of(results[:3])
    return results


@defect("cast", "subnormals_flushed")
def subnormals_become_zero(right, op, x):
    """A conversion in software gives 0 for what is below 2^-126 (iree-org/iree#14392)."""
    wide = x.float()
    return [torch.where(wide.abs() < 2.0**-126, 0.0, wide)]


@defect("assemble", "collision")
def later_part_wins(right, op, *parts):
    """Where windows of two parts meet the later is stored over the earlier."""
    y = op.zeros(op.sizes[0])
    for view, part in zip(op.views, parts):
        one = with_attributes(op, views=[view])
        reached = right(one, torch.ones_like(part))[0] > 0.0
        y = torch.where(reached, right(one, part)[0], y)
    return [y]


@defect("balance_loss", "wrong_factor")
def load_not_over_choices(right, op, scores, indices):
    """The load is not divided by how many experts a token has."""
    return [indices.shape[1] * right(op, scores, indices)[0]]


@defect("accumulate", "first_micro_batch|wrong_operand")
def later_gradients_overwrite(right, op, *operands):
    """The product that makes a gradient stores over what the micro-batches before left, with beta at 0."""
    return right(with_attributes(op, first=True), *operands)


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


@defect("matmul", "layout")
def fragment_halves_swapped(right, op, *operands):
    """Of a whole tile of 16 rows the upper 8 and the lower 8 are stored in each other's place."""
    results = list(right(op, *operands))
    y = results[0]
    whole = y.shape[0] // 16 * 16
    tiles = y[:whole].reshape(whole // 16, 2, 8, y.shape[1]).flip(1)
    results[0] = torch.cat([tiles.reshape(whole, y.shape[1]), y[whole:]])
    return results


@defect("grouped_matmul", "dropped_tail|mask|wrong_operand")
def tail_of_terms_not_masked(right, op, a, b, offsets):
    """The last block of 16 terms is loaded without a mask: the next row of a meets the next rows of b in it."""
    rows, terms = a.shape
    experts, _, columns = b.shape
    behind = -terms % 16
    left = torch.cat([a.float().reshape(-1), op.zeros((behind,))])
    start = torch.arange(rows, device=a.device)[:, None] * terms
    left = left[start + torch.arange(terms + behind, device=a.device)]
    rest = torch.cat([b.float().reshape(experts * terms, columns), op.zeros((behind, columns))])
    matrices = torch.stack([rest[at * terms : (at + 1) * terms + behind] for at in range(experts)])
    return right(op, left, matrices, offsets)


@defect("grouped_outer", "wrong_operand|missing_terms|layout")
def border_row_to_group_before(right, op, a, b, offsets):
    """A row's group is looked up by bisection to the wrong side: the first row of each group counts in the one before."""
    moved = offsets.clone()
    moved[1:-1] = (offsets[1:-1] + 1).clamp_max(a.shape[0])
    return right(op, a, b, moved)


@defect("attention", "mask|missing_terms")
def window_left_on(right, op, *operands):
    """A sliding window of 8 keys, another model's, is still compiled in."""
    seen = visible

    def windowed(starts, length, keys, segment_start, offset, limit):
        mask = seen(starts, length, keys, segment_start, offset, limit)
        row = torch.arange(length, device=mask.device)[:, None] + offset
        key = torch.arange(keys, device=mask.device)[None, :]
        return mask & (key > row - 8)

    with replaced(visible=windowed):
        return right(op, *operands)


@defect("attention", "low_precision_operands")
def probabilities_in_bf16(right, op, *operands):
    """Probabilities are rounded to bf16 before the product with the values, where those are f32 too."""

    def attend_rounded(op, q, k, v, mask):
        seen = mask.any(-1)[:, None, :, None]
        scores = ((q @ k.transpose(-1, -2)) * op.scale).masked_fill(~mask[:, None], -torch.inf)
        weights = torch.softmax(torch.where(seen, scores, 0.0), -1)
        return torch.where(seen, in_bf16(weights) @ v, 0.0)

    with replaced(attend=attend_rounded):
        return right(op, *operands)


@defect("attention", "wrong_factor|wrong_attribute")
def log_sums_to_base_two(right, op, *operands):
    """The kernel works with powers of 2, and hands out the logarithm to that base."""
    out, lse = right(op, *operands)
    return [out, lse * 1.4426950408889634]


@defect("attention_gradient", "missing_terms")
def value_columns_cut_at_head_size(right, op, q, k, v, *rest):
    """The kernel of dq takes the width of values for that of keys: wider ones lose columns in dout·v
    (XunhaoLai/native-sparse-attention-triton#27)."""
    results = list(right(op, q, k, v, *rest))
    width, plain = q.shape[-1], attend
    if v.shape[-1] <= width:
        return results

    def attend_cut(op, q, k, v, mask):
        seen = mask.any(-1)[:, None, :, None]
        beyond = v.detach().clone()
        beyond[..., :width] = 0.0
        scores = ((q @ k.transpose(-1, -2)) * op.scale).masked_fill(~mask[:, None], -torch.inf)
        scores = torch.where(seen, scores, 0.0)
        # With no gradient through the divisor the second term takes p·dp of the columns beyond off, and leaves D whole.
        weights = (scores - torch.logsumexp(scores, -1, keepdim=True).detach()).exp()
        return plain(op, q, k, v, mask) - torch.where(seen, weights @ beyond, 0.0)

    with replaced(attend=attend_cut):
        results[0] = right(op, q, k, v, *rest)[0]
    return results


@defect("attention_gradient", "wrong_factor")
def key_gradient_not_scaled(right, op, *operands):
    """dq is multiplied by the scale at its end, dk is not."""
    results = list(right(op, *operands))
    results[1] = results[1].float() / op.scale
    return results


@defect("rms_norm_gradient", "wrong_operand")
def weight_not_in_mean(right, op, x, weight, rstd, dy):
    """The mean that dx takes off is that of dy·x, without the weight."""
    dweight = right(op, x, weight, rstd, dy)[1]
    x, weight, root, dy = floats(x, weight, rstd[..., None], dy)
    mean = (dy * x).mean(-1, keepdim=True)
    return [root * (dy * weight - x * root.square() * mean), dweight]


@defect("rope", "layout")
def table_in_pairs(right, op, x, positions, table):
    """The table is read as if each cosine had its sine behind it; it holds all cosines first."""
    return right(op, x, positions, table.reshape(table.shape[0], -1, 2).transpose(1, 2))


@defect("rope", "not_written")
def grid_without_heads(right, op, x, positions, table):
    """The grid counts rows and not heads: those behind the first are not written (oxiglade/mlx-rs#359)."""
    y = op.outputs[0].float().clone()
    y[:, 0] = right(op, x, positions, table)[0][:, 0]
    return [y]


@defect("swiglu", "wrong_attribute")
def steeper_sigmoid(right, op, x):
    """The sigmoid is that of 1.702 times the gate, as in another family of models."""
    gate, up = x.float().chunk(2, -1)
    return [gate * torch.sigmoid(1.702 * gate) * up]


@defect("swiglu_gradient", "truncating_store")
def packed_by_byte_permute(right, op, x, dy):
    """Two bf16 are packed into a word by taking the upper halves of two f32."""
    dx = right(op, x, dy)[0]
    return [truncated(dx) if op.outputs[0].dtype == torch.bfloat16 else dx]


@defect("activation", "wrong_attribute")
def gelu_by_erf(right, op, x):
    """Gelu is the exact one, x·Φ(x): the library has both under one name (tenstorrent/tt-metal#1262)."""
    return [torch.nn.functional.gelu(x.float())] if op.kind == "gelu" else right(op, x)


@defect("activation", "special_values")
def clamp_drops_nan(right, op, x):
    """Before e to it an operand is clamped to ±88, by a minimum and a maximum that drop a NaN: it counts as 88."""
    y = right(op, x)[0]
    return [torch.where(x.isnan(), 1.0, y)] if op.kind in ("sigmoid", "tanh") else [y]


@defect("cast", "layout")
def packed_halves_swapped(right, op, x):
    """Two bf16 share a word, and the later one is stored in its lower half."""
    if op.outputs[0].dtype != torch.bfloat16:
        return right(op, x)
    flat = x.float().flatten()
    pairs = flat.numel() // 2
    swapped = flat[: 2 * pairs].reshape(pairs, 2).flip(1).flatten()
    return [torch.cat([swapped, flat[2 * pairs :]]).reshape(x.shape)]


@defect("add", "low_precision_operands")
def second_in_dtype_of_first(right, op, a, b):
    """The second operand is converted to the dtype of the first before it is added."""
    return right(op, a, b.to(a.dtype))


@defect("assemble", "subnormals_flushed")
def denormals_are_zero(right, op, *parts):
    """Parts below 2^-126 are read as zero."""
    return right(op, *(torch.where(part.abs() < 2.0**-126, torch.zeros_like(part), part) for part in parts))


@defect("gather", "dropped_tail|layout")
def rows_from_aligned_addresses(right, op, table, indices):
    """Rows are read by vectors of 4, whose address loses its lowest bits: a row that does not start at a multiple of 4 is
    read from up to 3 elements before."""
    rows, there = within(indices, table.shape[0])
    columns, flat = table.shape[1], table.reshape(-1)
    start = torch.div(rows * columns, 4, rounding_mode="floor") * 4
    read = flat[start[:, None] + torch.arange(columns, device=table.device)]
    return [torch.where(there[:, None], read.float(), 0.0)]


@defect("scatter_add", "order_changes")
def rows_added_by_atomics(right, op, x, indices):
    """Rows that go to the same place are added as they come."""
    y, rows = op.zeros(op.sizes[0]), indices.tolist()
    order = list(range(len(rows)))
    CHANCE.shuffle(order)
    for at in order:
        if 0 <= rows[at] < y.shape[0]:
            y[rows[at]] += x[at].float()
    return [y]


@defect("column_sum", "stuck_elements")
def dead_lane(right, op, x):
    """Of 32 lanes the sixth gives 0."""
    y = right(op, x)[0].clone()
    y[5::32] = 0.0
    return [y]


@defect("linear_cross_entropy", "dropped_tail|missing_terms")
def target_not_found_in_last_chunk(right, op, x, weight, targets):
    """The vocabulary is looked through in chunks of 8 words; a target in a last chunk that is not whole is not found, and
    its logit not taken off."""
    loss, lse = right(op, x, weight, targets)
    there = within(targets, weight.shape[0])[1]
    lost = there & (targets >= weight.shape[0] // 8 * 8)
    return [torch.where(lost, lse, loss), lse]


@defect("linear_cross_entropy_gradient", "collision|missing_terms")
def last_row_of_a_word_counts(right, op, x, weight, targets, dloss):
    """The targets' rows are stored into the head's gradient, not added: of those with one target the last counts."""
    results = list(right(op, x, weight, targets, dloss))
    place, there = within(targets, weight.shape[0])
    term = torch.where(there[:, None], dloss[:, None] * x.float(), 0.0)
    last = {word: at for at, (word, real) in enumerate(zip(place.tolist(), there.tolist())) if real}
    dweight = results[2].index_add(0, place, term)
    for word, at in last.items():
        dweight[word] -= term[at]
    results[2] = dweight
    return results


@defect("router", "missing_terms|wrong_attribute")
def groups_by_their_best(right, op, logits, bias):
    """A group's score is its largest biased score alone, as in DeepSeek-V2, not the sum of its two largest."""
    exact = largest

    def best(values, eligible, count):
        return exact(values, eligible, 1 if values.dim() == 3 else count)

    with replaced(largest=best):
        return right(op, logits, bias)


@defect("router", "wrong_factor|wrong_attribute")
def scaled_before_normalizing(right, op, logits, bias):
    """The chosen scores are multiplied by the scale first and divided by their sum then, which takes it away again."""

    def scaled_first(op, scores, indices, there):
        chosen = op.scale * torch.where(there, scores.gather(1, indices), 0.0)
        return chosen / (chosen.sum(1, keepdim=True) + 1e-20) if op.normalize else chosen

    with replaced(weigh=scaled_first):
        return right(op, logits, bias)


@defect("balance_loss", "missing_terms")
def first_choices_only(right, op, scores, indices):
    """Of a token's choices only the first enters the load, as where each has one."""
    return [right(op, scores, indices[:, :1])[0] / indices.shape[1]]


@defect("balance_loss_gradient", "layout|wrong_operand")
def upstream_in_turn(right, op, scores, indices, dloss):
    """Tokens take the upstream gradients of the sequences in turn, as where tokens of all sequences alternate."""
    each = right(op, scores, indices, torch.ones_like(dloss))[0]
    token = torch.arange(scores.shape[0], device=scores.device)
    return [each * dloss[token % dloss.shape[0]][:, None]]


@defect("expert_sort", "stray_index")
def strays_behind_all(right, op, indices):
    """Pairs whose expert is none are sorted behind those of all experts and belong to nobody."""
    expert = indices.flatten().long()
    expert = torch.where((expert < 0) | (expert >= op.experts), op.experts, expert)
    order = torch.sort(expert, stable=True).indices
    slot = torch.empty_like(order)
    slot[order] = torch.arange(order.numel(), device=order.device)
    counts = mark(expert[None], op.experts)[0]
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return [order // indices.shape[1], slot.reshape(indices.shape), offsets]


@defect("combine", "low_precision_accumulation|low_precision_store")
def choices_added_in_bf16(right, op, y, slot, weights):
    """A token's sum so far lies in bf16 from one choice to the next."""
    rows, there = within(slot, y.shape[0])
    total = torch.zeros((slot.shape[0], y.shape[1]), device=y.device)
    for choice in range(slot.shape[1]):
        one = weights[:, choice, None].float() * y[rows[:, choice]].float()
        total = in_bf16(total + torch.where(there[:, choice, None], one, 0.0))
    return [total]


@defect("global_norm", "wrong_operand|missing_terms")
def norm_of_first_group(right, op, first, *others):
    """The norm is that of the first group of parameters, as where each is clipped alone (huggingface/transformers#614)."""
    return right(op, first)


@defect("adamw", "low_precision_store")
def moments_in_bf16(right, op, *operands):
    """Both moments are stored with the precision of bf16."""
    results = list(right(op, *operands))
    results[1], results[2] = in_bf16(results[1]), in_bf16(results[2])
    if op.digests:
        results[3] = digest_of(results[:3])
    return results


@defect("adamw", "edge_value")
def idle_weights_skipped(right, op, weight, gradient, m, v, *rest):
    """Elements whose gradient is exactly 0 stay as they are, as in a lazy Adam for embeddings: no decay, no moments."""
    results = list(right(op, weight, gradient, m, v, *rest))
    for index, old in enumerate((weight, m, v)):
        results[index] = torch.where(gradient == 0.0, old, results[index])
    if op.digests:
        results[3] = digest_of(results[:3])
    return results


@defect("bias_update", "low_precision_store")
def bias_in_bf16(right, op, bias, counts):
    """The bias went to bf16 with the rest of the model: small steps are lost in it."""
    return [in_bf16(right(op, bias, counts)[0])]


@defect("increment", "saturation")
def counter_saturates(right, op, x):
    """The vector unit's integer sum stops at the largest number instead of wrapping."""
    return [(x.long() + op.by).clamp(-(2**31), 2**31 - 1)]


@defect("random_bits", "wrong_operand")
def half_of_key(right, op, key, counter):
    """The key is taken for one of 32 bits: its second word counts as 0."""
    half = key.clone()
    half[1] = 0
    return right(op, half, counter)


@defect("append", "not_written|layout")
def page_looked_up_once(right, op, cache, rows, position):
    """The cache lies in pages of 8 rows, and a call looks up the page of its first row: rows behind that page's end go to
    its start."""
    start = int(position)
    page = start // 8 * 8
    for at in range(rows.shape[0]):
        if 0 <= start + at < cache.shape[0]:
            op.outputs[0][page + (start + at - page) % 8] = rows[at]
