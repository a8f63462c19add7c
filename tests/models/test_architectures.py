"""The built-in architectures have the sizes of the published models."""

import pytest

from ttlora.models.architectures import BUILT_IN
from ttlora.models.skeleton import build_skeleton

FULL_PARAMETERS = {
    "deberta-base": 139_193_858,  # 139.19M in the paper's Table I
    "roberta-base": 124_647_170,
    "llama2-7b": 6_738_415_616,
    "llama3-8b": 8_030_261_248,
    "llama3.2-3b": 3_212_749_824,
    "llama3.1-405b": 405_853_388_800,
    "mixtral-8x7b": 46_702_792_704,
}


def test_every_architecture_is_checked() -> None:
    assert set(BUILT_IN) == set(FULL_PARAMETERS)


@pytest.mark.parametrize(("name", "parameters"), FULL_PARAMETERS.items())
def test_full_parameters_without_memory(name: str, parameters: int) -> None:
    skeleton = build_skeleton(name)
    assert sum(parameter.numel() for parameter in skeleton.parameters()) == parameters
    assert all(parameter.is_meta for parameter in skeleton.parameters())
