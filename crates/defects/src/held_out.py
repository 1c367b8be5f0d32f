# What the guess at a kind is scored by. Whoever writes the guesser does not look here.
#
# The fourth set, written on 2026-11-29 by someone who has not read the guesser, the kinds before anything was run; the first
# three were scored and went to defects.py. They are modelled on what goes wrong in kernels, compilers, libraries and chips.
# Where a defect fits the definitions of several kinds, all of them are written down. Once scored, they go to defects.py.


@defect("matmul", "low_precision_accumulation")
def products_aligned_and_cut(right, op, *operands):
    """The sum so far and the next 16 products are aligned to the largest of them, and bits behind the fourteenth are cut."""

    def multiply(op, a, b):
        a, b = floats(a, b)
        total = torch.zeros(a.shape[0], b.shape[1], device=a.device)
        for k in range(0, a.shape[1], 16):
            terms = torch.cat([total[:, None], a[:, k : k + 16, None] * b[None, k : k + 16]], 1)
            top = terms.abs().amax(1, keepdim=True)
            fits = top.isfinite() & (top > 2.0**-100)
            exponent = torch.frexp(torch.where(fits, top, 1.0)).exponent
            unit = torch.ldexp(torch.ones_like(top), exponent - 14)
            total = torch.where(fits, (terms / unit).trunc() * unit, terms).sum(1)
        return total

    with replaced(product=multiply):
        return right(op, *operands)


