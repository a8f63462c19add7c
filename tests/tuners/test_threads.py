"""One model in several threads: the replicas of `nn.DataParallel`, and a server's requests at the same time."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.parallel import replicate

from ttlora import TTLoraConfig
from ttlora.tuners.bottleneck import BottleneckConfig
from ttlora.tuners.loretta_rep import LorettaRepConfig
from ttlora.tuners.lorta import LortaConfig
from ttlora.tuners.meta_tt import MetaTTConfig
from ttlora.tuners.tt_lora.layer import TTLoraLayer

# The copy for the second device differs, so that it shows whose parameters a replica computes with.
SECOND = 1.25
CONFIGS = {
    "ttlora": TTLoraConfig(target_modules=["query", "value", "dense"], init_weights=False),
    "unaligned": TTLoraConfig(target_modules=["query"], shape=[4, 9, 4, 4], r=3, init_weights=False),
    "embedding": TTLoraConfig(target_modules=["word_embeddings", "query"], init_weights=False),
    "parameter": TTLoraConfig(target_modules=[], target_parameters=["query.weight"], init_weights=False),
    "loretta-rep": LorettaRepConfig(r=4, init_weights=False),
    "loretta-adp": BottleneckConfig(r=4, tt_rank=2, init_weights=False),
    "bottleneck": BottleneckConfig(r=4, init_weights=False),
    "meta-tt": MetaTTConfig(target_modules="all-linear", task_type="SEQ_CLS", init_weights=False),
    "lorta": LortaConfig(target_modules="all-linear", task_type="SEQ_CLS", init_weights=False),
    "lora": LoraConfig(target_modules=["query", "value"], init_lora_weights=False),
}


@pytest.fixture(params=CONFIGS)
def model(architectures, request):
    return get_peft_model(architectures["bert"].build(), CONFIGS[request.param]).eval()


@pytest.fixture
def two_devices(monkeypatch):
    """`replicate` as it is, but that its two devices are the CPU."""

    def copies(tensors, devices, detach=False):
        def copy(tensor, factor):
            return tensor * factor if tensor.is_floating_point() else tensor.clone()

        return [[copy(tensor, factor) for tensor in tensors] for factor in (1.0, SECOND)]

    # by the module, which the function of its name hides
    monkeypatch.setattr(sys.modules["torch.nn.parallel.replicate"], "_broadcast_coalesced_reshape", copies)


def in_threads(*calls):
    """Each call in a thread of its own, all at once; what they return."""
    start = threading.Barrier(len(calls), timeout=30)

    def run(call):
        start.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(run, calls))


def gradients(model):
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


def scale(model, factor):
    with torch.no_grad():
        for tensor in (*model.parameters(), *(buffer for buffer in model.buffers() if buffer.is_floating_point())):
            tensor.mul_(factor)


def test_each_replica_computes_with_its_own_parameters(model, architectures, two_devices):
    inputs = architectures["bert"].inputs
    expected, learned = [], []
    for factor in (1.0, SECOND):
        scale(model, factor)
        logits = model(**inputs).logits
        logits.square().sum().backward()
        expected.append(logits.detach())
        learned.append(gradients(model))
        scale(model, 1 / factor)

    first, second = replicate(model, [0, 1])
    found = in_threads(lambda: first(**inputs).logits, lambda: second(**inputs).logits)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    sum(logits.square().sum() for logits in found).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, learned[0][name] + SECOND * learned[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "config", [CONFIGS[name] for name in ("ttlora", "loretta-rep", "bottleneck", "meta-tt", "lorta")]
)
def test_a_mixed_batch_beside_a_plain_one(architectures, config, monkeypatch):
    bert = architectures["bert"]
    model = get_peft_model(bert.build(), config, "one").eval()
    model.add_adapter("two", config)
    names = ["two", "__base__", "one"]

    def mixed():
        with torch.no_grad():
            return model(**bert.inputs, adapter_names=names).logits

    def plain():
        with torch.no_grad():
            return model(**bert.inputs).logits

    expected = [mixed(), plain()]
    assert not torch.allclose(expected[0], expected[1], atol=1e-5)
    # both are in the middle of the model at the same time
    middle = model.base_model.model.bert.encoder
    meet, original = threading.Barrier(2, timeout=30), middle.forward

    def forward(*args, **kwargs):
        meet.wait()
        result = original(*args, **kwargs)
        meet.wait()
        return result

    middle.forward = forward
    torch.testing.assert_close(in_threads(mixed, plain), expected)


def test_factors_are_those_of_the_call(architectures):
    bert = architectures["bert"]
    model = get_peft_model(bert.build(), CONFIGS["ttlora"]).eval()
    layer = next(module for module in model.modules() if isinstance(module, TTLoraLayer))
    found = {}

    def remember(*_):
        found[threading.get_ident()] = layer.factors("default")[0]

    layer.register_forward_hook(remember)
    in_threads(lambda: model(**bert.inputs), lambda: model(**bert.inputs))
    first, second = found.values()
    assert first is not second
    torch.testing.assert_close(first, second)
