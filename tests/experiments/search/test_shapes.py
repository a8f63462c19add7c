from ttlora.experiments.search.shapes import generate_shapes
from ttlora.tuners.tt_lora import TTLoraConfig, resolve_update


def test_layers_that_are_not_alike_have_shapes_by_their_whole_names():
    sizes = {"layers.0.up": (8, 4), "layers.1.up": (4, 4)}
    shapes = generate_shapes(sizes)
    assert len(shapes) == 2
    for shape in shapes:
        config = TTLoraConfig(shape_pattern=shape)
        for name, size in sizes.items():
            assert resolve_update(config, name, *size).shape.boundary is not None


def test_a_prime_has_one_shape():
    assert generate_shapes({"up": (97, 89)}) == [[97, 89]]