@defect("matmul", "layout")
def swizzle_only_on_write(right, op, a, b, *rest):
    """Whole tiles of 8 columns of b go to shared memory with their columns exchanged, so that banks do not collide, and
    are read back as if they were not."""
    column = torch.arange(b.shape[1], device=b.device)[None, :]
    row = torch.arange(b.shape[0], device=b.device)[:, None]
    place = torch.where(column < b.shape[1] // 8 * 8, column ^ (row % 8), column)
    return right(op, a, b.gather(1, place), *rest)


@defect("grouped_matmul", "low_precision_operands")
def rows_in_int8(right, op, a, b, offsets):
    """Rows of a are quantized on the way in: 8 bits with a step for each row."""
    wide = a.float()
    step = wide.abs().amax(1, keepdim=True) / 127.0
    fits = step.isfinite() & (step > 2.0**-126)
    return right(op, torch.where(fits, (wide / step).round() * step, wide), b, offsets)


@defect("grouped_outer", "wrong_operand|empty_group")
def accumulator_not_cleared(right, op, *operands):
    """One persistent block goes from expert to expert, and its accumulator is cleared at its start only: what the experts
    before were given counts too."""
    return [x.cumsum(0) for x in right(op, *operands)]


@defect("attention", "mask|missing_terms")
def keys_counted_for_first_row(right, op, *operands):
    """How many tiles of 8 keys a tile of 16 rows goes through is reckoned for its first row: the others miss keys."""
    seen = visible

    def bounded(starts, length, keys, segment_start, offset, limit):
        mask = seen(starts, length, keys, segment_start, offset, limit)
        first = torch.arange(length, device=mask.device)[:, None] // 16 * 16 + offset
        key = torch.arange(keys, device=mask.device)[None, :]
        return mask & (key < (first // 8 + 1) * 8)

    with replaced(visible=bounded):
        return right(op, *operands)


@defect("attention", "mask")
def document_of_first_row(right, op, q, k, v, segment_start, *rest):
    """The start of a document is read once for a tile of 8 rows: rows of one that begins inside the tile look into the one
    before."""
    first = torch.arange(segment_start.shape[0], device=segment_start.device) // 8 * 8
    return right(op, q, k, v, segment_start[first], *rest)


@defect("attention", "layout")
def log_sums_heads_first(right, op, *operands):
    """The log-sum-exp is stored as [heads, rows], as the backward kernel of the library likes it."""
    out, lse = right(op, *operands)
    return [out, lse.t().reshape(lse.shape)]


@defect("attention_gradient", "wrong_factor")
def group_gradients_averaged(right, op, q, k, *rest):
    """Gradients of the query heads that share a key head are averaged, not summed."""
    results = list(right(op, q, k, *rest))
    group = q.shape[1] // k.shape[1]
    results[1], results[2] = results[1].float() / group, results[2].float() / group
    return results


@defect("rms_norm", "wrong_attribute|wrong_operand")
def weight_counts_from_one(right, op, x, weight):
    """The weight is taken for its distance from 1, as one family of models stores it."""
    return right(op, x, 1.0 + weight.float())


@defect("rms_norm_gradient", "order_changes")
def slices_by_free_units(right, op, x, weight, rstd, dy):
    """Rows are shared out among as many units as happen to be free: the weight's gradient has other partial sums then."""
    dx = right(op, x, weight, rstd, dy)[0]
    wide, root, upstream = floats(x, rstd[..., None], dy)
    terms = (upstream * wide * root).flatten(0, -2)
    total = torch.zeros(weight.shape, device=weight.device)
    for part in terms.split(CHANCE.choice((1, 2, 3, 5, 7))):
        total = total + part.sum(0)
    return [dx, total]


@defect("rope", "stray_index")
def stray_rows_not_rotated(right, op, x, positions, table):
    """A row whose position is outside of the table returns early and keeps its columns."""
    there = within(positions, table.shape[0])[1]
    return [torch.where(there[:, None, None], right(op, x, positions, table)[0].float(), x.float())]


@defect("swiglu", "layout")
def value_before_gate(right, op, x):
    """The first half is taken for the values and the second for the gates."""
    first, second = x.chunk(2, -1)
    return right(op, torch.cat([second, first], -1))


@defect("swiglu_gradient", "missing_terms|wrong_operand")
def slope_of_sigmoid_left_out(right, op, x, dy):
    """The gradient of gate·sigmoid(gate) is taken for sigmoid(gate) alone: the sigmoid is held constant."""
    gate, up = x.float().chunk(2, -1)
    upstream, open_gate = dy.float(), torch.sigmoid(gate)
    return [torch.cat([upstream * up * open_gate, upstream * gate * open_gate], -1)]


@defect("activation", "low_precision_store|low_precision_operands")
def function_unit_in_fp16(right, op, x):
    """The unit for exponentials takes and gives fp16."""
    return [in_fp16(right(op, in_fp16(x))[0])] if op.kind in ("sigmoid", "tanh") else right(op, x)


@defect("activation_gradient", "low_precision_operands")
def slope_from_stored_result(right, op, x, dy):
    """The slope is y·(1 - y) or 1 - y² of the forward result, which was kept in bf16."""
    if op.kind not in ("sigmoid", "tanh"):
        return right(op, x, dy)
    y = in_bf16(function(op.kind)(x.float()))
    return [dy.float() * (y * (1.0 - y) if op.kind == "sigmoid" else 1.0 - y * y)]


@defect("cast", "truncating_store|dropped_tail")
def scalar_rest_truncated(right, op, x):
    """Whole vectors of 8 are rounded by an instruction; the scalar loop behind them takes the upper half of the bits."""
    if op.outputs[0].dtype != torch.bfloat16:
        return right(op, x)
    flat = x.float().flatten()
    whole = flat.numel() // 8 * 8
    return [torch.cat([flat[:whole], truncated(flat[whole:])]).reshape(x.shape)]


@defect("add", "wrong_operand|layout")
def third_component_twice(right, op, a, b):
    """A loop unrolled by 4 was copied line by line: in its fourth line b is still that of the third."""
    flat = b.flatten()
    place = torch.arange(flat.numel(), device=b.device)
    fourth = (place % 4 == 3) & (place < flat.numel() // 4 * 4)
    return right(op, a, flat[torch.where(fourth, place - 1, place)].reshape(b.shape))


@defect("scale", "wrong_factor|wrong_attribute|low_precision_operands")
def factor_in_bf16(right, op, x):
    """The factor is handed to the kernel as a bf16."""
    return right(with_attributes(op, factor=float(in_bf16(torch.tensor(op.factor)))), x)


@defect("multiply", "strided_view|layout")
def offset_of_view_dropped(right, op, *operands):
    """The kernel gets the address of the whole value, not that of the window into it."""

    def from_start(x, record):
        view = record.get("view")
        return x if view is None else x.as_strided(x.shape, x.stride(), x.storage_offset() - view["offset"])

    return right(op, *(from_start(x, record) for x, record in zip(operands, op.operands)))


@defect("gather", "low_precision_operands|low_precision_store|special_values")
def rows_by_one_hot_product(right, op, table, indices):
    """Rows are picked by a product with ones and zeros on the matrix unit, which takes bf16; 0 times infinity is NaN."""
    rows, there = within(indices, table.shape[0])
    picks = (rows[:, None] == torch.arange(table.shape[0], device=table.device)) & there[:, None]
    return [picks.float() @ in_bf16(table)]


@defect("scatter_add", "missing_terms|not_written")
def last_segment_not_flushed(right, op, x, indices):
    """Rows are sorted and summed in runs of one index; a run is stored when the next one begins, and the last never."""
    y = right(op, x, indices)[0].clone()
    rows, there = within(indices, y.shape[0])
    if bool(there.any()):
        y[int(rows[there].max())] = 0.0
    return [y]


@defect("column_sum", "dropped_tail|wrong_operand")
def last_row_fills_tile(right, op, x):
    """Rows are loaded in tiles of 8, and addresses behind the last are clamped to it: it counts for the rest of its tile."""
    y, rest = right(op, x)[0], -x.shape[0] % 8
    return [y + rest * x[-1].float() if rest else y]


@defect("linear_cross_entropy", "wrong_attribute")
def labels_smoothed(right, op, x, weight, targets):
    """A label smoothing of 0.1 is still on: a tenth of the loss is that of all words alike."""
    loss, lse = right(op, x, weight, targets)
    alike = lse - product(op, x, weight.t()).mean(-1)
    there = within(targets, weight.shape[0])[1]
    return [torch.where(there, 0.9 * loss + 0.1 * alike, loss), lse]


@defect("linear_cross_entropy_gradient", "softmax_overflow")
def largest_of_tile(right, op, x, weight, targets, dloss):
    """What is taken off before e to it is the largest logit of a tile of 8 rows, not that of the row: rows far below it
    divide 0 by 0."""
    results = list(right(op, x, weight, targets, dloss))
    wide, head = floats(x, weight)
    place, there = within(targets, weight.shape[0])
    z = wide @ head.t()
    top = torch.cat([tile.amax().expand(tile.shape[0]) for tile in z.split(8)])
    raised = (z - top[:, None]).exp()
    share = raised / raised.sum(-1, keepdim=True)
    hit = place[:, None] == torch.arange(weight.shape[0], device=weight.device)
    g = torch.where(there[:, None], dloss[:, None] * (share - hit.float()), 0.0)
    results[1], results[2] = g @ head, g.t() @ wide
    return results


@defect("linear_cross_entropy_gradient", "stray_index")
def rows_without_target_push(right, op, x, weight, targets, dloss):
    """A row without a target has no loss, but its softmax goes into both gradients."""
    results = list(right(op, x, weight, targets, dloss))
    wide, head = floats(x, weight)
    there = within(targets, weight.shape[0])[1]
    g = torch.where(there[:, None], 0.0, dloss[:, None] * torch.softmax(wide @ head.t(), -1))
    results[1], results[2] = results[1].float() + g @ head, results[2].float() + g.t() @ wide
    return results


@defect("router", "wrong_operand")
def groups_without_bias(right, op, logits, bias):
    """Groups are chosen by their scores without the bias, and experts within them with it."""
    exact, calls = largest, []
    scores = torch.sigmoid(logits) if op.scoring == "sigmoid" else torch.softmax(logits, -1)
    grouped = scores.reshape(scores.shape[0], op.groups, scores.shape[1] // op.groups)
    unbiased = grouped.sort(-1, descending=True).values[..., :2].sum(-1)

    def chosen(values, eligible, count):
        calls.append(count)
        # The best of each group are asked for first, then the groups, then the experts.
        return exact(unbiased if len(calls) == 2 else values, eligible, count)

    with replaced(largest=chosen):
        return right(op, logits, bias)


@defect("router_gradient", "wrong_attribute|missing_terms")
def softmax_as_sigmoid(right, op, *operands):
    """The gradient of a softmax is taken for s·(1 - s) of each expert alone, as for a sigmoid."""
    return right(with_attributes(op, scoring="sigmoid"), *operands)


@defect("expert_sort", "layout")
def sort_bits_rounded_down(right, op, indices):
    """The radix sort is told log2 of the number of experts, rounded down, for the bits of a key: the upper bit of some
    experts does not count."""
    expert = indices.flatten().long().clamp(0, op.experts - 1)
    order = torch.sort(expert % (1 << (op.experts.bit_length() - 1)), stable=True).indices
    slot = torch.empty_like(order)
    slot[order] = torch.arange(order.numel(), device=order.device)
    return [order // indices.shape[1], slot.reshape(indices.shape), right(op, indices)[2]]


@defect("combine", "wrong_operand")
def weights_left_to_product(right, op, y, slot, weights):
    """Rows are added as they are, as where the product before has multiplied them by their weights already."""
    return right(op, y, slot, torch.ones_like(weights))


@defect("combine_gradient", "missing_terms")
def lanes_load_once(right, op, y, slot, weights, dout):
    """Each of 16 lanes takes one column for a weight's gradient, without a loop over the columns behind."""
    dweights = right(op, y[:, :16], slot, weights, dout[:, :16])[1]
    return [right(op, y, slot, weights, dout)[0], dweights]


@defect("global_norm", "low_precision_store|low_precision_operands")
def norms_of_groups_in_bf16(right, op, *gradients):
    """The norm of each group of parameters is kept in bf16, and the norm of all is that of those."""
    return right(op, *(in_bf16(right(op, x)[0]) for x in gradients))


@defect("adamw", "weight_decay")
def decay_with_corrected_rate(right, op, weight, gradient, m, v, factor, rates):
    """The step that is corrected for the first moment's start multiplies the decay too."""
    results = list(right(with_attributes(op, weight_decay=0.0), weight, gradient, m, v, factor, rates))
    results[0] = results[0] - (rates[0:1] / rates[1:2] * op.weight_decay) * weight
    if op.digests:
        results[3] = digest_of(results[:3])
    return results


@defect("adamw", "bias_correction|layout")
def corrections_exchanged(right, op, weight, gradient, m, v, factor, rates):
    """The two corrections are handed over in the wrong order."""
    exchanged = torch.cat([rates[0:1], rates[2:3], rates[1:2]])
    return right(op, weight, gradient, m, v, factor, exchanged)


@defect("bias_update", "dropped_tail")
def biases_behind_vectors_stay(right, op, bias, counts):
    """Biases are moved in whole vectors of 4; those behind stay."""
    moved, whole = right(op, bias, counts)[0], bias.shape[0] // 4 * 4
    return [torch.cat([moved[:whole], bias[whole:].float()])]


@defect("accumulate", "low_precision_accumulation|low_precision_store")
def gradients_kept_in_bf16(right, op, target, x):
    """What micro-batches add up to is kept with the precision of bf16."""
    y = right(op, target, x)[0]
    return [in_bf16(y) if y.is_floating_point() else y]


@defect("random_bits", "wrong_attribute")
def seven_rounds(right, op, key, counter):
    """Philox has 7 rounds, which its authors call enough, and not 10."""
    low = 0xFFFFFFFF
    count = 1
    for size in op.sizes[0]:
        count *= size
    block = torch.arange((count + 3) // 4, device=key.device, dtype=torch.int64)
    c = [block, torch.zeros_like(block), (counter.long() & low).expand_as(block), torch.full_like(block, op.stream)]
    k = [word & low for word in key.long()]
    for _ in range(7):
        high = [(((m * (x & 0xFFFF)) >> 16) + m * (x >> 16)) >> 16 for m, x in ((0xD2511F53, c[0]), (0xCD9E8D57, c[2]))]
        first, second = (0xD2511F53 * c[0]) & low, (0xCD9E8D57 * c[2]) & low
        c = [high[1] ^ c[1] ^ k[0], second, high[0] ^ c[3] ^ k[1], first]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return [word_bits(torch.stack(c, 1).flatten()[:count]).reshape(op.sizes[0])]


@defect("append", "not_written|layout")
def position_moved_before_write(right, op, cache, rows, position):
    """The position is counted on before the rows are written and not behind: they stand one row late."""
    return right(op, cache, rows, position + 1)


@defect("compare", "special_values|edge_value")
def compared_as_numbers(right, op, *values):
    """Elements are compared as floats, not as bits: a NaN differs from itself, and 0 does not from -0."""
    half = len(values) // 2
    return [sum((a != b).sum() for a, b in zip(values[:half], values[half:])).reshape(1)]
