import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttlora.experiments.search.domains import Choices, Range, read_domain

PLACES = st.floats(0, 1)


@given(st.floats(1e-6, 1e3), st.floats(1.001, 1e4), st.sampled_from(["linear", "log"]), PLACES)
def test_numbers_of_a_range_lie_in_it_and_read_well(low, ratio, scale, place):
    domain = Range(low, low * ratio, scale)
    value = domain.at(place)
    assert domain.low <= value <= domain.high
    assert value in (domain.low, domain.high) or value == float(f"{value:.2e}")
    assert domain.settle(value) == value
    points = domain.grid()
    assert list(points) == sorted(set(points))
    assert len(points) <= 5


@given(st.integers(1, 100), st.integers(1, 1000), st.sampled_from(["linear", "log"]), PLACES)
def test_whole_numbers_stay_whole(low, width, scale, place):
    domain = Range(low, low + width, scale, whole=True)
    assert isinstance(domain.at(place), int)
    assert low <= domain.at(place) <= low + width
    assert domain.count == width + 1


def test_scales_are_even():
    assert Range(1e-4, 1e-2, "log").grid() == (1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2)
    assert Range(0.0, 0.2).grid() == (0, 0.05, 0.1, 0.15, 0.2)
    assert Range(8, 64, "log", whole=True).grid() == (8, 13, 23, 38, 64)


@pytest.mark.parametrize(
    ("value", "ranks"),
    [
        ({"from": 1, "to": 4}, (1, 2, 3, 4)),
        ({"from": 1, "to": 8, "scale": "log"}, (1, 2, 3, 4, 6, 8)),
        ({"from": 1, "to": 1000}, None),
    ],
)
def test_a_range_of_ranks_is_a_list_of_them(value, ranks):
    domain = read_domain("r", value, "s.yaml")
    assert isinstance(domain, Choices)
    assert len(domain.values) <= 32
    assert (domain.values[0], domain.values[-1]) == (value["from"], value["to"])
    assert ranks is None or domain.values == ranks


def test_a_value_twice_is_one_choice():
    assert read_domain("alpha", [1, 2, 1.0], "s.yaml") == Choices((1.0, 2.0))


@given(st.lists(st.integers(), min_size=1, unique=True), st.floats(0, 1, exclude_max=True))
def test_every_place_is_a_choice(values, place):
    assert Choices(tuple(values)).at(place) in values
