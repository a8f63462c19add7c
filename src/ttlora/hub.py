"""One question to the Hugging Face hub before its client goes to work, which retries for half a minute."""

from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

from ttlora.errors import UserError

SECONDS = 10.0


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
    api = HfApi()
    ask = api.model_info if kind == "model" else api.dataset_info
    try:
        ask(name, timeout=SECONDS)
    except OfflineModeIsEnabled:
        if kind == "model":
            raise UserError(f"the hub's cache has no model {name!r}, and HF_HUB_OFFLINE is set; {way_out}") from None
    except GatedRepoError:
        raise UserError(f"the hub gives {kind} {name!r} only to those let in: log in with `hf auth login`") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(f"the hub has no {kind} {name!r}; {way_out}") from None
    except Exception:  # the connection's errors are those of whatever HTTP library the hub's client uses
        raise UserError(f"the hub could not be reached for {kind} {name!r}; {way_out}") from None
