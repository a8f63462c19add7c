"""One run: from a recipe to an adapter folder and a result record."""

import gc
import importlib.metadata
import platform
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from ttlora.finetune.base import Base, load_base
from ttlora.finetune.columns import told_columns, with_usual_columns
from ttlora.finetune.data import Encoded, TaskData, load_data
from ttlora.finetune.folder import RunFolder
from ttlora.finetune.library_names import require_optimizer, require_trackers
from ttlora.finetune.machine import (
    cpu_threads,
    peak_memory_bytes,
    reset_peak_memory,
    telling_of_memory,
)
from ttlora.finetune.measure import measure
from ttlora.finetune.methods import Method, count_parameters, find_method
from ttlora.finetune.metrics import TEXT_METRICS
from ttlora.finetune.objective import Objective
from ttlora.finetune.objectives import objective_of
from ttlora.finetune.prepared import Prepared
from ttlora.finetune.processes import Processes, started_processes
from ttlora.finetune.progress import ProgressReport
from ttlora.finetune.quantized import entries
from ttlora.finetune.recipe import Recipe
from ttlora.finetune.shards import asked_by_launcher, require_shardable, shard
from ttlora.finetune.sharing import push, require_pushable, write_card
from ttlora.finetune.tasks import Task
from ttlora.finetune.trained import Trained, ended_early, find_trained
from ttlora.finetune.training import fit, require_divisible
from ttlora.record import Record
from ttlora.whole_files import writing


def train(recipe: Recipe, quiet: bool = False) -> Record:
    """Fine-tune as the recipe says, and measure what was saved.

    The weights of the lowest validation loss are saved, loaded into a fresh base model, and measured there.

    Args:
        recipe: What to do. With ``resume`` a run that was stopped goes on, and one that is finished is left alone.
        quiet: Report nothing on the way.

    Returns:
        The result record, as it stands in ``result.json`` in the output folder.

    Raises:
        UserError: The recipe cannot be carried out; nothing was written.
        RunError: The training failed.

    Examples:
        >>> import ttlora
        >>> recipe = ttlora.Recipe(
        ...     model="model",
        ...     task="file",
        ...     train="train.jsonl",
        ...     validation="validation.jsonl",
        ...     output="reviews",
        ...     epochs=2,
        ... )
        >>> record = ttlora.train(recipe, quiet=True)
        >>> record.primary_metric, record.epochs
        ('accuracy', 2)
    """
    method = find_method(recipe.method)
    completed = method.complete(replace(recipe, shard=asked_by_launcher() or recipe.shard))
    require_shardable(completed)
    folder = RunFolder(completed.output)
    processes = Processes()
    with processes.agreed():
        recipe = with_usual_columns(completed)
        if processes.is_first:
            folder.require_usable(recipe)
    if processes.told(folder.result.exists()):
        return _result_of_finished(folder)
    reset_peak_memory()
    with telling_of_memory(), writing(folder.path), cpu_threads(recipe.threads), ExitStack() as claimed:
        with processes.agreed():
            data = load_data(recipe)
            require_divisible(recipe, data, processes)
            base = method.adapt(load_base(recipe.model, data.task, recipe.seed, method.form(recipe)), recipe)
            objective = objective_of(data.task, base, recipe)
            require_optimizer(recipe)
            require_trackers(recipe)
            if recipe.push_to_hub is not None:
                require_pushable(recipe.push_to_hub)
            # before anything is written: a row that the model can do nothing with ends the run
            rows = objective.encode_data(data)
        with processes.agreed():
            if processes.is_first:
                claimed.enter_context(folder.claim(recipe, data))
        with ProgressReport(_shown_metric(data.task), quiet or not processes.is_first) as report:
            if processes.told(folder.result.exists()):
                return _result_of_finished(folder)
            trained = processes.told(find_trained(folder))
            if trained is None or not trained.ended:
                if recipe != completed:
                    report.say(told_columns(recipe))
                _announce(report, objective, rows)
                shard(objective.base, recipe, processes)
                trained = fit(objective, method, rows, recipe, folder, report, processes)
            if ended_early(trained, rows, recipe):
                waited, kept = "epochs", f"epoch {trained.best_epoch}"
                if recipe.evaluate_every is not None:
                    waited, kept = "measurements", f"step {trained.best_step}"
                report.say(f"stopped: no lower validation loss for {recipe.patience} {waited}; kept {kept}")
            # the fresh base model takes its place
            del base, objective
            gc.collect()
            record = _finish(recipe, method, folder, data, trained, processes)
        if recipe.push_to_hub is not None and processes.is_first:
            push(folder.adapter, recipe.push_to_hub)
        processes.part()
        return record


