"""Where a model is: in a local folder, in the hub's cache, or on the hub; and one question to the hub before its client
goes to work, which would retry for half a minute.
"""

import os
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal, TypeVar

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

from ttlora.errors import UserError, one_line

SECONDS = 10.0

T = TypeVar("T")


def from_folder_or_hub(
    name: str, load: Callable[..., T], way_out: str = "give a local folder as `model`", revision: str | None = None
) -> T:
    """Load a model, or a part of it, from a local folder, else from the hub's cache, else from the hub.

    Args:
        name: A local folder that holds ``config.json``, or a name on the hub.
        load: Called with the folder or the name, and with the keyword ``local_files_only``; raises `UserError` if it
            cannot load it.
        way_out: What to do if the hub does not have the model; ends the message.
        revision: Revision on the hub.

    Raises:
        UserError: There is no such model, or `load` cannot load it.
    """
    if not name:
        raise UserError("`model` is empty: name a folder, or a model on the hub")
    folder = Path(os.path.expanduser(name))
    # unlike Path's, these take a name that is too long for a path as none
    if os.path.isdir(folder):
        if not (folder / "config.json").is_file():
            raise UserError(f"model folder {name} holds no config.json: name a folder with a saved transformers model")
        return load(str(folder), local_files_only=True)
    if os.path.exists(folder):
        raise UserError(f"model {name} is a file: name the folder that holds the model's config.json")
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"model folder {name} is not there: give its place as `model`")
    try:
        return load(name, local_files_only=True)
    except UserError as refusal:
        try:
            require_on_hub("model", name, way_out)
        except UserError:
            # what the cache holds of it is the reason, if it holds anything
            if _is_cached(name, revision):
                raise refusal from None
            raise
        return load(name, local_files_only=False)


def require_on_hub(kind: Literal["model", "dataset"], name: str, way_out: str) -> None:
    """Make sure that the hub can be reached and has what is wanted.

    With ``HF_HUB_OFFLINE`` nothing is asked. A data set is left to the hub's cache then; a model is asked for only when
    the cache does not have it.

    Args:
        kind: What `name` names.
        name: Name on the hub.
        way_out: What to do without the hub; ends the message.

    Raises:
        UserError: The hub cannot be reached, or does not have it, or does not give it.
    """
    here = "there is no such folder, and " if kind == "model" else ""
    api = HfApi()
    ask = api.model_info if kind == "model" else api.dataset_info
    try:
        ask(name, timeout=SECONDS)
    except OfflineModeIsEnabled:
        if kind == "model":
            raise UserError(f"{here}the hub's cache has no model {name!r}; HF_HUB_OFFLINE is set; {way_out}") from None
    except GatedRepoError:
        raise UserError(f"the hub gives {kind} {name!r} only to those let in: log in with `hf auth login`") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(f"{here}the hub has no {kind} {name!r}; {way_out}") from None
    except Exception:  # the connection's errors are those of whatever HTTP library the hub's client uses
        raise UserError(f"{here}the hub could not be reached for {kind} {name!r}; {way_out}") from None


def _is_cached(name: str, revision: str | None) -> bool:
    try:
        return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    except HFValidationError:
        return False


def why_not_loaded(error: Exception) -> str:
    """Why transformers has not loaded a model, in one line.

    Args:
        error: What it raised.
    """
    if isinstance(error, UnpicklingError):
        return "its weights are a pickle of more than tensors, which could run code"
    reason = one_line(error)
    if "trust_remote_code" in reason:
        return "it comes with code of its own, which ttlora does not run"
    return reason
