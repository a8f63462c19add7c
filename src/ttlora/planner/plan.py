"""The plan of an adapter: which matrices it adapts, with which shapes, and what that costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ttlora.errors import UserError
from ttlora.models.architectures import BUILT_IN
from ttlora.models.skeleton import build_skeleton
from ttlora.planner.budget import fit_budget
from ttlora.planner.matrices import BYTES_16BIT, MatrixPlan, group_matrices
from ttlora.planner.shared import plan_shared
from ttlora.planner.targets import adapted_modules, resolve_targets, split_experts
from ttlora.planner.training import TrainingMemory, training_memory
from ttlora.text_forms import parse_bytes, parse_names, parse_shape
from ttlora.tuners.targets import require_matches
from ttlora.tuners.tt_lora import TTLoraConfig, resolve_update
from ttlora.values import complaint

LORA_R = 8
# those of `Recipe`
BATCH_SIZE, MAX_LENGTH = 32, 128
SMALLEST_MEMORY = 10**6

PlannedMethod = Literal["tt-lora", "meta-tt", "lorta"]


@dataclass(frozen=True)
class Plan:
    """What an adapter for a model will cost.

    Attributes:
        model: The model as it was named.
        matrices: One line for each kind of adapted matrix.
        full_parameters: Parameters of the whole model.
        notes: What was chosen where the caller left a choice.
        training: What a training takes of memory; None: that was not asked for.
        method: The adapter's method.
    """

    model: str
    matrices: tuple[MatrixPlan, ...]
    full_parameters: int
    notes: tuple[str, ...]
    training: TrainingMemory | None = None
    method: PlannedMethod = "tt-lora"

    @property
    def adapter_parameters(self) -> int:
        """Parameters of the whole adapter, without a task head."""
        return sum(matrix.total_parameters for matrix in self.matrices)

    @property
    def bytes_16bit(self) -> int:
        """Bytes of the adapter's parameters in a 16-bit format."""
        return BYTES_16BIT * self.adapter_parameters

    @property
    def lora_r8_parameters(self) -> int:
        """Parameters of a LoRA of rank 8 on the same matrices."""
        return sum(matrix.lora_parameters(LORA_R) for matrix in self.matrices)


def plan(
    model: str | Path,
    shape: str | Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    r: int | None = None,
    targets: str | Sequence[str] | None = None,
    budget: int | str | None = None,
    *,
    batch_size: int | None = None,
    max_length: int | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
    quantize: Literal["4bit", "8bit"] | None = None,
    gradient_checkpointing: bool = False,
    memory: int | str | None = None,
    method: PlannedMethod = "tt-lora",
) -> Plan:
    """Plan an adapter from a model's architecture alone; no weights are read.

    With any of the arguments from `batch_size` to `memory` the plan also says what memory a training takes.

    Args:
        model: A built-in architecture, a folder that holds `config.json`, or a name on the hub.
        shape: "auto", dims for all adapted matrices, or dims by module name ("auto" for the others), also as text, as
            in `Recipe`. None: the paper's shape where it has one for the architecture, else "auto".
        r: The TT-rank. None: the paper's where its shapes are taken, else 2; with a budget, the highest that fits.
        targets: Names of the modules to adapt, or "all-linear". None: the paper's where its shapes are taken, else what
            `TTLoraConfig` adapts by default.
        budget: Bytes of the adapter's parameters in 16 bit, or a text such as 40KB. The plan is the largest that fits.
        batch_size: Rows that are computed at a time (default: 32, as in `Recipe`).
        max_length: Tokens a row (default: 128).
        dtype: Number format of the base model. None: that of its config, or else bfloat16 for a causal model.
        quantize: Bits of the base model's weights. None: they are not quantised.
        gradient_checkpointing: Whether activations are computed again in the backward pass.
        memory: The memory that is there, in bytes or as 24GB.
        method: "tt-lora", which all of the above is said of, or "meta-tt" or "lorta": they take no budget, and by
            default their rank is 8 and their targets are query and value; `shape` is that of `MetaTTConfig`.

    Raises:
        UserError: The model is not known, its modules do not fit the targets or the shape, or the budget is too small.

    Examples:
        >>> import ttlora
        >>> plan = ttlora.plan("llama2-7b")
        >>> plan.adapter_parameters, plan.lora_r8_parameters
        (112640, 4194304)
        >>> ttlora.plan("model", targets="query,value", budget="2KB").bytes_16bit <= 2000
        True
        >>> ttlora.plan("model", batch_size=8, max_length=32, memory="1GB").training.fits
        True
    """
    model = str(model)
    if isinstance(shape, str):
        shape = parse_shape(shape)
    if isinstance(targets, str):
        targets = parse_names(targets)
        if not targets:
            raise UserError("`targets` is empty: name modules, as q_proj,v_proj, or leave it out")
    if isinstance(budget, str):
        budget = parse_bytes("`budget`", budget)
    if isinstance(memory, str):
        memory = parse_bytes("`memory`", memory)
    for name, count in (("r", r), ("batch_size", batch_size), ("max_length", max_length), ("memory", memory)):
        if count is not None and count < 1:
            raise UserError(f"`{name}` is {count}, and has to be at least 1")
    if memory is not None and memory < SMALLEST_MEMORY:
        raise UserError(f"`memory` is {memory:,} bytes, in which no model trains: write 24GB, or 24GiB")
    if problem := complaint("`method`", method, PlannedMethod):
        raise UserError(problem)
    if budget is not None and method != "tt-lora":
        raise UserError("`budget` goes with `method` tt-lora alone: leave it out, and choose `r`")
    skeleton = build_skeleton(model)
    full_parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    notes: list[str] = []
    config: Any
    try:
        if method == "tt-lora":
            matrices, config, notes = _plan_trains(model, skeleton, shape, r, targets, budget)
        else:
            matrices, config = plan_shared(skeleton, method, shape, r, targets)
    except ValueError as error:
        raise UserError(str(error)) from error
    training = None
    if gradient_checkpointing or any(given is not None for given in (batch_size, max_length, dtype, quantize, memory)):
        size = batch_size or BATCH_SIZE, max_length or MAX_LENGTH
        training = training_memory(skeleton, config, *size, dtype, quantize, gradient_checkpointing, memory)
    return Plan(model, matrices, full_parameters, tuple(notes), training, method)


