"""The largest adapter within a budget."""

from itertools import count

import pytest

from ttlora.errors import UserError
from ttlora.planner.budget import fit_budget
from ttlora.planner.matrices import MatrixPlan
from ttlora.planner.plan import Plan
from ttlora.planner.plan import plan as make_plan
from ttlora.tensor_train import TTShape
from ttlora.text_forms import parse_bytes


def matrices(*sizes: tuple[int, int], count: int = 2) -> tuple[MatrixPlan, ...]:
    return tuple(MatrixPlan("w", TTShape.build(*size), count) for size in sizes)


def size(chosen: tuple[MatrixPlan, ...]) -> int:
    return 2 * sum(matrix.total_parameters for matrix in chosen)


@pytest.mark.parametrize("budget", [200, 500, 1_000, 3_000, 10_000, 1_000_000])
def test_no_higher_rank_of_the_same_dims_fits(budget: int) -> None:
    start = matrices((48, 36), (24, 7))
    chosen = fit_budget(start, budget, r=None, vary_dims=False)
    assert [matrix.shape.dims for matrix in chosen] == [matrix.shape.dims for matrix in start]
    sizes = []
    for r in count(1):
        shapes = [TTShape.build(m.shape.out_features, m.shape.in_features, m.shape.dims, r) for m in start]
        sizes.append(2 * sum(2 * shape.parameters for shape in shapes))
        if sizes[-1] > budget or (r > 1 and sizes[-1] == sizes[-2]):
            break
    assert size(chosen) == max(total for total in sizes if total <= budget)


@pytest.mark.parametrize("budget", [150, 200, 500, 1_000, 3_000, 10_000])
def test_varying_dims_never_gives_less(budget: int) -> None:
    start = matrices((48, 36), (24, 8))
    chosen = fit_budget(start, budget, r=None, vary_dims=True)
    assert size(chosen) <= budget
    try:
        assert size(chosen) >= size(fit_budget(start, budget, r=None, vary_dims=False))
    except UserError:
        assert sum(m.shape.order for m in chosen) > sum(m.shape.order for m in start)
    assert all(matrix.shape.boundary is not None for matrix in chosen)


def test_a_given_rank_is_kept() -> None:
    chosen = fit_budget(matrices((64, 64), (256, 64)), 1_200, r=2, vary_dims=True)
    assert {max(matrix.shape.ranks) for matrix in chosen} == {2}
    assert size(chosen) <= 1_200


def test_the_smallest_adapter_is_named_and_fits() -> None:
    start = matrices((64, 64), count=1)
    smallest = 2 * 2 * 12  # rank 1, twelve dims of 2
    with pytest.raises(UserError, match=f"{smallest - 1}, and too small: the smallest adapter takes {smallest} bytes"):
        fit_budget(start, smallest - 1, r=None, vary_dims=True)
    chosen = fit_budget(start, smallest, r=None, vary_dims=True)
    assert size(chosen) == smallest


@pytest.mark.parametrize(
    ("r", "vary_dims", "message"),
    [(3, True, "smallest adapter of TT-rank 3 takes"), (None, False, "smallest adapter of this shape takes")],
)
def test_what_was_fixed_is_named(r: int | None, vary_dims: bool, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_budget(matrices((64, 64)), 10, r=r, vary_dims=vary_dims)


def budget_plan(budget: int, **arguments: object) -> Plan:
    plan = make_plan("llama2-7b", budget=budget, **arguments)
    assert plan.bytes_16bit <= budget
    return plan


def test_the_papers_adapter_fits_its_own_size() -> None:
    plan = budget_plan(225_280)
    assert plan.bytes_16bit == 225_280
    assert plan.notes[1] == "the largest adapter within 225,280 bytes: 6 cores of TT-rank 5 for q_proj, v_proj"


def test_a_shape_is_kept() -> None:
    plan = budget_plan(100_000, shape=[64] * 4, targets=["q_proj", "v_proj"])
    assert {matrix.shape.dims for matrix in plan.matrices} == {(64,) * 4}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("40KB", 40_000),
        ("40 kb", 40_000),
        ("220KiB", 225_280),
        ("1MB", 1_000_000),
        ("1.5MiB", 1_572_864),
        ("77", 77),
        ("9B", 9),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes("--budget", text) == size


@pytest.mark.parametrize("text", ["", "KB", "0", "0KB", "-1KB", "4TB", "1e3", "40KB 2", "9" * 400, "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UserError, match=f"^--budget '{text}' is no size; write 40KB"):
        parse_bytes("--budget", text)
