import pytest
import ray

from ttlora.errors import UserError
from ttlora.experiments import engine
from ttlora.experiments.engine import Share


@pytest.mark.parametrize(
    ("there", "asked", "share"),
    [
        ({"CPU": 2.0}, (1, None), Share(1, 0.0, 1)),
        ({"CPU": 2.0, "GPU": 1.0}, (1, None), Share(1, 0.25, 1)),
        ({"CPU": 8.0, "GPU": 1.0}, (4, 1.0), Share(4, 1.0, 4)),
        ({"CPU": 2.0, "GPU": 1.0}, (1, 0.0), Share(1, 0.0, 1)),
    ],
)
def test_a_trial_has_a_core_and_a_share_of_a_gpu(there, asked, share, monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    assert Share.asked(*asked) == share


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ((4096, None), "cpus_per_trial is 4096, and there are 2"),
        ((1, 0.5), "gpus_per_trial is 0.5, and there are 0"),
    ],
)
def test_more_than_there_is_would_never_start(asked, complaint, monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(UserError, match=complaint):
        Share.asked(*asked)


@pytest.mark.parametrize(("name", "kind"), [("hyperband", "HyperBandScheduler"), ("none", "FIFOScheduler")])
def test_schedulers(name, kind):
    assert type(engine._scheduler(name, 3)).__name__ == kind
    assert type(engine._scheduler(name, 1)).__name__ == "FIFOScheduler"


@pytest.mark.parametrize(
    ("there", "machines", "parallel", "threads", "share"),
    [
        ({"CPU": 2.0}, [2], 1, 2, Share(2, 0.0, 2)),
        ({"CPU": 2.0}, [2], 2, 2, Share(1, 0.0, 1)),
        ({"CPU": 2.0}, [2], 4, 2, Share(0.5, 0.0, 1)),
        ({"CPU": 8.0, "GPU": 2.0}, [8], 4, 5, Share(1, 0.5, 1)),
        # on a cluster a run has at most one machine, and at most one GPU
        ({"CPU": 32.0, "GPU": 8.0}, [8, 8, 8, 8], 2, None, Share(8, 1.0, 8)),
    ],
)
def test_runs_divide_what_there_is(there, machines, parallel, threads, share, monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": cores}} for cores in machines])
    assert Share.divided(parallel, threads) == share
