"""One run, from a recipe to an adapter folder and a result record."""

import gc
import importlib.metadata
import platform
import resource
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch

from ttlora.finetune.base import Base, load_base
from ttlora.finetune.data import Split, load_data
from ttlora.finetune.folder import RunFolder
from ttlora.finetune.measure import cpu_threads, measure
from ttlora.finetune.methods import Method, count_parameters, find_method, virtual_tokens
from ttlora.finetune.metrics import TEXT_METRICS
from ttlora.finetune.progress import ProgressReport
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import Task
from ttlora.finetune.training import RunError, Trained, find_trained, train
from ttlora.record import Record


def run(recipe: Recipe, quiet: bool = False) -> Record:
    """Fine-tune as the recipe says, and measure what was saved.

    The weights of the lowest validation loss are saved, loaded into a fresh base model, and measured there.

    Args:
        recipe: What to do. With ``resume`` a run that was stopped goes on, and one that is finished is left alone.
        quiet: Report nothing on the way.

    Returns:
        What ``result.json`` in the output folder holds.

    Raises:
        UserError: The recipe cannot be carried out; nothing was written.
        RunError: The training failed.
    """
    method = find_method(recipe.method)
    recipe = method.complete(recipe)
    folder = RunFolder(recipe.output)
    folder.require_usable(recipe)
    if folder.result.exists():
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
        return folder.read_result()
    try:
        with cpu_threads(recipe.threads):
            return _run(recipe, method, folder, quiet)
    except (MemoryError, RuntimeError) as error:
        # on a GPU it has a class of its own, in ordinary memory only a text
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise RunError("out of memory: lower --batch-size or --max-length") from None
        raise


def _run(recipe: Recipe, method: Method, folder: RunFolder, quiet: bool) -> Record:
    task, training, validation = load_data(recipe)
    base = load_base(recipe.model, task, recipe.seed, method.base_dtype)
    model = method.adapt(base, recipe)
    base = replace(base, model=model, virtual_tokens=virtual_tokens(model))
    with folder.claim(recipe), ProgressReport(_shown_metric(task), quiet) as report:
        trained = find_trained(folder)
        if trained is None:
            _announce(report, base, task, training, validation, recipe)
            train(base, method, task, training, validation, recipe, folder, report)
            trained = find_trained(folder)
            assert trained is not None, "a training that ends has saved a checkpoint that says so"
        if trained.epochs < recipe.epochs:
            report.say(
                f"stopped: no lower validation loss for {recipe.patience} epochs; kept epoch {trained.best_epoch}"
            )
        folder.write_adapter(method, trained.checkpoint, getattr(torch, str(recipe.adapter_dtype)), task)
        del base
        gc.collect()
        record = _measure_saved(recipe, method, folder, task, validation, trained)
        record.write(folder.result)
        shutil.rmtree(folder.checkpoints)
    return record


def _shown_metric(task: Task) -> str:
    """The metric that an epoch's line shows: the primary one, but that nothing is generated after every epoch."""
    return next(name for name in task.metrics if name not in TEXT_METRICS)


def _announce(
    report: ProgressReport, base: Base, task: Task, training: Split, validation: Split, recipe: Recipe
) -> None:
    outside, head = count_parameters(base.model, base.head)
    # PEFT keeps the untrained head beside the one that trains
    weights = (weight for name, weight in base.model.named_parameters() if ".original_module." not in name)
    frozen = sum(weight.numel() for weight in weights) - outside - head
    report.say(
        f"{recipe.method} on {Path(recipe.model).name}: {outside:,} parameters train in the model and {head:,} in its "
        f"head, {frozen:,} are frozen"
    )
    report.say(
        f"task {task.name}: {len(training):,} training rows, {len(validation):,} validation rows, "
        f"at most {base.longest_input(recipe.max_length)} tokens each"
    )


def _measure_saved(
    recipe: Recipe, method: Method, folder: RunFolder, task: Task, validation: Split, trained: Trained
) -> Record:
    fresh = method.load(recipe.model, task, folder.adapter)
    outside, head = count_parameters(fresh.model, fresh.head)
    metrics, loss = measure(fresh, validation, task, recipe)
    libraries = ("ttlora", "torch", "transformers", "peft")
    return Record(
        method=recipe.method,
        model=recipe.model,
        task=recipe.task,
        seed=recipe.seed,
        adapter_parameters=outside,
        head_parameters=head,
        trainable_parameters=outside + head,
        adapter_bytes=sum(file.stat().st_size for file in folder.adapter.glob("*.safetensors")),
        metrics=metrics,
        primary_metric=task.metrics[0],
        validation_loss=loss,
        best_epoch=trained.best_epoch,
        epochs=trained.epochs,
        train_seconds=trained.seconds,
        seconds_per_step=trained.step_seconds,
        peak_memory_bytes=_peak_memory_bytes(),
        recipe=recipe.as_dict(),
        versions={
            "python": platform.python_version(),
            **{library: importlib.metadata.version(library) for library in libraries},
        },
    )


def _peak_memory_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
