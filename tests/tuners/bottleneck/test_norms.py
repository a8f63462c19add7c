import pytest
import torch
import transformers as tf
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper

from ttlora import BottleneckConfig
from ttlora.tuners.norms import TrainedNorm


def norms_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, TrainedNorm)}


def logits(model, inputs, **kwargs):
    with torch.no_grad():
        return model.eval()(**inputs, **kwargs).logits


@pytest.fixture
def bert(architectures):
    return architectures["bert"]


def test_each_adapter_has_its_own_or_none(bert):
    model = get_peft_model(bert.build(), BottleneckConfig(), adapter_name="none")
    assert len(norms_of(model)) == 5
    model.add_adapter("own", BottleneckConfig())
    base = logits(model, bert.inputs)
    for norm in norms_of(model).values():
        norm.modules_to_save["own"].bias.data += 1
    assert torch.equal(logits(model, bert.inputs), base)
    model.set_adapter("own")
    changed = logits(model, bert.inputs)
    assert not torch.allclose(changed, base, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(logits(model, bert.inputs), base)
    assert torch.equal(logits(model, bert.inputs), changed)
    model.delete_adapter("own")
    model.set_adapter("none")
    assert torch.equal(logits(model, bert.inputs), base)


def test_an_adapter_without_norms_uses_the_models_own(bert):
    model = get_peft_model(bert.build(), BottleneckConfig(train_layer_norms=False), adapter_name="none")
    assert not norms_of(model)
    base = logits(model, bert.inputs)
    model.add_adapter("own", BottleneckConfig())
    for norm in norms_of(model).values():
        norm.modules_to_save["own"].bias.data += 1
    assert torch.equal(logits(model, bert.inputs), base)
    # while the adapter without norms is the active one, rows of the other still get theirs
    got = logits(model, bert.inputs, adapter_names=["none", "own", "own"])
    torch.testing.assert_close(got[:1], base[:1])
    model.set_adapter("own")
    torch.testing.assert_close(got[1:], logits(model, bert.inputs)[1:])


def test_they_are_saved_under_the_models_own_names(bert):
    model = get_peft_model(bert.build(), BottleneckConfig())
    names = {name for name in get_peft_model_state_dict(model) if "bottleneck_" not in name}
    own = {f"base_model.model.{name}" for name, _ in bert.build().named_parameters() if "LayerNorm" in name}
    assert names == own
    assert model.peft_config["default"].modules_to_save is None


def test_the_config_given_serves_again(bert, architectures):
    config = BottleneckConfig(r=4, task_type="SEQ_CLS")
    for kind in ("bert", "distilbert", "bert"):
        model = get_peft_model(architectures[kind].build(), config)
        assert norms_of(model)
        assert torch.isfinite(logits(model, bert.inputs)).all()


def test_norms_inside_a_module_that_trains_whole_are_left_to_it(architectures, tmp_path):
    modernbert = architectures["modernbert"]
    config = BottleneckConfig(r=4, modules_to_save=["head", "classifier"], init_weights=False)
    model = get_peft_model(modernbert.build(), config)
    assert type(model.base_model.model.head) is ModulesToSaveWrapper
    assert not any(".head." in name for name in norms_of(model))
    assert any(name.endswith("final_norm") for name in norms_of(model))
    expected = logits(model, modernbert.inputs)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(modernbert.build(), tmp_path), modernbert.inputs), expected)


def test_norms_that_the_user_names_are_wrapped_once(bert, tmp_path):
    model = get_peft_model(bert.build(), BottleneckConfig(r=4, modules_to_save=["LayerNorm"], init_weights=False))
    wrappers = [name for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    assert len(wrappers) == 5
    assert not norms_of(model)
    expected = logits(model, bert.inputs)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(bert.build(), tmp_path), bert.inputs), expected)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_copies_in_float32_in_a_half_precision_model(architectures, kind):
    architecture = architectures[kind]
    expected = logits(architecture.build(dtype=torch.bfloat16), architecture.inputs)
    model = get_peft_model(architecture.build(dtype=torch.bfloat16), BottleneckConfig(r=4))
    assert torch.equal(logits(model, architecture.inputs), expected)
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    got = logits(model, architecture.inputs)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected, rtol=0.1, atol=0.02)
    model(**architecture.inputs).logits.float().square().sum().backward()
    grads = {p.grad.dtype for p in model.parameters() if p.grad is not None}
    assert grads == {torch.float32}


def test_a_norm_that_serves_all_rows_at_once_is_named_in_the_error(architectures):
    config = tf.DebertaV2Config(
        **{**architectures["deberta-v2"].config.to_dict(), "norm_rel_ebd": "layer_norm", "pos_att_type": ["c2p", "p2c"]}
    )
    model = get_peft_model(tf.DebertaV2ForSequenceClassification(config), BottleneckConfig(r=4)).eval()
    inputs = architectures["deberta-v2"].inputs
    assert any(name.endswith("encoder.LayerNorm") for name in norms_of(model))
    assert torch.isfinite(logits(model, inputs)).all()
    with pytest.raises(ValueError, match=r"a mixed batch of 3 rows meets a norm over .* train_layer_norms=False"):
        model(**inputs, adapter_names=["default", "__base__", "default"])