def train_epoch(recipe: Recipe, prepared: Prepared) -> Record:
    """Go on with a run for one epoch after the last whole one; after the last of all, finish it as `train` does.

    The run comes to the same numbers as with `train`.

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
    claimed = folder.claim(recipe, data)
    reset_peak_memory()
    with telling_of_memory(), writing(folder.path), cpu_threads(recipe.threads), claimed:
        trained = find_trained(folder)
        if trained is None or not trained.ended:
            base = prepared.adapt(method, recipe)
            objective = objective_of(data.task, base, recipe)
            report = ProgressReport(_shown_metric(data.task), quiet=True)
            rows = data.encoded or objective.encode_data(data)
            trained = fit(objective, method, rows, recipe, folder, report, Processes(), most=1)
        if trained.ended:
            return _finish(recipe, method, folder, data, trained, Processes(), prepared.copy_base(whole=True))
        _save(recipe, method, folder, data, trained)
        metrics = {name: trained.metrics[name] for name in data.task.metrics if name in trained.metrics}
        assert trained.loss is not None, "every epoch is measured"
        record = _record(recipe, folder, base, metrics, trained.loss, trained)
        record.write(folder.so_far)
        return record


def _result_of_finished(folder: RunFolder) -> Record:
    # a run that was killed after its last file was written has left them
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    return folder.read_result()


def _shown_metric(task: Task) -> str:
    """The metric of an epoch's line: the first that needs no generated texts, which would take too long."""
    return next(name for name in task.metrics if name not in TEXT_METRICS)


def _announce(report: ProgressReport, objective: Objective, rows: Encoded) -> None:
    base, recipe, longest = objective.base, objective.recipe, objective.max_length
    outside, head = count_parameters(base.model, base.head)
    # PEFT keeps the untrained head beside the one that trains
    weights = (weight for name, weight in base.model.named_parameters() if ".original_module." not in name)
    frozen = sum(map(entries, weights)) - outside - head
    report.say(
        f"{recipe.method} on {Path(recipe.model).name}: {outside:,} parameters train in the model and {head:,} in its "
        f"head, {frozen:,} are frozen"
    )
    report.say(
        f"task {objective.task.name}: {len(rows.training):,} training rows, {len(rows.validation):,} validation rows, "
        f"at most {longest} tokens each"
    )
    gpus = torch.cuda.device_count()
    if gpus > 1 and started_processes() == 1:
        report.say(f"1 of {gpus} GPUs is used; torchrun --nproc-per-node {gpus} -m ttlora train ... uses all")
    if recipe.shard and started_processes() == 1:
        report.say("shard: one process holds all of the model; torchrun --nproc-per-node N starts N, which divide it")
    training, validation = rows.cut
    if training or validation:
        report.say(
            f"{training:,} training rows and {validation:,} validation rows are longer than {longest} tokens and were "
            "cut (max_length)"
        )


def _save(recipe: Recipe, method: Method, folder: RunFolder, data: TaskData, trained: Trained) -> None:
    dtype = getattr(torch, str(recipe.adapter_dtype))
    folder.write_adapter(method, folder.checkpoints / trained.best, dtype, data.task)


def _finish(
    recipe: Recipe,
    method: Method,
    folder: RunFolder,
    data: TaskData,
    trained: Trained,
    processes: Processes,
    untrained: Base | None = None,
) -> Record:
    """Save the best weights, load them into `untrained` or a fresh base model, and measure them."""
    with processes.agreed():
        if processes.is_first:
            _save(recipe, method, folder, data, trained)
    with processes.agreed():
        fresh = method.load(recipe, data.task, folder.adapter, untrained)
    shard(fresh, recipe, processes)
    metrics, loss = measure(objective_of(data.task, fresh, recipe), data.validation)
    record = processes.told(_record(recipe, folder, fresh, metrics, loss, trained))
    with processes.agreed():
        if processes.is_first:
            write_card(folder.adapter, record)
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
