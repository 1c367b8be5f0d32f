# What the guess at a kind is scored by. Whoever writes the guesser does not look here.
#
# Written on 2026-11-29 by someone who has not read the guesser, the kinds before anything was run. Most are modelled on what was
# reported of young kernels and backends; the reports are named. One that the guesser is changed for goes to defects.py.


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
