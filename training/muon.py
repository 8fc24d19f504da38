"""The Muon optimiser for matrices and convolutions: momentum made orthogonal.

After Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024). Its Newton-Schulz
iteration runs here on the Gram matrix and on all parameters of one shape at once, which on a CPU is several
times cheaper.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.7750, 2.0315)
_SMALLEST_SIDE = 16


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of each (b, m, n) matrix near 1, keeping its singular vectors."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalize(matrices.mT.contiguous(), steps).mT
    a, b, c = _QUINTIC
    unit = matrices / (matrices.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    gram = torch.bmm(unit, unit.mT)  # (b, m, m)
    identity = torch.eye(gram.shape[1])[None]
    product: Tensor | None = None
    for step in range(steps):
        polynomial = torch.bmm(gram, gram).mul_(c).add_(gram, alpha=b).add_(identity, alpha=a)
        product = polynomial if product is None else torch.bmm(polynomial, product)
        if step < steps - 1:
            gram = torch.bmm(torch.bmm(polynomial, gram), polynomial)
    assert product is not None
    return torch.bmm(product, unit)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose update has an RMS of about 0.2 learning rates whatever the shape."""

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape[0], parameter[0].numel()].append(parameter)
            for shape, parameters in by_shape.items():
                self._update(shape, parameters, group)
        return loss

    def _update(self, shape: tuple[int, int], parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros(shape)
        gradients = [parameter.grad.reshape(shape) for parameter in parameters if parameter.grad is not None]
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, gradients)
        ahead = torch._foreach_add(gradients, momenta, alpha=group["momentum"])
        updates = orthogonalize(torch.stack(ahead))
        scale = group["lr"] * 0.2 * max(shape) ** 0.5
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.reshape(parameter.shape), alpha=-scale)


def split_parameters(module: nn.Module, excluded: tuple[str, ...] = ()) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters fit for Muon, and the others: vectors, slim matrices, names with a part in `excluded`."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in module.named_parameters():
        wide = parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) >= _SMALLEST_SIDE
        fit = wide and not any(part in name for part in excluded)
        (matrices if fit else others).append(parameter)
    return matrices, others
