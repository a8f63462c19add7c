"""What a recipe names of transformers' own: optimisers and trackers."""

from difflib import get_close_matches

from transformers import Trainer, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.training_args import OptimizerNames

from ttlora.errors import UserError, one_line
from ttlora.finetune.recipe import Recipe

DEFAULT_OPTIMIZER = "adamw_torch"


def require_optimizer(recipe: Recipe) -> None:
    """Refuse an optimiser that is not known, or whose library is not installed.

    Raises:
        UserError: It cannot be used.
    """
    if (name := recipe.optimizer) is None:
        return
    _require_known("optimizer", name, [one.value for one in OptimizerNames])
    try:
        Trainer.get_optimizer_cls_and_kwargs(TrainingArguments(optim=name, use_cpu=True, report_to=[]))
    except (ImportError, ValueError, RuntimeError) as error:
        raise UserError(f"`optimizer` {name} cannot be used: {one_line(error)}") from None


def require_trackers(recipe: Recipe) -> None:
    """Refuse a tracker that is not known, or whose package is not installed.

    Raises:
        UserError: It cannot be used.
    """
    for name in recipe.report_to or ():
        _require_known("report_to", name, list(INTEGRATION_TO_CALLBACK))
        if name not in get_available_reporting_integrations():
            raise UserError(
                f"`report_to` {name} needs the package {name}, which is not installed: python -m pip install {name}"
            )


def _require_known(key: str, name: str, known: list[str]) -> None:
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"`{key}` is {name!r}, which transformers does not know: {hint}there are {', '.join(known)}")
