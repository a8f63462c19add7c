"""What goes with an adapter to others: its model card, and its way to the hub."""

import json
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ttlora.adapters.card import CARD, base_name, model_card, use
from ttlora.errors import RunError, UserError, one_line
from ttlora.record import Record
from ttlora.strict_yaml import dump
from ttlora.whole_files import write_text

# what says where and how fast something ran, and not what
LEFT_OUT = ("output", "threads", "report_to", "push_to_hub", "save_every")


def write_card(folder: Path, record: Record) -> None:
    """Write the model card of a run's adapter: base, data, recipe, metrics, size, and how to load it.

    Args:
        folder: The adapter folder.
        record: The run's record.
    """
    of_peft = (folder / "adapter_config.json").is_file()
    base = base_name(record.model)
    recipe = {name: value for name, value in record.recipe.items() if name not in LEFT_OUT and value is not None}
    metrics = "\n".join(f"| {name} | {value:.4f} |" for name, value in record.metrics.items())
    body = [
        f"Trained with ttlora: {record.adapter_parameters:,} parameters in the model and {record.head_parameters:,} in "
        f"its head, {record.adapter_bytes:,} bytes.",
        f"| validation | |\n| --- | ---: |\n{metrics}\n| loss | {record.validation_loss:.4f} |",
        "## Use",
        use(base, is_ours=True) if of_peft else "`ttlora predict` reads the folder of the run that this one was in.",
        "## Recipe",
        f"```yaml\n{dump(recipe)}```",
        f"Versions: {json.dumps(record.versions)[1:-1]}",
    ]
    title = f"{record.method} on {base}: {record.task}"
    write_text(folder / CARD, model_card(title, record.model, ["ttlora", record.method], body, of_peft))


def require_pushable(name: str) -> None:
    """Make sure, before a training, that the hub would take what comes of it.

    Args:
        name: Name of the repository, such as me/my-adapter.

    Raises:
        UserError: It is no name, nobody is logged in, or the hub cannot be reached.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"`push_to_hub` is {name!r}, which is no name on the hub: {one_line(error)}") from None
    try:
        HfApi().whoami()
    except Exception as error:  # of whatever HTTP library the hub's client uses
        raise UserError(
            f"`push_to_hub` {name}: the hub cannot be asked who you are ({one_line(error)}); log in with "
            "`hf auth login`, or leave it out and upload the adapter folder later"
        ) from None


def push(folder: Path, name: str) -> None:
    """Upload an adapter folder.

    Args:
        folder: The folder.
        name: Name of the repository, which is made if it is not there.

    Raises:
        RunError: The hub does not take it.
    """
    api = HfApi()
    try:
        api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Adapter trained with ttlora")
    except Exception as error:
        raise RunError(
            f"the run is done, but {folder} could not be uploaded as {name}: {one_line(error)}; "
            f"hf upload {name} {folder} tries again"
        ) from None
