"""One run, from a recipe to an adapter folder and a result record."""

import gc
import importlib.metadata
import os
import platform
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from ttlora.errors import UserError
from ttlora.finetune.base import Base, load_base
from ttlora.finetune.folder import RunFolder
from ttlora.finetune.measure import cpu_threads, measure
from ttlora.finetune.memory import peak_memory_bytes, reset_peak_memory, telling_of_memory
from ttlora.finetune.methods import Method, count_parameters, find_method
from ttlora.finetune.metrics import TEXT_METRICS
from ttlora.finetune.prepared import Encoded, Prepared, TaskData, adapted
from ttlora.finetune.progress import ProgressReport
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.tasks import Task
from ttlora.finetune.training import Trained, find_trained, train
from ttlora.record import Record
from ttlora.whole_files import writing


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
    require_one_process()
    method = find_method(recipe.method)
    recipe = method.complete(recipe)
    folder = RunFolder(recipe.output)
    folder.require_usable(recipe)
    if folder.result.exists():
        return _result_of_finished(folder)
    reset_peak_memory()
    with telling_of_memory(), writing(folder.path), cpu_threads(recipe.threads):
        data = TaskData.read(recipe)
        base = load_base(recipe.model, data.task, recipe.seed, method.base_dtype)
        base = adapted(base, method, recipe)
        # before anything is written: a row that the model can do nothing with ends the run
        rows = data.encode(base, recipe)
        claimed = folder.claim(recipe, data.task, data.training, data.validation)
        with claimed, ProgressReport(_shown_metric(data.task), quiet) as report:
            if folder.result.exists():
                return _result_of_finished(folder)
            trained = find_trained(folder)
            if trained is None or not trained.ended:
                _announce(report, base, data, recipe)
                _tell_cut(report, rows, base.longest_input(recipe.max_length))
                trained = train(base, method, data.task, rows, recipe, folder, report)
            if trained.epochs < recipe.epochs:
                report.say(
                    f"stopped: no lower validation loss for {recipe.patience} epochs; kept epoch {trained.best_epoch}"
                )
            del base
            gc.collect()
            return _finish(recipe, method, folder, data, trained)


def run_epoch(recipe: Recipe, prepared: Prepared) -> Record:
    """Go on with a run for one epoch, from the last one that is whole; after the last of all, finish it as `run` does.

    The run comes to the same numbers as with `run`.

    Args:
        recipe: What to do; its model, task and seed are those that were prepared.
        prepared: Model and data.

    Returns:
        The record of the run if it ended now, which stands in ``so_far.json`` until it has ended. Its metrics are those
        of the training until then.

    Raises:
        UserError: The recipe cannot be carried out.
        RunError: The training failed.
    """
    method = find_method(recipe.method)
    recipe = replace(method.complete(recipe), resume=True)
    folder = RunFolder(recipe.output)
    data = prepared.data
    claimed = folder.claim(recipe, data.task, data.training, data.validation)
    reset_peak_memory()
    with telling_of_memory(), writing(folder.path), cpu_threads(recipe.threads), claimed:
        trained = find_trained(folder)
        if trained is None or not trained.ended:
            base = _adapted_copy(prepared, method, recipe)
            rows = data.encoded or data.encode(base, recipe)
            report = ProgressReport(_shown_metric(data.task), quiet=True)
            trained = train(base, method, data.task, rows, recipe, folder, report, epochs=1)
        if trained.ended:
            return _finish(recipe, method, folder, data, trained, prepared.copy_base(whole=True))
        folder.write_adapter(method, trained.checkpoint, getattr(torch, str(recipe.adapter_dtype)), data.task)
        metrics = {name: trained.metrics[name] for name in data.task.metrics if name in trained.metrics}
        record = _record(recipe, folder, base, metrics, trained.loss, trained)
        record.write(folder.so_far)
        return record


def _adapted_copy(prepared: Prepared, method: Method, recipe: Recipe) -> Base:
    for whole in (False, True):
        torch.set_rng_state(prepared.random_state)
        base = adapted(prepared.copy_base(whole), method, recipe)
        if not prepared.trains_shared(base.model.parameters()):
            break
    return base


def require_one_process() -> None:
    """Refuse to share work with other processes, as torchrun and accelerate launch start them.

    Raises:
        UserError: There are others.
    """
    processes = os.environ.get("WORLD_SIZE") or "1"
    if processes != "1":
        raise UserError(
            f"{processes} processes were started for one task (WORLD_SIZE={processes}), which is not possible yet: "
            "start one, without torchrun or accelerate launch"
        )


def _result_of_finished(folder: RunFolder) -> Record:
    # a run that was killed after its last file was written has left them
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    return folder.read_result()


def _shown_metric(task: Task) -> str:
    """The metric that an epoch's line shows: the primary one, but that nothing is generated after every epoch."""
    return next(name for name in task.metrics if name not in TEXT_METRICS)


def _announce(report: ProgressReport, base: Base, data: TaskData, recipe: Recipe) -> None:
    outside, head = count_parameters(base.model, base.head)
    # PEFT keeps the untrained head beside the one that trains
    weights = (weight for name, weight in base.model.named_parameters() if ".original_module." not in name)
    frozen = sum(weight.numel() for weight in weights) - outside - head
    report.say(
        f"{recipe.method} on {Path(recipe.model).name}: {outside:,} parameters train in the model and {head:,} in its "
        f"head, {frozen:,} are frozen"
    )
    report.say(
        f"task {data.task.name}: {len(data.training):,} training rows, {len(data.validation):,} validation rows, "
        f"at most {base.longest_input(recipe.max_length)} tokens each"
    )


def _tell_cut(report: ProgressReport, rows: Encoded, longest: int) -> None:
    training, validation = rows.cut
    if training or validation:
        report.say(
            f"{training:,} training rows and {validation:,} validation rows are longer than {longest} tokens and were "
            "cut (--max-length)"
        )


def _finish(
    recipe: Recipe,
    method: Method,
    folder: RunFolder,
    data: TaskData,
    trained: Trained,
    untrained: Base | None = None,
) -> Record:
    """Save the weights that were kept, and measure what was saved, in a base model that is at hand or read anew."""
    folder.write_adapter(method, trained.checkpoint, getattr(torch, str(recipe.adapter_dtype)), data.task)
    fresh = method.load(recipe.model, data.task, folder.adapter, untrained)
    metrics, loss = measure(fresh, data.validation, data.task, recipe)
    record = _record(recipe, folder, fresh, metrics, loss, trained)
    record.write(folder.result)
    folder.so_far.unlink(missing_ok=True)
    shutil.rmtree(folder.checkpoints)
    return record


def _record(
    recipe: Recipe, folder: RunFolder, base: Base, metrics: dict[str, float], loss: float, trained: Trained
) -> Record:
    outside, head = count_parameters(base.model, base.head)
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
        primary_metric=next(iter(metrics)),
        validation_loss=loss,
        best_epoch=trained.best_epoch,
        epochs=trained.epochs,
        train_seconds=trained.seconds,
        seconds_per_step=trained.step_seconds,
        peak_memory_bytes=max(peak_memory_bytes(), folder.peak_memory_so_far),
        recipe=recipe.as_dict(),
        versions={
            "python": platform.python_version(),
            **{library: importlib.metadata.version(library) for library in libraries},
        },
    )
