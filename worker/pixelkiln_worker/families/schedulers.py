"""The samplers a catalogue entry may offer, by name; and what a sampler's step tells of the finished picture.

A sampler is built from the configuration of the one that came with the model, so that what the model was
trained with (noise schedule, kind of prediction, shift) stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import diffusers
import torch

from pixelkiln_shared.errors import ModelUnavailable

_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}

# Class, and what is set beside the model's own configuration. Names that begin with `flow-` are for models
# trained by flow matching, the others for those that predict noise, velocity or sample of a diffusion.
SCHEDULERS: dict[str, tuple[str, Mapping[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "dpmpp-2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmpp-2m-karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
    ),
    "dpmpp-2m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp-singlestep": ("DPMSolverSinglestepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "flow-euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow-lcm": ("FlowMatchLCMScheduler", {}),
    "flow-dpmpp-2m": ("DPMSolverMultistepScheduler", _FLOW),
    "flow-unipc": ("UniPCMultistepScheduler", _FLOW),
}
_MATCHING = ("scale_model_input", "scale_noise", "add_noise", "init_noise_sigma")  # what pipelines call


def build(name: str, own: Any) -> Any:
    """Return a scheduler of `name` with the configuration of the model's own.

    Raises:
        ModelUnavailable: there is none of this name, or it does not go with the model.
    """
    if name not in SCHEDULERS:
        raise ModelUnavailable(f"scheduler {name!r} is none of {', '.join(SCHEDULERS)}")
    if is_flow(own) != name.startswith("flow-"):
        kind = "learnt flow matching" if is_flow(own) else "is no flow-matching model"
        raise ModelUnavailable(f"scheduler {name!r} does not go with the model, which {kind}")
    class_name, changes = SCHEDULERS[name]
    shift = own.config.get("shift", own.config.get("flow_shift", 1.0))  # two names for the same number
    shifts = {"shift": shift, "flow_shift": shift} if is_flow(own) else {}
    made = getattr(diffusers, class_name).from_config(own.config, **changes, **shifts)
    if missing := [one for one in _MATCHING if hasattr(own, one) and not hasattr(made, one)]:
        raise ModelUnavailable(f"scheduler {name!r} does not go with the pipeline: no {missing[0]}")
    return made


def fresh(own: Any) -> Any:
    """Return a scheduler like the model's own that shares no state with it."""
    return type(own).from_config(own.config)


def check(names: Iterable[Any], own: Any) -> None:
    """Build each scheduler that an entry offers, so that a wrong name is told at load.

    Raises:
        ModelUnavailable: see `build`.
    """
    for name in names:
        build(str(name), own)


def is_flow(scheduler: Any) -> bool:
    """Whether the model behind this scheduler predicts the flow from picture to noise."""
    config = scheduler.config
    named = type(scheduler).__name__.startswith("FlowMatch")
    return named or config.get("prediction_type") == "flow_prediction" or bool(config.get("use_flow_sigmas"))


def clean_estimate(scheduler: Any, output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> torch.Tensor:
    """Return the finished sample as the model sees it from here: what is left when all noise is taken away.

    Call before `scheduler.step`. `sample` = alpha * clean + sigma * noise, where schedulers differ in how
    they scale the sum; the kinds of prediction are those of Salimans and Ho, arXiv 2202.00512, appendix D,
    and of Lipman et al., arXiv 2210.02747, for flow matching.
    """
    alpha, sigma = noise_level(scheduler, timestep)
    if is_flow(scheduler):
        return sample - sigma * output
    kind = scheduler.config.get("prediction_type", "epsilon")
    clean = (sample - sigma * output) / alpha  # `epsilon`
    if kind == "v_prediction":
        scale = (alpha**2 + sigma**2) ** 0.5  # 1 where the sum keeps its variance
        clean = (alpha * sample / scale - sigma * output) / scale
    return output if kind == "sample" else clean


def noised(scheduler: Any, clean: torch.Tensor, timestep: Any, noise: torch.Tensor) -> torch.Tensor:
    """Return a clean sample with the noise of this timestep; call before `scheduler.step`."""
    add = scheduler.add_noise if hasattr(scheduler, "add_noise") else None
    times = torch.as_tensor(timestep).reshape(1).to(clean.device)
    result: torch.Tensor = (
        add(clean, noise, times) if add is not None else scheduler.scale_noise(clean, times, noise)
    )
    return result


def noise_level(scheduler: Any, timestep: Any) -> tuple[float, float]:
    """Return alpha and sigma of the sum that `clean_estimate` speaks of, at this timestep."""
    if not hasattr(scheduler, "sigmas"):
        share = float(scheduler.alphas_cumprod[int(timestep)])
        return share**0.5, (1 - share) ** 0.5
    index = scheduler.step_index  # None before the first step
    if index is None:
        index = scheduler.begin_index
    sigma = scheduler.sigmas[scheduler.index_for_timestep(timestep) if index is None else index]
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
        alpha, scaled = scheduler._sigma_to_alpha_sigma_t(sigma)
        return float(alpha), float(scaled)
    return (1 - float(sigma), float(sigma)) if is_flow(scheduler) else (1.0, float(sigma))
