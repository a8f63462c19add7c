"""LoRTA against the dense sums of its definition, and what it counts."""

import pytest
import torch
import transformers as tf
from peft import get_peft_model

from tests.tuners.shared.methods import layers_of
from ttlora import LortaConfig
from ttlora.tuners.lorta.config import head_dim_of

WIDTH, HEADS, LAYERS, R = 24, 4, 3, 5
TYPES = ("k_proj", "o_proj", "q_proj", "v_proj")
# key and value of grouped-query attention have half of the heads
ROWS = {"q_proj": WIDTH, "k_proj": WIDTH // 2, "v_proj": WIDTH // 2, "o_proj": WIDTH}
SIZES = {f"layers.{layer}.{name}": (ROWS[name], WIDTH) for layer in range(LAYERS) for name in TYPES}


@pytest.fixture
def updates():
    return LortaConfig(r=R, alpha=3.0, head_dim=WIDTH // HEADS).own_updates(SIZES)


def dense(entries, layer, type_, heads):
    """``(α / r) concat_h A diag(C_h ∘ C_m ∘ C_l) B``, as the paper has it: inputs x outputs."""
    sizes = (WIDTH // HEADS, HEADS, LAYERS, len(TYPES), WIDTH)
    B, of_heads, of_layers, of_types, A = (part.view(-1, R) for part in entries.split([k * R for k in sizes]))
    blocks = [A @ torch.diag(of_heads[head] * of_types[type_] * of_layers[layer]) @ B.T for head in range(heads)]
    return 3.0 / R * torch.cat(blocks, dim=1)


def test_the_update_is_the_papers(updates):
    (shared,) = {update.shared for update in updates.values()}
    entries = shared.start(zero=False).double()
    A, stacked = shared.factors(entries)
    for (name, update), place in zip(updates.items(), range(len(SIZES)), strict=True):
        expected = dense(entries, *divmod(place, len(TYPES)), heads=SIZES[name][0] * HEADS // WIDTH).T
        own_A, B = update.factors(entries)
        torch.testing.assert_close(B @ own_A, expected)
        torch.testing.assert_close(stacked[update.place][: update.out_features] @ A, expected)
        torch.testing.assert_close(update.norm(entries), expected.norm())
        assert (own_A.shape, B.shape) == ((R, WIDTH), (len(expected), R))


def test_stacked_adapters(updates):
    update = updates["layers.1.v_proj"]
    entries = torch.stack([update.shared.start(zero=False) for _ in range(2)])
    A, B = update.factors(entries)
    for number, flat in enumerate(entries):
        torch.testing.assert_close(B[number] @ A[number], torch.matmul(*reversed(update.factors(flat))))


def test_gradients_are_those_of_the_dense_sum(updates):
    update = updates["layers.2.q_proj"]
    entries = update.shared.start(zero=False).double().requires_grad_()
    weight = torch.randn(WIDTH, WIDTH, dtype=torch.float64)
    (dense(entries, 2, 2, HEADS).T * weight).sum().backward()
    expected, entries.grad = entries.grad, None
    A, B = update.factors(entries)
    (B @ A * weight).sum().backward()
    torch.testing.assert_close(entries.grad, expected)


@pytest.mark.parametrize(("width", "heads", "layers", "counts"), [(768, 12, 12, 860), (4096, 32, 32, 4292)])
def test_parameters_are_the_papers(width, heads, layers, counts):
    sizes = {f"layers.{layer}.{name}": (width, width) for layer in range(layers) for name in "qkvo"}
    (shared,) = {u.shared for u in LortaConfig(r=3, head_dim=width // heads).own_updates(sizes).values()}
    assert shared.parameters == 3 * counts == 3 * (width + width // heads + heads + layers + 4)


def test_start(updates):
    (shared,) = {update.shared for update in updates.values()}
    A, B = shared.factors(shared.start(zero=True))
    assert not B.count_nonzero()
    # as long as the rows of LoRA's
    assert A.square().sum(1).mean().item() == pytest.approx(1 / 3, rel=0.3)


def test_blocks_that_do_not_divide_the_outputs_are_whole(architectures):
    model = get_peft_model(architectures["llama"].build(), LortaConfig(r=2, target_modules="all-linear"))
    assert model.peft_config["default"].head_dim == 6
    shapes = {layer.updates["default"].shared.shape.dims for layer in layers_of(model).values()}
    # query, key, value and output; gate and up of 40 outputs; down of 40 inputs
    assert shapes == {(6, 4, 2, 4, 24), (40, 1, 2, 2, 24), (6, 4, 2, 1, 40)}


def test_without_a_model_config_all_outputs_are_one_head(mlp):
    model = get_peft_model(mlp(), LortaConfig(r=2, target_modules=["0", "2"]))
    shapes = {layer.updates["default"].shared.shape.dims for layer in layers_of(model).values()}
    assert shapes == {(24, 1, 1, 1, 16), (8, 1, 1, 1, 24)}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (tf.BertConfig(), 64),
        (tf.LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=32), 32),
        (tf.T5Config(d_kv=48), 48),
        (tf.GPT2Config(n_embd=96, n_head=4), 24),
        (None, None),
    ],
)
def test_the_width_of_a_head(config, expected):
    assert head_dim_of(config) == expected


def test_ranks_that_take_more_than_the_weights():
    with pytest.raises(
        ValueError, match=r"layers.0.k_proj: r=5000 takes [\d,]+ parameters for a group of weights of 5,184"
    ):
        LortaConfig(r=5000, head_dim=6).own_updates(SIZES)