def _plan_trains(
    model: str,
    skeleton: Any,
    shape: str | Sequence[int] | Mapping[str, Sequence[int]] | None,
    r: int | None,
    targets: Sequence[str] | None,
    budget: int | None,
) -> tuple[tuple[MatrixPlan, ...], TTLoraConfig, list[str]]:
    """The matrices of a TT-LoRA adapter, its config, and what was chosen.

    Raises:
        ValueError: The targets or the shape do not fit the model.
    """
    architecture = BUILT_IN.get(model)
    paper_shapes = architecture.paper_shapes if architecture and shape is None else {}
    paper_r = architecture.paper_r if paper_shapes and architecture and r is None else None
    if targets is None and paper_shapes:
        targets = list(paper_shapes)
    targets, experts = split_experts(skeleton, targets)
    config = TTLoraConfig(
        r=r if r is not None else paper_r or TTLoraConfig.r,
        shape="auto" if shape is None or isinstance(shape, str | Mapping) else list(shape),
        shape_pattern=dict(shape) if isinstance(shape, Mapping) else paper_shapes,
        target_modules=resolve_targets(skeleton, targets),
    )
    modules = adapted_modules(skeleton, config) if targets or not experts else {}
    require_matches("shape", shape if isinstance(shape, Mapping) else {}, {**modules, **experts})
    shapes = [(name, resolve_update(config, name, *size).shape, 1) for name, size in modules.items()]
    for name, (rows, columns, count) in experts.items():
        update = resolve_update(config, name, rows, columns, None if count == 1 else count)
        shapes.append((name, update.shape, count))
    matrices = group_matrices(shapes)
    if budget is not None:
        matrices = fit_budget(matrices, budget, r, vary_dims=shape is None or shape == "auto")
        config = TTLoraConfig(
            target_modules=config.target_modules,
            shape_pattern={matrix.name: list(matrix.dims) for matrix in matrices},
            rank_pattern={matrix.name: list(matrix.shape.ranks[1:-1]) for matrix in matrices},
        )
    in_paper = [matrix.name for matrix in matrices if list(matrix.dims) == paper_shapes.get(matrix.name)]
    notes = []
    if in_paper:
        notes.append(f"shape of {', '.join(in_paper)}: the paper's for {model} (Table IV)")
    if budget is not None:
        notes.append(f"the largest adapter within {budget:,} bytes: {_describe(matrices)}")
    elif paper_r:
        notes.append(f"TT-rank {paper_r}: the paper's for {model} (Table IV)")
    return matrices, config, notes


def _describe(matrices: Sequence[MatrixPlan]) -> str:
    names: dict[str, list[str]] = {}
    for matrix in matrices:
        cores = f"{matrix.shape.order} cores of TT-rank {max(matrix.shape.ranks)}"
        names.setdefault(cores, []).append(matrix.name)
    return "; ".join(f"{cores} for {', '.join(matching)}" for cores, matching in names.items())
