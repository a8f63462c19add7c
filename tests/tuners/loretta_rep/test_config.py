import pytest

from ttlora import LorettaRepConfig
from ttlora.tuners.loretta_rep.config import resolve_factors


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"r": 0}, "r=0 is not a positive integer"),
        ({"tt_rank": 2.5}, "tt_rank=2.5 is not a positive integer"),
        ({"alpha": float("nan")}, "alpha=nan is not a finite number"),
        ({"dropout": 1}, "dropout=1 is not from 0 up to, but not, 1"),
        ({"core_size": 0}, "core_size=0 is not a positive number or None"),
        ({"init_weights": "paper"}, "init_weights='paper' is not True or False"),
        ({"train_layer_norms": 1}, "train_layer_norms=1 is not True or False"),
        ({"shape": [8, 8, 12, 8]}, r"shape=\[8, 8, 12, 8\] is not 'auto' or a dict of dims"),
        ({"shape": {"768": [8, -1]}}, r"shape has \[8, -1\], and not a list"),
        ({"shape": {"768": [1] * 300}}, "and not a list of up to 256 positive integers"),
        ({"weight_sizes": {"q": [1, 2, 3]}}, "weight_sizes=.* is not a dict"),
        ({"weight_sizes": {"q(": [1, 2]}}, r"weight_sizes has 'q\(', which is no name"),
        ({"weight_sizes": {"q": 5}}, "weight_sizes=.* is not a dict"),
        ({"target_modules": "q", "layers_to_transform": 1}, "layers_to_transform needs target_modules as a list"),
        ({"target_modules": ["q"], "layers_pattern": "layer"}, "for layers_to_transform, which is missing"),
    ],
)
def test_values_that_cannot_be_meant(values, complaint):
    with pytest.raises(ValueError, match=complaint):
        LorettaRepConfig(**values)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"shape": {"24": [8, 8]}}, r"layer.q: shape \[8, 8\] has the product 64, but the 24 x 8 matrix has 192"),
        ({"r": 32}, "layer.q: r=32 is more than the rank of its 24 x 16 weight; lower r"),
        (
            {"shape": {"24": [24, *[1] * 99, 8]}, "tt_rank": 8},
            "layer.q: shape .* takes 6,592 parameters for a factor of 192 entries; lower tt_rank",
        ),
        ({"weight_sizes": {"q": [24, 24]}}, "layer.q is 24 x 16, but this adapter was made .* it is 24 x 24"),
    ],
)
def test_shapes_that_do_not_fit(values, complaint):
    with pytest.raises(ValueError, match=complaint):
        resolve_factors(LorettaRepConfig(**values), "layer.q", 24, 16)
