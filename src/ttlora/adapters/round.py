"""An adapter at smaller TT-ranks, and what that costs."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ttlora.adapters.read import Adapter, read_adapter, require_tt_lora
from ttlora.adapters.write import write_adapter
from ttlora.errors import UserError
from ttlora.tensor_train import TensorTrain, TTShape, Update
from ttlora.text_forms import parse_parameters
from ttlora.tuners.meta_tt import MetaTTConfig
from ttlora.tuners.tt_lora import TTLoraConfig, saved_update
from ttlora.tuners.tt_lora.config import by_pattern, saved_name
from ttlora.values import is_number, is_whole, shown
from ttlora.whole_files import require_free


@dataclass(frozen=True)
class Approximation:
    """How near an approximation comes to an update.

    Attributes:
        name: The module's name.
        shape: Dims and ranks of its train.
        parameters_before: How many numbers held the update before.
        norm: Frobenius norm of the update before, ``‖ΔW‖``.
        error: ``‖ΔW - ΔW'‖``, the rounding to the file's number format included.
    """

    name: str
    shape: TTShape
    parameters_before: int
    norm: float
    error: float

    @property
    def relative_error(self) -> float:
        """``‖ΔW - ΔW'‖ / ‖ΔW‖``; 0 where both are zero."""
        return self.error / self.norm if self.norm else 0.0


@dataclass(frozen=True)
class TrainAdapter:
    """An adapter of TT-LoRA or MetaTT that was made from another adapter.

    Attributes:
        config: Its config.
        tensors: Its tensors by their key in the file.
        modules: How near each update is to what it was made from.
    """

    config: TTLoraConfig | MetaTTConfig
    tensors: Mapping[str, Tensor]
    modules: Sequence[Approximation]

    @property
    def relative_error(self) -> float:
        """``√Σ ‖ΔW - ΔW'‖² / √Σ ‖ΔW‖²`` over all modules."""
        norm = math.hypot(*(module.norm for module in self.modules))
        return math.hypot(*(module.error for module in self.modules)) / norm if norm else 0.0


def round(
    adapter: str | Path,
    output: str | Path,
    r: int | None = None,
    tolerance: float | None = None,
    parameters: int | str | None = None,
) -> TrainAdapter:
    """Write an adapter of TT-LoRA or MetaTT at smaller TT-ranks (Oseledets 2011, Algorithm 2).

    For MetaTT, whose trains run over layers and types, that is the sweep over neighbouring cores (contract, SVD, cut)
    of DMRG: trained on at the smaller ranks, with a fresh optimiser, it is the paper's rank schedule.

    Args:
        adapter: A folder with a saved adapter of TT-LoRA or MetaTT, or the output folder of `train`.
        output: Folder for the smaller adapter; empty or not there yet.
        r: Largest TT-rank that is left.
        tolerance: Largest relative error of each update, such as 0.01, in place of `r`.
        parameters: In place of both, how many parameters are left in all, or their size in 16 bit, such as 8KB. What
            counts least in all updates together goes (`ranks_within`).

    Returns:
        What was written, with the error of each update.

    Raises:
        UserError: There is no such adapter, or nothing to round, or the output is in use.

    Examples:
        >>> import ttlora
        >>> smaller = ttlora.round("adapter", "adapter-of-rank-1", r=1)
        >>> max(max(module.shape.ranks) for module in smaller.modules)
        1
    """
    require_approximation(r, tolerance)
    wanted = {"r": r, "tolerance": tolerance, "parameters": parameters}
    given = [name for name, value in wanted.items() if value is not None]
    if not given:
        raise UserError("none of `r`, `tolerance` and `parameters` is given: give one, which says how far to round")
    if len(given) > 1:
        raise UserError(f"`{given[0]}` and `{given[1]}` are both given: give one of them")
    budget = None if parameters is None else parse_parameters("`parameters`", str(parameters))
    path = require_free(output)
    rounded = round_adapter(read_adapter(adapter), r, tolerance or 0.0, budget)
    how = f"Another adapter at smaller TT-ranks, with a relative error of {rounded.relative_error:.1e}."
    write_adapter(path, rounded.config, rounded.tensors, how)
    return rounded


def require_approximation(r: int | None, tolerance: float | None) -> None:
    """Check the two values that say how near an approximation has to come.

    Raises:
        UserError: A value is out of range, or both are given.
    """
    if r is not None and tolerance is not None:
        raise UserError("`r` and `tolerance` are both given: give one of them")
    if r is not None and not (is_whole(r) and r >= 1):
        raise UserError(f"`r` is {shown(r)}: a rank is a whole number from 1 on")
    if tolerance is not None and not (is_number(tolerance) and 0 < tolerance < 1):
        raise UserError(f"`tolerance` is {shown(tolerance)}, and has to be a number between 0 and 1, such as 0.01")


