# What the guess at a kind is scored by. Whoever writes the guesser does not look here.
#
# The third set, written on 2026-11-29 by someone who has not read the guesser, the kinds before anything was run; the first
# two were scored and went to defects.py. Some are modelled on what was reported of kernels and backends; those are named.
# Where a defect fits the definitions of several kinds, all of them are written down. Once scored, they go to defects.py.


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
