"""Random matrices' shapes, factored at random: aligned or not, with primes, dims of one, and 2 to 12 cores."""

import math
from itertools import pairwise

import torch
from hypothesis import strategies as st

from ttlora.tensor_train import TensorTrain, TTShape


@st.composite
def shapes(draw: st.DrawFn, largest: int = 48) -> TTShape:
    """A shape of a matrix of at most ``largest`` x ``largest``, cut at random into dims."""
    out_features = draw(st.integers(1, largest))
    in_features = draw(st.integers(1, largest))
    primes = prime_factors(out_features * in_features)
    if draw(st.booleans()):
        primes = prime_factors(out_features) + prime_factors(in_features)
    else:
        primes = draw(st.permutations(primes))
    order = draw(st.integers(2, 12))
    # each bin takes a run of neighbouring primes; an empty run is a dim of one
    cuts = sorted(draw(st.lists(st.integers(0, len(primes)), min_size=order - 1, max_size=order - 1)))
    bounds = [0, *cuts, len(primes)]
    dims = [math.prod(primes[a:b]) for a, b in pairwise(bounds)]
    ranks = draw(st.lists(st.integers(1, 6), min_size=order - 1, max_size=order - 1))
    return TTShape.build(out_features, in_features, dims, ranks)


def prime_factors(number: int) -> list[int]:
    factors = []
    for divisor in range(2, number + 1):
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
    return factors


@st.composite
def trains(draw: st.DrawFn, largest: int = 48) -> TensorTrain:
    shape = draw(shapes(largest))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    return TensorTrain(shape, torch.randn(shape.parameters, dtype=torch.float64, generator=generator))
