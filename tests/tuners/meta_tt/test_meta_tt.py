"""MetaTT against the dense sums of its definition, and what it counts."""

import pytest
import torch
from peft import get_peft_model

from tests.tuners.shared.methods import layers_of
from ttlora import MetaTTConfig
from ttlora.tensor_train import TensorTrain
from ttlora.tuners.meta_tt.config import groups_of

SIZES = {f"model.layers.{layer}.self_attn.{name}": (24, 24) for layer in range(3) for name in ("q_proj", "v_proj")}
NARROW = {f"model.layers.{layer}.self_attn.k_proj": (12, 24) for layer in range(3)}
CONFIGS = {
    "whole": MetaTTConfig(r=4),
    "plain": MetaTTConfig(r=4, core_size=None, alpha=0.5),
    "auto": MetaTTConfig(r=4, shape="auto"),
    "factored": MetaTTConfig(r=4, shape={"24": [2, 3, 4], "12": [3, 4]}),
    "one mode": MetaTTConfig(r=4, joint=True),
    "ranks of their own": MetaTTConfig(ranks={"24x24": [2, 3, 4], "12x24": [3, 5]}),
}


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def entries_of(update):
    return update.shared.start(zero=False).double()


def dense(update, entries, layer, type_):
    """``α G_1 G_2[l] G_3[m] G_4`` of the acting train, entry by entry over all its modes."""
    train = update.shared.train.acting_train(entries)
    full = train.cores[0]
    for core in train.cores[1:]:
        full = torch.tensordot(full, core, dims=1)
    modes = update.shared.modes
    full = full.reshape(update.out_features, *modes, -1)
    return full[:, layer, type_] if len(modes) == 2 else full[:, layer]


def test_the_update_of_a_place_is_that_of_its_slices(config):
    updates = config.own_updates({**SIZES, **NARROW})
    for number, name in enumerate(SIZES):
        update = updates[name]
        entries = entries_of(update)
        A, B = update.factors(entries)
        places = (number, None) if config.joint else divmod(number, 2)
        expected = dense(update, entries, *places)
        torch.testing.assert_close(B @ A, expected)
        torch.testing.assert_close(update.norm(entries), expected.norm())
        assert A.shape[0] == B.shape[1] == update.shared.shape.factor_rank
    for layer, name in enumerate(NARROW):
        entries = entries_of(updates[name])
        A, B = updates[name].factors(entries)
        # one type has no mode of its own
        torch.testing.assert_close(B @ A, dense(updates[name], entries, layer, None))


def test_all_places_at_once_and_stacked_adapters(config):
    updates = config.own_updates(SIZES)
    first = next(iter(updates.values()))
    entries = torch.stack([entries_of(first) for _ in range(3)])
    for number, flat in enumerate(entries):
        A, B = first.shared.factors(flat)
        for update in updates.values():
            torch.testing.assert_close(B[update.place] @ A, torch.matmul(*reversed(update.factors(flat))))
            stacked_A, stacked_B = update.factors(entries)
            torch.testing.assert_close(stacked_B[number] @ stacked_A[number], B[update.place] @ A)


def test_gradients_are_those_of_the_dense_sum():
    updates = CONFIGS["plain"].own_updates(SIZES)
    update = updates["model.layers.1.self_attn.v_proj"]
    entries, weight = entries_of(update).requires_grad_(), torch.randn(24, 24, dtype=torch.float64)
    (dense(update, entries, 1, 1) * weight).sum().backward()
    expected, entries.grad = entries.grad, None
    A, B = update.factors(entries)
    (B @ A * weight).sum().backward()
    torch.testing.assert_close(entries.grad, expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # (out + in) r + (L + M) r²
        ({"r": 8}, 2 * 768 * 8 + (12 + 2) * 64),
        # LoTR: 2 d r + L M r²
        ({"r": 8, "joint": True}, 2 * 768 * 8 + 12 * 2 * 64),
        # rows 8, 8, 12, columns in reverse
        ({"r": 5, "shape": {"768": [8, 8, 12]}}, 2 * (8 * 5 + 8 * 25 + 12 * 25) + 14 * 25),
    ],
)
def test_parameters(options, expected):
    sizes = {f"layer.{layer}.{name}": (768, 768) for layer in range(12) for name in ("query", "value")}
    (update,) = {update.shared for update in MetaTTConfig(**options).own_updates(sizes).values()}
    assert update.parameters == expected


def test_zero_start():
    update = next(iter(CONFIGS["whole"].own_updates(SIZES).values()))
    entries = update.shared.start(zero=True)
    _, B = update.factors(entries)
    assert not B.count_nonzero()
    cores = TensorTrain(update.shared.shape, entries).cores
    assert [not core.count_nonzero() for core in cores] == [False, False, True, False]


def test_an_even_step_moves_a_layer_as_far_as_a_train_of_its_own():
    """The gain of the core that starts at zero takes the number of layers in."""
    steps = []
    for count in (1, 12):
        sizes = {f"layer.{layer}.{name}": (64, 64) for layer in range(count) for name in "qv"}
        update = next(iter(MetaTTConfig(r=4).own_updates(sizes).values()))
        norms = []
        for _ in range(20):
            entries = update.shared.start(zero=True)
            step = torch.where(entries == 0, 1e-3 * torch.randn_like(entries).sign(), 0)
            norms.append(update.norm((entries + step).double()).item())
        steps.append(sum(norms))
    assert steps[0] == pytest.approx(steps[1], rel=0.1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            MetaTTConfig(shape={"24": [5, 5]}),
            r"^model.layers.0.self_attn.q_proj: shape \[5, 5\] has the product 25, and",
        ),
        (MetaTTConfig(ranks={"24x24": [2, 2]}), r"q_proj: r=\[2, 2\] has 2 ranks, but a shape of 4 dims has 3 bonds"),
        (MetaTTConfig(r=40, shape={"24": [24, *[1] * 90]}), r"takes [\d,]+ parameters for a group of weights of 3,456"),
    ],
)
def test_what_does_not_fit(config, message):
    with pytest.raises(ValueError, match=message):
        config.own_updates(SIZES)


def test_groups_of_a_model(architectures):
    model = get_peft_model(architectures["llama"].build(), MetaTTConfig(target_modules="all-linear"))
    sizes = {name: layer.weight_sizes for name, layer in layers_of(model).items()}
    found = {size: len(group.modules) for size, group in groups_of(sizes).items()}
    assert found == {(24, 24): 4, (12, 24): 4, (40, 24): 4, (24, 40): 2}
