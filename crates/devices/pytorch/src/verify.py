# ------------------------------------------------------------------------------------------------------ verification
# `verify`: another operator's results by closed forms in float64, none of them torch's own operator or its gradient.


def unit_of(roundings, dtype):
    """Factors of |want| and of the magnitude: the contract's tolerance for so many f32 roundings inside."""
    store = 2.0**-8 if dtype == torch.bfloat16 else 0.0
    inside = (roundings + 1.0) * 2.0**-24
    return store * (1.0 + store), min(inside, 4.0 * (inside * 2.0**-24) ** 0.5)


def distance_of(got, want, magnitude, roundings):
    """The largest |got - want| in units of its bound; infinite where a number is not finite."""
    relative, inside = unit_of(roundings, got.dtype)
    far = (got.to(want.dtype) - want).abs() / (relative * want.abs() + inside * magnitude.abs() + 2.0**-70)
    return torch.where(far.isfinite(), far, torch.inf)


def exactly(got, want):
    return torch.where(got.long() == want.long(), 0.0, torch.inf)


def verify_rms_norm(op, x, weight, y, rstd):
    roundings, wide = weight.numel() / 2.0 + 6.0, op.chip.wide
    x, weight = x.to(wide), weight.to(wide)
    root = (x.square().sum(-1) / x.shape[-1] + op.epsilon).pow(-0.5)
    want = x * root[..., None] * weight
    return [distance_of(y, want, want, roundings), distance_of(rstd, root, root, roundings)]


def verify_rms_norm_gradient(op, x, weight, rstd, dy, dx, dweight):
    columns, wide = weight.numel(), op.chip.wide
    rows = x.numel() // max(columns, 1)
    x_, rstd, dy = x.to(wide), rstd.to(wide)[..., None], dy.to(wide)
    along = dy * weight.to(wide)
    mean = lambda terms: rstd.square() * terms.sum(-1, keepdim=True) / columns  # noqa: E731
    want = rstd * (along - x_ * mean(along * x_))
    size = rstd * (along.abs() + x_.abs() * mean((along * x_).abs()))
    terms = (dy * x_ * rstd).flatten(0, -2)
    return [
        distance_of(dx, want, size, columns + 8.0),
        distance_of(dweight, terms.sum(0), terms.abs().sum(0), rows + 3.0),
    ]


