"""Mixed batches: each row of an input through an adapter of its own choice."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from peft.tuners.tuners_utils import BaseTuner
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

# Which mixed batch runs here: hooks are the modules', and another thread may run them for a batch of its own.
_CALL: ContextVar[object] = ContextVar("_CALL", default=None)


@contextmanager
def mixed_batch(
    tuner: BaseTuner, adapter_names: Sequence[str], num_beams: int | None, pooled: Collection[str] = ()
) -> Iterator[None]:
    """Within it, the adapted layers and heads of a model are called with the names of their rows' adapters.

    PEFT leaves it to each tuner to hand the names on.

    Args:
        tuner: The adapted model.
        adapter_names: One name a row, "__base__" for none.
        num_beams: How often generation repeats each row.
        pooled: Names of adapters that PEFT does not know.

    Raises:
        ValueError: The model is training, or there is no adapter of a name.
    """
    if tuner.training:
        raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
    if unknown := set(adapter_names).difference(tuner.peft_config, pooled, {"__base__"}):
        raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(sorted(unknown))}")
    in_beams = [name for name in adapter_names for _ in range(num_beams or 1)]
    # the encoder of an encoder-decoder model sees each row once, however many beams the decoder follows
    has_decoder = getattr(getattr(tuner.model, "config", None), "is_encoder_decoder", False)
    in_encoder = set(tuner.model.get_encoder().modules()) if has_decoder else set()
    call = object()
    handles = [
        module.register_forward_pre_hook(
            partial(_hand_over, call, list(adapter_names) if module in in_encoder else in_beams), with_kwargs=True
        )
        for module in tuner.modules()
        if isinstance(module, tuner.tuner_layer_cls | AuxiliaryTrainingWrapper)
    ]
    before = _CALL.set(call)
    try:
        yield
    finally:
        _CALL.reset(before)
        for handle in handles:
            handle.remove()


def _hand_over(
    call: object, names: list[str], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, ({**kwargs, "adapter_names": names} if _CALL.get() is call else kwargs)