def round_adapter(
    adapter: Adapter, r: int | None = None, tolerance: float = 0.0, parameters: int | None = None
) -> TrainAdapter:
    """The adapter at smaller TT-ranks (Oseledets 2011, Algorithm 2), in the number format it was saved in.

    Args:
        adapter: A checked folder of an adapter of TT-LoRA or MetaTT.
        r: Bound on the TT-ranks; ranks below it stay. None: the ranks that ``tolerance`` needs.
        tolerance: Bound on the relative error of each module's update, as long as ``r`` does not bind.
        parameters: Bound on the number of parameters of all modules.

    Raises:
        UserError: It is of another method, an update is not finite or has a scale of 0, or no rank is above ``r``, or
            it has no more parameters than it may have, or would have more at rank 1.
    """
    config = adapter.config if isinstance(adapter.config, MetaTTConfig) else require_tt_lora(adapter, "round")
    trains = {}
    for name in adapter.modules:
        update = _update(config, name)
        if not update.scale:
            raise UserError(
                f"the update of '{name}' has the scale 0 (alpha): it is zero, and there is nothing to round"
            )
        trains[name] = update.acting_train(adapter.entries(name).double())
        require_finite(name, trains[name])
    largest = max(max(train.shape.ranks) for train in trains.values())
    if r is not None and r >= largest:
        raise UserError(f"`r` is {r}, and the adapter's largest TT-rank is {largest}: there is nothing to round")
    config = copy.deepcopy(config)
    if config.init_weights == "dota":
        config.init_weights = True  # what is written is one train, and no difference of two
    bounds = {name: [min(rank, r or rank) for rank in train.shape.ranks[1:-1]] for name, train in trains.items()}
    if parameters is not None:
        bounds = ranks_within(parameters, trains)
    rounded = {name: train.round(bounds[name], tolerance) for name, train in trains.items()}
    write_ranks(config, {name: train.shape for name, train in rounded.items()})
    tensors = {key: adapter.load(key) for key in adapter.others}
    modules = []
    for name, (key, *_) in adapter.modules.items():
        before = sum(info.parameters for info in adapter.modules[name].values())
        dtype = adapter.load(key).dtype
        tensors[key], module = approximate(config, name, rounded[name], dtype, of=trains[name], parameters=before)
        modules.append(module)
    return TrainAdapter(config, tensors, modules)


def require_finite(name: str, train: TensorTrain) -> None:
    """Refuse a train that is not finite.

    Args:
        name: The module's name.
        train: Its train.

    Raises:
        UserError: Entries are not finite, or so large that the norm is not.
    """
    if not math.isfinite(train.norm().item()):
        raise UserError(f"the update of '{name}' is not finite: the training diverged, or the file is damaged")


def ranks_within(parameters: int, trains: Mapping[str, TensorTrain]) -> dict[str, list[int]]:
    """The inner TT-ranks of each train, so that all have at most so many parameters and lose little.

    From the full ranks on, that bond's rank is lowered by one whose smallest singular value squared, over the
    parameters that this saves, is the smallest of all bonds of all trains.

    Args:
        parameters: How many parameters all trains may have together.
        trains: Module name to its update.

    Raises:
        UserError: They have no more than that, or more at rank 1.
    """
    costs = {name: [(S**2).tolist() for S in train.singular_values()] for name, train in trains.items()}
    ranks = {name: list(train.shape.ranks) for name, train in trains.items()}
    dims = {name: train.shape.dims for name, train in trains.items()}
    size = sum(train.shape.parameters for train in trains.values())
    if size <= parameters:
        raise UserError(f"`parameters` is {parameters:,}, and the adapter has {size:,}: there is nothing to round")
    if (smallest := sum(map(sum, dims.values()))) > parameters:
        raise UserError(f"`parameters` is {parameters:,}, and at rank 1 the adapter would still have {smallest:,}")

    def saved(name: str, bond: int) -> int:
        r, k = ranks[name], dims[name]
        return r[bond - 1] * k[bond - 1] + k[bond] * r[bond + 1]

    def worth(place: tuple[str, int]) -> float:
        name, bond = place
        worth: float = costs[name][bond - 1][ranks[name][bond] - 1] / saved(name, bond)
        return worth

    while size > parameters:
        places = ((name, bond) for name in ranks for bond in range(1, len(dims[name])) if ranks[name][bond] > 1)
        name, bond = min(places, key=worth)
        size -= saved(name, bond)
        ranks[name][bond] -= 1
    return {name: of_train[1:-1] for name, of_train in ranks.items()}


def _update(config: TTLoraConfig | MetaTTConfig, name: str) -> Update:
    """What the cores that are saved under a module's name mean."""
    return config.saved_train(name) if isinstance(config, MetaTTConfig) else saved_update(config, name)


def write_ranks(config: TTLoraConfig | MetaTTConfig, shapes: Mapping[str, TTShape]) -> None:
    """Set the ranks in a config that has sizes and dims: one ``r`` if it gives each module the ranks of its shape.

    Args:
        config: The config; its ranks are replaced.
        shapes: Module name to its shape.
    """
    own = "ranks" if isinstance(config, MetaTTConfig) else "rank_pattern"
    setattr(config, own, {})
    config.r = max(max(shape.ranks) for shape in shapes.values())
    try:
        if all(_update(config, name).shape == shape for name, shape in shapes.items()):
            return
    except ValueError:
        pass  # one rank for all bonds would make a train larger than its matrix
    ranks = {name: list(shape.ranks[1:-1]) for name, shape in shapes.items()}
    if isinstance(config, MetaTTConfig):
        config.ranks = {config.size_of(name): of_train for name, of_train in ranks.items()}
    else:
        config.rank_pattern = by_pattern({saved_name(config, name): of_train for name, of_train in ranks.items()})


def approximate(
    config: TTLoraConfig | MetaTTConfig,
    name: str,
    train: TensorTrain,
    dtype: torch.dtype,
    of: TensorTrain,
    parameters: int,
) -> tuple[Tensor, Approximation]:
    """The entries to save for a module whose update is to be the matrix of ``train``, and how near they come.

    Args:
        config: The config of the adapter to be saved.
        name: The module's name.
        train: A train of the ranks that the config gives the module.
        dtype: Number format of the entries.
        of: The train that is approximated.
        parameters: How many numbers held it before.
    """
    update = _update(config, name)
    entries = update.entries_of(train).to(dtype)
    held = update.acting_train(entries.double())
    return entries, Approximation(name, update.shape, parameters, of.norm().item(), (of - held).norm().item())
