"""The shapes in annotations are checked while the tests run: a wrong one is an error."""

import jaxtyping
import pytest
import torch

from ttlora.tensor_train.train import contract_rows


def test_a_wrong_shape_is_an_error():
    flat = torch.zeros(6)
    assert contract_rows(flat, [torch.zeros(1, 2, 3)])[0].shape == (2, 3)
    with pytest.raises(jaxtyping.TypeCheckError, match="cores"):
        contract_rows(flat, [torch.zeros(2, 3)])
