"""What the pipelines of diffusers do between a flow-matching scheduler and their transformer.

The scheduler counts the time from its number of training steps, at pure noise, to 0, and wants the velocity from data
to noise. Most pipelines hand that on. Some divide the time, turn it round or negate the output, and neither scheduler
nor model says so: what is listed here was read in the pipelines of diffusers 0.42.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

THOUSAND = 1000.0


class Times(NamedTuple):
    """How a model is called: with ``time_scale * (1 - t if reverse else t)``, and the sign of its output."""

    time_scale: float
    reverse: bool = True
    sign: float = -1.0


AS_THE_SCHEDULER = {
    "BriaFiboTransformer2DModel", "BriaTransformer2DModel", "ChronoEditTransformer3DModel",
    "CogView4Transformer2DModel", "ErnieImageTransformer2DModel", "HunyuanImageTransformer2DModel",
    "HunyuanVideoFramepackTransformer3DModel", "HunyuanVideoTransformer3DModel", "JoyImageEditTransformer3DModel",
    "Kandinsky5Transformer3DModel", "LTX2VideoTransformer3DModel", "LTXVideoTransformer3DModel",
    "SD3Transformer2DModel", "SanaTransformer2DModel", "SanaVideoTransformer3DModel", "WanTransformer3DModel",
    "WanVACETransformer3DModel",
}  # fmt: skip
"""Called with the scheduler's own time."""
A_THOUSANDTH = {
    "AuraFlowTransformer2DModel", "BriaFibo2Transformer2DModel", "ChromaTransformer2DModel", "Flux2Transformer2DModel",
    "FluxTransformer2DModel", "LongCatImageTransformer2DModel", "OvisImageTransformer2DModel",
    "QwenImage21Transformer2DModel", "QwenImageTransformer2DModel",
}  # fmt: skip
"""Called with a thousandth of it."""
IN_UNITS = {"Krea2Transformer2DModel", "PRXTransformer2DModel"}
"""Called with a time from 1 to 0."""
OTHERS = {
    "Lumina2Transformer2DModel": Times(1.0, reverse=False, sign=1.0),
    "LuminaNextDiT2DModel": Times(1.0, reverse=False, sign=1.0),
    "NucleusMoEImageTransformer2DModel": Times(1.0, reverse=True, sign=1.0),
}


def times_of(network: nn.Module, steps: float, given: dict[str, Any]) -> Times:
    """How a flow-matching model is called.

    Args:
        network: the model. A class that derives from a listed one counts as that; one that is no transformer of
            diffusers, such as your own, is called with the scheduler's own time.
        steps: the number of training steps of the scheduler.
        given: what the caller says of ``time_scale``, ``reverse`` and ``sign``; None where nothing.

    Raises:
        ValueError: for a transformer of diffusers that is not listed, of which the caller has not said all three.

    Example:
        >>> times_of(nn.Linear(1, 1), 1000.0, {"time_scale": None, "reverse": None, "sign": None})
        Times(time_scale=1000.0, reverse=True, sign=-1.0)
    """
    said = {name: value for name, value in given.items() if value is not None}
    known = _known(network, steps)
    if known is None and len(said) < len(given):
        raise ValueError(
            f"model: how {type(network).__name__} is called by its pipeline is not known; expected time_scale, reverse "
            f"and sign, such as time_scale=1.0, reverse=True, sign=-1; got {', '.join(said) or 'none of them'}"
        )
    return (known or Times(steps))._replace(**said)


def _known(network: nn.Module, steps: float) -> Times | None:
    scale = getattr(getattr(network, "config", None), "timestep_scale", None) or 1.0
    for cls in type(network).__mro__:
        if cls.__name__ in AS_THE_SCHEDULER:
            return Times(steps * scale)
        if cls.__name__ in A_THOUSANDTH:
            return Times(steps / THOUSAND)
        if cls.__name__ in IN_UNITS:
            return Times(1.0)
        if cls.__name__ in OTHERS:
            return OTHERS[cls.__name__]
        if cls.__module__.startswith("diffusers.models.transformers"):
            return None
    return Times(steps * scale)
