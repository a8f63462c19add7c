import random

import pytest

from ttlora.tuners.shared.groups import grouped, in_order, layer_and_type


@pytest.mark.parametrize(
    ("path", "layer", "type_"),
    [
        ("model.layers.12.self_attn.q_proj", "12", "model.layers.*.self_attn.q_proj"),
        ("encoder.block.3.layer.0.SelfAttention.q", "3", "encoder.block.*.layer.0.SelfAttention.q"),
        ("bert.pooler.dense", "", "bert.pooler.dense"),
        ("0", "0", "*"),
    ],
)
def test_a_layer_is_the_first_number(path, layer, type_):
    assert layer_and_type(path) == (layer, type_)


def test_places_do_not_depend_on_the_order_in_which_modules_come():
    paths = [f"h.{layer}.{name}" for layer in range(12) for name in ("q", "v")]
    shuffled = random.Random(0).sample(paths, len(paths))
    (group,) = grouped(dict.fromkeys(shuffled, 0)).values()
    assert group.modules == tuple(paths)
    assert group.layers == tuple(map(str, range(12)))
    assert group.types == ("h.*.q", "h.*.v")
    assert group.places == tuple(range(24))
    assert sorted(shuffled, key=in_order) == paths


def test_a_layer_without_one_of_the_types_leaves_its_place_empty():
    (group,) = grouped(dict.fromkeys(["h.0.q", "h.0.v", "h.2.v", "h.5.q"], 0)).values()
    assert (group.layers, group.types, group.places) == (("0", "2", "5"), ("h.*.q", "h.*.v"), (0, 1, 3, 4))


def test_weights_of_other_sizes_are_groups_of_their_own():
    groups = grouped({"h.0.q": (4, 4), "h.0.v": (2, 4), "h.1.q": (4, 4), "h.1.v": (2, 4)})
    assert {key: group.modules for key, group in groups.items()} == {
        (4, 4): ("h.0.q", "h.1.q"),
        (2, 4): ("h.0.v", "h.1.v"),
    }
