"""Fused optimizers: one call writes parameters, moments and, where gradients are scaled, gradients."""

from __future__ import annotations

import math
from typing import List

import torch
from torch import Tensor

from ..call import Call, Captured
from ..real import Arithmetic, Real, scalar
from . import Expected, rule


def number(call: Call, name: str) -> float:
    """A factor that may be given as a tensor."""
    value = call.get(name)
    return float(value.wide) if isinstance(value, Captured) else float(value)


def skipped(call: Call) -> bool:
    """Whether an overflow in the gradients makes this step do nothing."""
    found = call.get("found_inf")
    return isinstance(found, Captured) and bool(found.wide.reshape(-1)[0] == 1)


def exact(operand: Captured) -> Real:
    """A tensor of the call."""
    return Real(operand.wide, None, call_arithmetic(operand))


def call_arithmetic(operand: Captured) -> Arithmetic:
    """The arithmetic of one tensor's dtype."""
    return Arithmetic.of(operand.dtype)


def gradients(call: Call) -> List[Real]:
    """Gradients with their scale taken off."""
    scale = call.get("grad_scale")
    grads = [exact(g) for g in call.get("grads")]
    return [g / float(scale.wide) for g in grads] if isinstance(scale, Captured) else grads


def wides(call: Call, name: str) -> List[Tensor]:
    """A list of tensors as they were."""
    return [operand.wide for operand in call.get(name)]


def written(call: Call, gradient: Real, original: Captured) -> Expected:
    """What a gradient reads after the call."""
    return gradient if call.get("grad_scale") is not None else original.wide


@rule("_fused_adamw_", "_fused_adam_")
def adam(call: Call) -> List[Expected]:
    """Loshchilov and Hutter, algorithm 2. Factors are numbers of the program in f64, rounded once."""
    if skipped(call):
        return [w for name in ("self", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs") for w in wides(call, name)]
    lr, decay, eps = number(call, "lr"), number(call, "weight_decay"), number(call, "eps")
    beta1, beta2 = number(call, "beta1"), number(call, "beta2")
    decoupled = call.name.startswith("_fused_adamw")
    parameters: List[Expected] = []
    grads: List[Expected] = []
    means: List[Expected] = []
    squares: List[Expected] = []
    largest: List[Expected] = []
    for index, gradient in enumerate(gradients(call)):
        grads.append(written(call, gradient, call.get("grads")[index]))
        p = exact(call.get("self")[index])
        step = float(call.get("state_steps")[index].wide)
        if call.get("maximize"):
            gradient = -gradient
        if decay and decoupled:
            p = p * (1.0 - lr * decay)
        elif decay:
            gradient = gradient + p * decay
        mean, square = exact(call.get("exp_avgs")[index]), exact(call.get("exp_avg_sqs")[index])
        # Both of torch's forms: m + (1 - b)(g - m), and b·m + (1 - b)·g.
        drawn = mean + (gradient - mean) * (1.0 - beta1)
        mixed = mean * beta1 + gradient * (1.0 - beta1)
        mean = Real(mixed.value, torch.maximum(drawn.bound(), mixed.bound()), mixed.arithmetic)
        square = square * beta2 + gradient * gradient * (1.0 - beta2)
        means.append(mean)
        squares.append(square)
        mean, square = call.put_down(mean), call.put_down(square)
        if call.get("amsgrad"):
            square = square.maximum(exact(call.get("max_exp_avg_sqs")[index]))
            largest.append(square)
        root = math.sqrt(1.0 - beta2**step)
        denominator = square.sqrt() / root + eps
        update = mean * (lr / (1.0 - beta1**step)) / denominator
        parameters.append(p - update)
    largest = largest or list(wides(call, "max_exp_avg_sqs"))
    return [*parameters, *grads, *means, *squares, *largest]


@rule("_fused_sgd_")
def sgd(call: Call) -> List[Expected]:
    """p - lr·(momentum·buffer + gradient)."""
    if skipped(call):
        return [w for name in ("self", "grads", "momentum_buffer_list") for w in wides(call, name)]
    lr, decay, momentum = number(call, "lr"), number(call, "weight_decay"), number(call, "momentum")
    parameters: List[Expected] = []
    grads: List[Expected] = []
    buffers: List[Expected] = []
    for index, gradient in enumerate(gradients(call)):
        grads.append(written(call, gradient, call.get("grads")[index]))
        p = exact(call.get("self")[index])
        if call.get("maximize"):
            gradient = -gradient
        if decay:
            gradient = gradient + p * decay
        if momentum and call.get("momentum_buffer_list"):
            buffer = exact(call.get("momentum_buffer_list")[index])
            if call.get("is_first_step"):
                buffer = gradient
            else:
                buffer = buffer * momentum + gradient * (1.0 - number(call, "dampening"))
            buffers.append(buffer)
            gradient = gradient + buffer * momentum if call.get("nesterov") else buffer
        parameters.append(p - gradient * lr)
    return [*parameters, *grads, *buffers]


@rule("_fused_adagrad_")
def adagrad(call: Call) -> List[Expected]:
    """p - lr/(1 + (t - 1)·decay)·g/(√Σg² + eps)."""
    if skipped(call):
        return [w for name in ("self", "grads", "state_sums") for w in wides(call, name)] + _steps(call)
    lr, decay, eps = number(call, "lr"), number(call, "weight_decay"), number(call, "eps")
    parameters: List[Expected] = []
    grads: List[Expected] = []
    sums: List[Expected] = []
    for index, gradient in enumerate(gradients(call)):
        grads.append(written(call, gradient, call.get("grads")[index]))
        p = exact(call.get("self")[index])
        step = float(call.get("state_steps")[index].wide)
        if call.get("maximize"):
            gradient = -gradient
        if decay:
            gradient = gradient + p * decay
        total = exact(call.get("state_sums")[index]) + gradient * gradient
        sums.append(total)
        rate = lr / (1.0 + (step - 1.0) * number(call, "lr_decay"))
        parameters.append(p - gradient * rate / (call.put_down(total).sqrt() + eps))
    return [*parameters, *grads, *sums, *_steps(call)]


def _steps(call: Call) -> List[Expected]:
    counted = "state_steps" in call.signature.written
    return list(wides(call, "state_steps")) if counted else []


@rule("_amp_foreach_non_finite_check_and_unscale_")
def unscale(call: Call) -> List[Expected]:
    """Gradients times 1/scale, and whether one of them is no number."""
    factor = float(call.wide("inv_scale"))
    found = any(not bool(g.wide.isfinite().all()) for g in call.get("self"))
    before = float(call.wide("found_inf"))
    gradients_out = [exact(g) * scalar(factor, call_arithmetic(g)) if factor != 1.0 else g.wide for g in call.get("self")]
    return [*gradients_out, torch.full_like(call.wide("found_inf"), 1.0 if found else before)]


@rule("_amp_update_scale_")
def update_scale(call: Call) -> List[Expected]:
    """Grows after enough good steps, backs off after a bad one: one product."""
    scale, tracker = call.wide("self"), call.wide("growth_tracker")
    arithmetic = call.arithmetic()
    if bool(call.wide("found_inf").reshape(-1)[0]):
        return [Real(scale * call.get("scale_backoff_factor"), None, arithmetic).rounded(), torch.zeros_like(tracker)]
    if int(tracker) + 1 == call.get("growth_interval"):
        return [Real(scale * call.get("scale_growth_factor"), None, arithmetic).rounded(), torch.zeros_like(tracker)]
    return [scale, tracker + 1]
