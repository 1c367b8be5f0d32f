# What the guess at a kind is scored by. Whoever writes the guesser does not look here.


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
    seen = visible

    def wrong(starts, length, keys, segment_start, offset, limit):
        return seen(starts, length, keys, segment_start, offset + 1, limit)

    with replaced(visible=wrong):
        return right(op, *operands)


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
