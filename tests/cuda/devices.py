"""Marks of tests that need a GPU."""

import pytest
import torch

NEEDS_GPU = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
NEEDS_GPUS = [pytest.mark.cuda, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")]
# as a parameter beside "cpu"
GPU = pytest.param("cuda", marks=NEEDS_GPU)
