"""A training loop that is paid in seconds, and can stop at any moment and go on later.

The learning rate follows the share of the budget already spent, so a run of two minutes and one of two
hours both end annealed. A checkpoint is one ``state.safetensors`` (weights, their moving average, optimiser
state) and one ``state.json`` (what was spent); nothing is pickled.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.dataset import write_json
from training.peers import Peers

Metrics = dict[str, float]


@dataclass
class Spent:
    """What a run has used so far; `seconds` excludes validation and saving."""

    seconds: float = 0.0
    steps: int = 0
    presentations: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long a run may take, and how its rate and its average behave."""

    budget_s: float
    batch_size: int
    warmup_steps: int = 100
    ema_decay: float = 0.998
    report_every_s: float = 60.0
    slice_s: float = math.inf
    max_steps: int | None = None


def learning_rate_factor(fraction: float, steps: int, warmup_steps: int) -> float:
    """Linear warm-up by step, then a cosine over the budget down to one hundredth."""
    warm = min(1.0, (steps + 1) / warmup_steps)
    return warm * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * min(fraction, 1.0))))


class Trainer:
    """Trains `modules` together and keeps a moving average of every parameter."""

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        modules: Mapping[str, nn.Module],
        optimizers: Sequence[torch.optim.Optimizer],
        peers: Peers | None = None,
    ) -> None:
        self.folder = folder
        self.plan = plan
        self.spent = Spent()
        self._peers = peers
        self._optimizers = optimizers
        self._modules = modules
        self.parameters = {
            f"{prefix}.{name}": parameter
            for prefix, module in modules.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self._buffers = {
            f"buffers.{prefix}.{name}": module.state_dict()[name]
            for prefix, module in modules.items()
            for name in module.state_dict().keys() - dict(module.named_parameters()).keys()
        }
        self.average = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        for group in self._groups():
            group["base_lr"] = group["lr"]
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "state.json").exists():
            self._restore()

    def _groups(self) -> list[dict[str, float]]:
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    @property
    def fraction(self) -> float:
        """Share of the budget spent, from 0 to 1."""
        return min(1.0, self.spent.seconds / self.plan.budget_s)

    def run(self, loss: Callable[[float], Tensor], validate: Callable[[], Metrics]) -> Metrics:
        """Train until budget, slice or step limit is spent; `loss` gets the fraction spent so far."""
        started, next_report = self.spent.seconds, self.spent.seconds + self.plan.report_every_s
        losses: list[float] = []
        while self._met_peers(self._may_go_on(started)):
            before = time.monotonic()
            losses.append(self._step(loss))
            self.spent.seconds += time.monotonic() - before
            if self.spent.seconds >= next_report:
                next_report += self.plan.report_every_s
                self._report(losses, validate)
                losses = []
        return self._report(losses, validate)

    def _may_go_on(self, started_s: float) -> bool:
        plan = self.plan
        within_steps = plan.max_steps is None or self.spent.steps < plan.max_steps
        return within_steps and self.fraction < 1 and self.spent.seconds - started_s < plan.slice_s

    def _met_peers(self, go_on: bool) -> bool:
        if self._peers is None:
            return go_on
        if self.spent.steps % self._peers.meet_every:
            return True
        self._peers.average(list(self.parameters.values()))
        go_on, self.spent.seconds = self._peers.agree(go_on, self.spent.seconds)
        return go_on

    def _step(self, loss: Callable[[float], Tensor]) -> float:
        factor = learning_rate_factor(self.fraction, self.spent.steps, self.plan.warmup_steps)
        for group in self._groups():
            group["lr"] = group["base_lr"] * factor
        value = loss(self.fraction)
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        for optimizer in self._optimizers:
            optimizer.step()
        self.spent.steps += 1
        self.spent.presentations += self.plan.batch_size * (self._peers.size if self._peers else 1)
        decay = min(self.plan.ema_decay, (1 + self.spent.steps) / (10 + self.spent.steps))
        current = [parameter.detach() for parameter in self.parameters.values()]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)
        return float(value.detach())

    def _report(self, losses: list[float], validate: Callable[[], Metrics]) -> Metrics:
        if self._peers is not None and self._peers.rank > 0:
            return {}
        self.swap_average()
        for module in self._modules.values():
            module.eval()
        with torch.no_grad():
            metrics = validate()
        for module in self._modules.values():
            module.train()
        self.swap_average()
        mean_loss = sum(losses) / max(1, len(losses))
        line = {**asdict(self.spent), "loss": mean_loss, **metrics}
        line = {name: round(value, 5) for name, value in line.items()}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        self.save()
        return line

    def swap_average(self) -> None:
        """Exchange the weights with their moving average; a second call puts them back."""
        for name, parameter in self.parameters.items():
            current = parameter.detach().clone()
            parameter.data.copy_(self.average[name])
            self.average[name].copy_(current)

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        tensors = {}
        for o, optimizer in enumerate(self._optimizers):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for p, parameter in enumerate(parameters):
                for key, value in optimizer.state[parameter].items():
                    tensors[f"optimizer.{o}.{p}.{key}"] = value
        return tensors

    def save(self) -> None:
        """Write the checkpoint; an interrupted write leaves the previous one whole."""
        tensors = {f"weights.{name}": parameter.detach() for name, parameter in self.parameters.items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        tensors |= self._optimizer_tensors() | self._buffers
        partial = self.folder / "state.partial"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
        os.replace(partial, self.folder / "state.safetensors")
        write_json(self.folder / "state.json", asdict(self.spent))

    def _restore(self) -> None:
        self.spent = Spent(**json.loads((self.folder / "state.json").read_text()))
        tensors = load_file(self.folder / "state.safetensors")
        for name, parameter in self.parameters.items():
            parameter.data.copy_(tensors[f"weights.{name}"])
            self.average[name].copy_(tensors[f"average.{name}"])
        for name, buffer in self._buffers.items():
            buffer.copy_(tensors[name])
        for o, optimizer in enumerate(self._optimizers):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for p, parameter in enumerate(parameters):
                prefix = f"optimizer.{o}.{p}."
                found = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
                optimizer.state[parameter] = {
                    name.removeprefix(prefix): value for name, value in found.items()
                }


def load_average(folder: Path, modules: Mapping[str, nn.Module]) -> Spent:
    """Put the averaged weights of the run in `folder` into `modules`; returns what the run had spent."""
    tensors = load_file(folder / "state.safetensors")
    for prefix, module in modules.items():
        found: dict[str, Tensor] = {}
        for start in (f"average.{prefix}.", f"buffers.{prefix}."):
            found |= {
                name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)
            }
        module.load_state_dict(found)
    return Spent(**json.loads((folder / "state.json").read_text()))
