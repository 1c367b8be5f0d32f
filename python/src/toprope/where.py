"""Where in the user's program a call comes from: step, phase, layer.

The layer of a forward call is the path of the module that runs. A backward call belongs to the module whose forward
made its autograd node: nodes are numbered when they are made, and that number is known in both passes. A call inside
of an optimizer belongs to the parameter whose memory it reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from torch import Tensor
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks


@dataclass(frozen=True)
class Place:
    """Where a call was made."""

    step: int
    #: `forward`, `backward` or `optimizer`.
    phase: str
    #: Path of the module or name of the parameter; empty where neither is known.
    layer: str


class Whereabouts:
    """Follows modules, autograd and optimizers through hooks while it is attached."""

    def __init__(self, model: Optional[torch.nn.Module] = None) -> None:
        self.step = 1
        self.on_step: List[Callable[[int], None]] = []
        self._stack: List[str] = []
        self._names: Dict[int, str] = {}
        self._layers: Dict[int, str] = {}
        self._parameters: Dict[int, str] = {}
        self._optimizers: List[str] = []
        self._memory: Dict[int, str] = {}
        self._handles: List[Any] = []
        if model is not None:
            self._name(model)

    def attach(self) -> None:
        """Hooks into every module and optimizer."""
        self._handles = [
            module_hooks.register_module_forward_pre_hook(self._enter),
            module_hooks.register_module_forward_hook(self._leave, always_call=True),
            optimizer_hooks.register_optimizer_step_pre_hook(self._optimizer_begins),
            optimizer_hooks.register_optimizer_step_post_hook(self._optimizer_ends),
        ]

    def detach(self) -> None:
        """Takes the hooks out again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def place(self, args: Tuple[Any, ...]) -> Place:
        """The place of the call that is being made."""
        if self._optimizers:
            return Place(self.step, "optimizer", self._parameter_of(args) or self._optimizers[-1])
        node = _current_node()
        if node is not None:
            return Place(self.step, "backward", self._layers.get(node._sequence_nr(), ""))
        layer = self._stack[-1] if self._stack else ""
        number = _next_sequence_number()
        if number is not None:
            # The node of this call, if it has one, was the last that was made; the first to see it owns it.
            self._layers.setdefault(number - 1, layer)
        return Place(self.step, "forward", layer)

    def parameter(self, tensor: Any) -> str:
        """The parameter to which a tensor that an optimizer reads belongs; empty where it is none."""
        if not isinstance(tensor, Tensor) or not tensor.numel():
            return ""
        return self._memory.get(tensor.data_ptr(), "")

    def _parameter_of(self, args: Tuple[Any, ...]) -> str:
        for argument in args:
            name = self.parameter(argument)
            if name:
                return name
        return ""

    def _name(self, root: torch.nn.Module) -> None:
        for path, inner in root.named_modules():
            self._names[id(inner)] = path or type(root).__name__
        for path, parameter in root.named_parameters():
            self._parameters[id(parameter)] = path

    def _enter(self, module: torch.nn.Module, inputs: Any) -> None:
        if id(module) not in self._names:
            self._name(module)
        self._stack.append(self._names[id(module)])

    def _leave(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if self._stack:
            self._stack.pop()

    def _optimizer_begins(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._optimizers.append(type(optimizer).__name__)
        self._memory = {}
        for group in optimizer.param_groups:
            for position, parameter in enumerate(group["params"]):
                name = self._parameters.get(id(parameter), f"parameter {position}")
                state = optimizer.state.get(parameter, {})
                for tensor in [parameter, parameter.grad, *state.values()]:
                    if isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.numel():
                        self._memory[tensor.data_ptr()] = name

    def _optimizer_ends(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._optimizers:
            self._optimizers.pop()
        self._layers = {}
        self.step += 1
        for listener in self.on_step:
            listener(self.step)


def _current_node() -> Any:
    current = getattr(torch._C, "_current_autograd_node", None)
    return current() if current is not None else None


def _next_sequence_number() -> Optional[int]:
    number = getattr(torch.autograd, "_get_sequence_nr", None)
    return number() if number is not None else None
