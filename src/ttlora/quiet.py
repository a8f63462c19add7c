"""Keep away what libraries report of builds that nobody asked for, as PEFT and transformers import them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = ("bitsandbytes", "torchao", "torch.utils._pytree")


@contextmanager
def without_notes_on_builds() -> Iterator[None]:
    """Let these libraries log errors alone; afterwards they log as before."""
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