def verify_router(op, logits, bias, scores, indices, weights, counts):
    wide = op.chip.wide
    experts, k = logits.shape[1], indices.shape[1]
    z = logits.to(wide)
    if op.scoring == "sigmoid":
        want, roundings = 1.0 / (1.0 + (-z).exp()), 8.0
        size = want
    else:
        below = z.amax(-1, keepdim=True) - z
        want, roundings = (-below).exp() / (-below).exp().sum(-1, keepdim=True), experts + 12.0
        size = want * (1.0 + below)
    found = [distance_of(scores, want, size, roundings)]
    s = scores.to(wide)
    place, there = within(indices, experts)
    chosen = mark(torch.where(there, place, -1), experts) > 0
    found.append(torch.where(there.all(-1) & (chosen.sum(-1) == k) & s.isfinite().all(-1), 0.0, torch.inf))
    # Biased scores as the operator stored them, and how far their roundings reach.
    b = s + bias.to(wide)
    reach = 2.0**-22 * (s.abs() + bias.to(wide).abs()).amax(-1) + 2.0**-70
    groups = b.unflatten(-1, (op.groups, -1))
    group_scores = groups.sort(-1, descending=True).values[..., :2].sum(-1)
    order = group_scores.sort(-1, descending=True).values
    best = order[:, op.top_groups] if op.top_groups < op.groups else torch.full_like(reach, -torch.inf)
    used = chosen.unflatten(-1, (op.groups, -1)).any(-1)
    free = (used | (group_scores > (best + 2.0 * reach)[:, None])).repeat_interleave(experts // op.groups, 1)
    found.append(torch.where(used.sum(-1) <= op.top_groups, 0.0, torch.inf))
    least = torch.where(chosen, b, torch.inf).amin(-1)
    left = torch.where(~chosen & free, b, -torch.inf).amax(-1)
    found.append(((left - least) / reach).clamp_min(0.0))
    lowest = torch.where(used, group_scores, torch.inf).amin(-1)
    found.append(((order[:, op.top_groups - 1] - lowest) / (2.0 * reach)).clamp_min(0.0))
    of_chosen = s.gather(1, place)
    scale = torch.tensor(op.scale, dtype=torch.float32, device=s.device).to(wide)
    want = scale * of_chosen / (of_chosen.sum(1, keepdim=True) + 1e-20 if op.normalize else 1.0)
    found.append(distance_of(weights, want, want, experts + op.top_k + 16.0))
    found.append(exactly(counts, chosen.sum(0)))
    return found


def verify_router_gradient(op, scores, indices, weights, dweights, *rest):
    dscores, dlogits = rest if len(rest) == 2 else (None, rest[0])
    wide, experts = op.chip.wide, scores.shape[1]
    place, there = within(indices, experts)
    s, w, d = scores.to(wide), weights.to(wide), dweights.to(wide)
    zero = torch.zeros((), dtype=wide, device=s.device)
    n = torch.where(there, s.gather(1, place), zero).sum(1, keepdim=True) + 1e-20 if op.normalize else zero + 1.0
    common = (d * w).sum(1, keepdim=True) if op.normalize else zero
    common_size = (d * w).abs().sum(1, keepdim=True) if op.normalize else zero
    spread = lambda terms: torch.zeros_like(s).scatter_add(1, place, torch.where(there, terms, zero))  # noqa: E731
    g, size = spread((op.scale * d - common) / n), spread((op.scale * d.abs() + common_size) / n.abs())
    if dscores is not None:
        g, size = g + dscores.to(wide), size + dscores.to(wide).abs()
    if op.scoring == "sigmoid":
        want, size = g * s * (1.0 - s), size * s
    else:
        want = s * (g - (g * s).sum(1, keepdim=True))
        size = s * (size + (size * s).sum(1, keepdim=True))
    return [distance_of(dlogits, want, size, experts + 2.0 * indices.shape[1] + 12.0)]


def shares_of(op, scores, indices):
    """f of each sequence and expert, and each token's scores over their sum, by sequence."""
    experts, wide = scores.shape[1], op.chip.wide
    load = mark(indices.reshape(-1, op.sequence * indices.shape[1]), experts).to(wide)
    total = scores.to(wide).sum(-1, keepdim=True)
    return load * experts / (indices.shape[1] * op.sequence), (scores.to(wide) / total).unflatten(0, (-1, op.sequence)), total


def verify_balance_loss(op, scores, indices, loss):
    load, share, _ = shares_of(op, scores, indices)
    want = (load * share.sum(1) / op.sequence).sum(-1)
    return [distance_of(loss, want, want, op.sequence + 2.0 * scores.shape[1] + 8.0)]


def verify_balance_loss_gradient(op, scores, indices, dloss, dscores):
    load, share, total = shares_of(op, scores, indices)
    along = (load[:, None] * share).sum(-1, keepdim=True)
    factor = dloss.to(op.chip.wide)[:, None, None] / (op.sequence * total.unflatten(0, (-1, op.sequence)))
    want, size = factor * (load[:, None] - along), factor * (load[:, None] + along)
    return [distance_of(dscores, want.flatten(0, 1), size.flatten(0, 1), 2.0 * scores.shape[1] + 8.0)]


def verify_expert_sort(op, indices, token, slot, offsets):
    """The places are counted, not sorted: pairs of lower experts, and earlier pairs of the same."""
    expert = indices.flatten().long().clamp(0, op.experts - 1)
    is_of = expert[:, None] == torch.arange(op.experts, device=expert.device)
    ends = is_of.sum(0).cumsum(0)
    earlier = is_of.cumsum(0).gather(1, expert[:, None]).squeeze(1) - 1
    place = (ends - is_of.sum(0))[expert] + earlier
    inverse = torch.empty_like(place).scatter_(0, place, torch.arange(place.numel(), device=place.device))
    starts = torch.cat([ends.new_zeros(1), ends])
    return [
        exactly(slot.flatten(), place), exactly(token.flatten(), inverse // indices.shape[1]), exactly(offsets, starts)
    ]


def verify_column_sum(op, x, y):
    wide = x.to(op.chip.wide).flatten(0, -2)
    return [distance_of(y, wide.sum(0), wide.abs().sum(0), float(x.shape[0]))]


def verify_dot(op, a, b, y):
    terms = a.to(op.chip.wide) * b.to(op.chip.wide)
    return [distance_of(y, terms.sum().reshape(1), terms.abs().sum().reshape(1), a.shape[0] + 1.0)]


def verify_global_norm(op, *values):
    gradients, (norm, factor) = values[:-2], values[-2:]
    wide, roundings = op.chip.wide, sum(x.numel() for x in values[:-2]) / 2.0 + 4.0
    want = sum(x.to(wide).square().sum() for x in gradients).sqrt().reshape(1)
    clip = torch.tensor(op.clip, dtype=torch.float32).to(wide)
    of_norm = (clip / (want + 1e-6)).clamp_max(1.0) if op.clip > 0.0 else torch.ones_like(want)
    of_norm = torch.where(want.float().isfinite(), of_norm, 0.0)
    return [distance_of(norm, want, want, roundings), distance_of(factor, of_norm, of_norm, roundings + 2.0)]


def verify_bias_update(op, bias, counts, after):
    wide = op.chip.wide
    rate = torch.tensor(op.rate, dtype=torch.float32).to(wide)
    counts = counts.long()
    want = bias.to(wide) + rate * (counts.sum() - counts.numel() * counts).sign().to(wide)
    return [distance_of(after, want, bias.to(wide).abs() + rate, 1.0)]


def verify_increment(op, x, y):
    return [exactly(y, (x.long() + op.by + 2**31) % 2**32 - 2**31)]


VERIFIES = {name[len("verify_"):]: f for name, f in list(globals().items()) if name.startswith("verify_")}


def verify(op, *values):
    inner = Instruction(op.chip, op.of)
    inner.symbols = op.symbols
    return worst_of([x.reshape(-1).double() for x in VERIFIES[op.of["operator"]](inner, *values)])


OPERATORS["verify"] = verify
