"""What the published adapters cost in the paper's models (Anjum et al. 2024, Tables I and II)."""

from collections import Counter

import pytest
from peft import get_peft_model

from ttlora import BottleneckConfig
from ttlora.models.skeleton import build_skeleton

# of a square of 4096 x 64 there; "auto" has [16, 16, 16, 8, 8]
LORETTAS_LLAMA = [16, 16, 16, 4, 4, 4]


def counts(model, **config):
    """Trained parameters of the bottlenecks and of the norms."""
    adapted = get_peft_model(build_skeleton(model), BottleneckConfig(**config))
    found = Counter()
    for name, p in adapted.named_parameters():
        if p.requires_grad:
            found["bottleneck" if ".bottleneck_" in name else "norms"] += p.numel()
    return found["bottleneck"], found["norms"]


@pytest.mark.parametrize(
    ("model", "config", "bottlenecks", "norms"),
    [
        # 24 adapters of 2 x 8 x 768 + 8 + 768, 25 norms of 2 x 768
        ("deberta-base", {"r": 8}, 313_536, 38_400),
        # 24 adapters of two trains of 780 and 64 + 768 biases
        ("deberta-base", {"r": 64, "tt_rank": 5}, 57_408, 38_400),
        # 32 adapters of two trains of 1,076 and 64 + 4096 biases, 65 norms of 4096
        ("llama2-7b", {"r": 64, "tt_rank": 5, "shape": LORETTAS_LLAMA}, 201_984, 266_240),
        ("llama2-7b", {"r": 64, "tt_rank": 5}, 204_800, 266_240),
        # 64 adapters of 2 x 64 x 4096 + 64 + 4096
        ("llama2-7b", {"r": 64}, 33_820_672, 266_240),
    ],
)
def test_parameters(model, config, bottlenecks, norms):
    assert counts(model, **config) == (bottlenecks, norms)


def test_the_printed_count_of_adapters_for_deberta_holds_norms_and_the_head():
    head = sum(p.numel() for name, p in build_skeleton("deberta-base").named_parameters() if "deberta." not in name)
    assert head == 592_130
    # printed: 0.94M
    assert sum(counts("deberta-base", r=8)) + head == 944_066
