"""Table III: every printed shape is multiplied again, and laid on models of the family."""

import math

import pytest

from ttlora.errors import UserError
from ttlora.experiments.search.presets import PRESETS
from ttlora.experiments.search.shapes import fit_preset
from ttlora.tensor_train import TTShape

WRONG = {("roberta", (8, 6, 2, 2, 2, 2, 2, 2, 2, 6, 8)): 294_912}


@pytest.mark.parametrize(
    ("name", "dims"), [(preset.name, dims) for preset in PRESETS.values() for dims in preset.shapes]
)
def test_every_printed_shape_is_right_or_refused_by_name(name, dims):
    preset = PRESETS[name]
    size = (preset.out_features, preset.in_features)
    shapes, notes = fit_preset(preset, {"query": size})
    if product := WRONG.get((name, dims)):
        assert math.prod(dims) == product
        assert list(dims) not in shapes
        (note,) = notes
        assert f"space {name}: shape {list(dims)}, whose product is {product:,}, where the" in note
        with pytest.raises(ValueError, match=f"product {product:,}"):
            TTShape.build(*size, dims)
    else:
        assert list(dims) in shapes
        assert TTShape.build(*size, dims).dims == dims


def test_as_many_as_the_paper_prints():
    counts = {name: (len(preset.shapes), len(preset.ranks)) for name, preset in PRESETS.items()}
    assert counts == {"deberta": (6, 5), "roberta": (6, 5), "llama": (5, 8)}


@pytest.mark.parametrize(
    ("model", "space", "keys", "candidates", "smallest"),
    [
        ("deberta-base", "deberta", {}, 6 * 5 * 8 * 4, 12 * 785),
        ("roberta-base", "roberta", {}, 5 * 5 * 8 * 4, 24 * 780),
        ("llama2-7b", "llama", {"scoring": "prompt"}, 5 * 8 * 8 * 4, 64 * 64),
    ],
)
def test_the_spaces_of_the_paper_on_its_models(model, space, keys, candidates, smallest, space_of):
    found = space_of(model=model, space=space, **keys)
    assert found.count() == candidates
    assert min(adapter.parameters for adapter in found.adapters) == smallest


def test_grouped_query_attention_has_narrower_shapes():
    sizes = {"q_proj": (4096, 4096), "v_proj": (1024, 4096)}
    shapes, notes = fit_preset(PRESETS["llama"], sizes)
    assert [shape["q_proj"] for shape in shapes] == [list(dims) for dims in PRESETS["llama"].shapes]
    assert [shape["v_proj"] for shape in shapes] == [
        [32, 32, 32, 128],
        [4, 16, 16, 16, 16, 16],
        [16, 16, 4, 4, 4, 16, 16],
        [16, 8, 4, 2, 2, 4, 4, 8, 16],
        [16, 4, 4, 2, 2, 2, 2, 4, 4, 4, 16],
    ]
    assert all(TTShape.build(1024, 4096, shape["v_proj"]).boundary is not None for shape in shapes)
    assert notes == ["space llama is for 4096 x 4096: matrices with 1024 rows have its shapes with smaller row dims"]


def test_a_space_of_which_nothing_fits_is_one_line(space_of):
    with pytest.raises(UserError) as error:
        space_of(space="roberta")
    message = str(error.value)
    assert "no shape of space roberta fits model" in message
    assert "which has matrices of 24 x 24: use space auto" in message
    assert "\n" not in message
