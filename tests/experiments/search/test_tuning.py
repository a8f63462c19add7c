from dataclasses import replace

import pytest
import ray

from ttlora.errors import UserError
from ttlora.experiments.search import tuning
from ttlora.experiments.search.tuning import Share


@pytest.mark.parametrize(
    ("there", "asked", "share"),
    [
        ({"CPU": 2.0}, {}, Share(1, 0.0)),
        ({"CPU": 2.0, "GPU": 1.0}, {}, Share(1, 0.25)),
        ({"CPU": 8.0, "GPU": 1.0}, {"cpus_per_trial": 4, "gpus_per_trial": 1.0}, Share(4, 1.0)),
        ({"CPU": 2.0, "GPU": 1.0}, {"gpus_per_trial": 0.0}, Share(1, 0.0)),
    ],
)
def test_a_trial_has_a_core_and_a_share_of_a_gpu(there, asked, share, begun, monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    assert Share.of(replace(begun.plan, **asked)) == share


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"cpus_per_trial": 4096}, "cpus_per_trial is 4096, and there are 2"),
        ({"gpus_per_trial": 0.5}, "gpus_per_trial is 0.5, and there are 0"),
    ],
)
def test_more_than_there_is_would_never_start(asked, complaint, begun, monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(UserError, match=complaint):
        Share.of(replace(begun.plan, **asked))


@pytest.mark.parametrize(("name", "kind"), [("hyperband", "HyperBandScheduler"), ("none", "FIFOScheduler")])
def test_schedulers(name, kind):
    assert type(tuning._scheduler(name, 3)).__name__ == kind
    assert type(tuning._scheduler(name, 1)).__name__ == "FIFOScheduler"
