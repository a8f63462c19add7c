"""What LoRETTA-rep costs in the paper's models (Anjum et al. 2024, Tables I and II), and what was printed."""

from collections import Counter

import pytest
from peft import get_peft_model

from ttlora import LorettaRepConfig
from ttlora.models.skeleton import build_skeleton


def counts(model, **config):
    """Trained parameters of the updates and of the norms."""
    adapted = get_peft_model(build_skeleton(model), LorettaRepConfig(**config))
    found = Counter()
    for name, p in adapted.named_parameters():
        if p.requires_grad:
            found["updates" if ".loretta_rep_cores." in name else "norms"] += p.numel()
    return found["updates"], found["norms"]


@pytest.mark.parametrize(
    ("model", "config", "updates", "norms"),
    [
        # printed: 0.05M. 12 fused projections: 768 x 8 as [8, 8, 12, 8] has 580 parameters, 2304 x 8 as
        # [12, 12, 16, 8] has 800; 25 norms of 2 x 768. Together 54,960.
        ("deberta-base", {}, 12 * (580 + 800), 25 * 1536),
        # the authors' dims: 52,380
        ("deberta-base", {"shape": {"2304": [8, 8, 8, 4, 9]}}, 12 * (580 + 585), 25 * 1536),
        # nothing is printed: query and value of 12 layers
        ("roberta-base", {}, 24 * 2 * 580, 25 * 1536),
        # printed: 0.51M. Query and value of 32 layers: 4096 x 8 as [16, 16, 16, 8] has 920; 65 norms of 4096.
        # Together 384,000.
        ("llama2-7b", {}, 64 * 2 * 920, 65 * 4096),
        # What was printed belongs to TT-rank 8, an inner size of 16 and longer trains, which the authors' package for
        # large models has built in: 128 trains of 1,888 and the norms make 507,904. In 18,432 of these ranks are above
        # what an unfolding can have; clipped, without which nothing is lost, 489,472 are left.
        (
            "llama2-7b",
            {"r": 16, "tt_rank": 8, "shape": {"4096": [8, 8, 8, 8, 4, 4]}},
            507_904 - 18_432 - 266_240,
            266_240,
        ),
    ],
)
def test_parameters(model, config, updates, norms):
    assert counts(model, **config) == (updates, norms)
