"""Teachers in fewer bits than 16."""

import copy
import json
import shutil
from types import SimpleNamespace

import diffusers
import pytest
import small_families
import torch
from runs import run
from tiny_pipelines import write_pipeline
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.distillation.initialisation import depth
from dit_shd.distillation.initialisation.initialise import Initialisation, check
from dit_shd.models import loading
from dit_shd.models.blocks import named_blocks
from dit_shd.models.quantization import config_of, counted_bytes, dequantised, plain_parts, unquantisable, whole_state
from dit_shd.tasks.text_to_image import TextToImage
from dit_shd.training import setup
from dit_shd.training.config import TrainConfig
from dit_shd.training.dry_run import dry_run

CPU = torch.device("cpu")


@pytest.fixture
def bits(request):
    """Skips where this diffusers quantises on GPUs alone."""
    try:
        config_of(request.param, CPU)
    except UserError as error:
        pytest.skip(str(error))
    return request.param


@pytest.mark.parametrize("bits", ["int8", "fp8"], indirect=True)
def test_it_teaches_nearly_the_same(values, tmp_path, bits):
    _, fine = run(values, steps=1)
    _, low = run(values, steps=1, teacher_precision=bits, run=str(tmp_path / bits))
    for term in ("plain/shd", "plain/output"):
        assert fine[0][term] != low[0][term]
        assert fine[0][term] == pytest.approx(low[0][term], rel=0.1)
    assert fine[0]["plain/noise"] == low[0]["plain/noise"]


@pytest.mark.parametrize("bits", ["int8", "fp8"], indirect=True)
def test_bytes_are_counted(teacher, bits):
    full, low = loading.load(teacher), loading.load(teacher, bits)
    assert bytes_of(low) == pytest.approx(counted_bytes(full, bits), rel=0.15)
    assert bytes_of(low) < 0.5 * 4 * sum(p.numel() for p in full.parameters())


@pytest.mark.parametrize("bits", ["int8", "fp8"], indirect=True)
def test_weights_that_are_multiplied_past_their_modules_stay_whole(tmp_path, bits):
    """HunyuanDiT's pooling of its text gives them to F.multi_head_attention_forward, which took no torchao tensors."""
    folder = write_pipeline("hunyuan_dit", tmp_path / "pipeline")
    fine, low = (loading.load(folder, precision).eval() for precision in ("bf16", bits))
    task = TextToImage(side=8)
    batch = task.example(low, 2, CPU)[0]
    with torch.no_grad():
        near, exact = (task.predict(model, batch).prediction for model in (low, fine))
    assert 0 < (near - exact).norm() < 0.1 * exact.norm()
    pooler = low.time_extra_emb.pooler
    assert unquantisable(low) == ["time_extra_emb.pooler"]
    assert all(type(p.data) is torch.Tensor and p.dtype == torch.bfloat16 for p in pooler.parameters())
    assert type(low.blocks[0].attn1.to_q.weight.data) is not torch.Tensor
    assert bytes_of(low) == pytest.approx(counted_bytes(loading.load(folder), bits), rel=0.15)


def test_attention_of_pytorch_stays_whole():
    """Its out_proj is a linear map of a class of its own."""
    assert unquantisable(nn.TransformerEncoderLayer(8, 2, 8)) == ["self_attn"]
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    assert counted_bytes(model, "int8") == 2 * (3 * 8 * 8 + 3 * 8 + 8 * 8 + 8) + 8 * 8 + 4 * 8 + 2 * 8
    assert counted_bytes(nn.Linear(4, 8), "int8") == 4 * 8 + 4 * 8 + 2 * 8


@pytest.mark.parametrize("bits", ["int8"], indirect=True)
def test_a_config_of_no_model_is_refused_as_elsewhere(teacher, tmp_path, bits):
    folder = shutil.copytree(teacher, tmp_path / "low")
    write_config(folder, num_layers="many")
    with pytest.raises(UserError, match=r"low: cannot be read as MDTv2"):
        loading.load(folder, bits)


def bytes_of(model):
    tensors = [part for x in (*model.parameters(), *model.buffers()) for part in plain_parts(x).values()]
    return sum(x.numel() * x.element_size() for x in tensors)


def test_bad_input(teacher, tmp_path):
    with pytest.raises(UserError, match="teacher_precision: int4 needs a GPU, found cpu"):
        config_of("int4", CPU)
    with pytest.raises(UserError, match="int8 reads folders of diffusers"):
        loading.load(tmp_path, "int8")
    timm_config = {"architecture": "deit_tiny_patch16_224", "num_classes": 3, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(timm_config))
    with pytest.raises(UserError, match=r"found one of timm; teacher_precision=bf16 reads everything$"):
        loading.load(tmp_path, "int8")


TORCHAO = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}}
EIGHT = {"quant_method": "bitsandbytes", "load_in_8bit": True, "bnb_4bit_quant_type": "fp4"}
FOUR = {"quant_method": "bitsandbytes", "load_in_8bit": False, "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (TORCHAO, "torchao Int8WeightOnlyConfig"),
        (EIGHT, "bitsandbytes int8"),
        (FOUR, "bitsandbytes nf4"),
        ({"quant_method": "quanto", "weights_dtype": "float8"}, "quanto float8"),
        ({"quant_method": "gptq", "bits": 4}, "gptq 4"),
        ({"quant_type": {"default": 1}}, "of an unknown kind"),
        ("int8", "of an unknown kind"),
    ],
)
@pytest.mark.parametrize("precision", ["no", "bf16", "int8"])
def test_a_folder_that_is_quantised_already_is_refused(teacher, tmp_path, settings, words, precision):
    folder = shutil.copytree(teacher, tmp_path / "low")
    write_config(folder, quantization_config=settings)
    with pytest.raises(
        UserError, match=rf"low: its weights are quantised already \({words}\); wanted .* whole weights"
    ):
        loading.load(folder, precision)
    write_config(folder, quantization_config=None)
    assert precision == "int8" or loading.load(folder, precision)


def write_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("changes", [{}, {"teacher_precision": "int8"}, {"dry_run": True}])
def test_a_run_of_such_a_teacher_writes_nothing(values, teacher, tmp_path, changes):
    folder = shutil.copytree(teacher, tmp_path / "low")
    write_config(folder, quantization_config=TORCHAO)
    start = dry_run if "dry_run" in changes else setup.build
    with pytest.raises(UserError, match="quantised already"):
        start(make(TrainConfig, {**values, "teacher": str(folder), **changes}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("bits", ["int8"], indirect=True)
def test_one_that_was_saved_here_is_refused(teacher, tmp_path, bits):
    try:
        loading.load(teacher, bits).save_pretrained(tmp_path / "low")
    except ValueError as error:
        pytest.skip(f"this torchao writes none ({error})")
    for precision in ("no", "bf16", "int8", "fp8"):
        with pytest.raises(UserError, match="quantised already"):
            loading.load(tmp_path / "low", precision)


def test_a_diffusers_that_quantises_on_gpus_alone_is_told(monkeypatch):
    def refuse(*_):
        raise RuntimeError("TorchAO requires a GPU")

    monkeypatch.setattr(diffusers, "TorchAoConfig", refuse)
    with pytest.raises(UserError, match=r"teacher_precision: int8 is refused by diffusers .*TorchAO requires a GPU"):
        config_of("int8", CPU)


def test_four_bits_of_bitsandbytes():
    pytest.importorskip("bitsandbytes")
    config = config_of("nf4", torch.device("cuda"), ["pooler"])
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_compute_dtype == torch.bfloat16 and config.llm_int8_skip_modules == ["pooler"]


class Packed(nn.Linear):
    """A map whose weight is kept as bitsandbytes keeps it: bytes in a column, and how to read them."""

    def pack(self):
        self.whole, packed = self.weight.detach(), torch.zeros(self.weight.numel() // 2, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.weight.quant_state = SimpleNamespace(shape=self.whole.shape, dtype=torch.bfloat16)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight.absmax"] = torch.zeros(1)

    def forward(self, x):
        return nn.functional.linear(x, self.whole, self.bias)


def packed(model):
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Packed
            module.pack()
    return model


@pytest.mark.parametrize("family", ["dit", "mdt"])
def test_packed_weights_have_the_shapes_of_whole_ones(family):
    """A student of them was refused as if its teacher had a column of bytes; times were cast to bytes."""
    whole, inputs = small_families.build(family), (torch.randn(2, 1, 8, 8), torch.tensor([1, 9]), torch.tensor([0, 2]))
    model = packed(copy.deepcopy(whole))
    shapes = {name: tensor.shape for name, tensor in whole.state_dict().items()}
    assert {name: tensor.shape for name, tensor in whole_state(model).items()} == shapes
    check(Initialisation(weights="teacher"), [], small_families.build(family), model)
    with pytest.raises(UserError, match=r"^depth: .* of the teacher has no numbers \(4 bits\?\)"):
        depth.copy(small_families.build(family), model, {name: name for name in named_blocks(model)})
    with torch.no_grad():
        torch.testing.assert_close(model(*inputs).sample, whole(*inputs).sample)


class OnlyMultiplies(torch.Tensor):
    """As torchao's int4 for GPUs: a weight that has no dequantize."""

    @staticmethod
    def __new__(cls, whole):
        return torch.Tensor._make_wrapper_subclass(cls, whole.shape, dtype=whole.dtype)

    def __init__(self, whole):
        self.whole = whole

    def __tensor_flatten__(self):
        return ["whole"], None

    @staticmethod
    def __tensor_unflatten__(inner, meta, size, stride):
        return OnlyMultiplies(inner["whole"])

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            return nn.functional.linear(args[0], args[1].whole)
        if function is torch.Tensor.dequantize:
            raise NotImplementedError("dequantize")
        return super().__torch_function__(function, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError(function)


def test_a_weight_without_dequantize_is_read_by_its_products():
    whole = torch.randn(6, 4)
    torch.testing.assert_close(dequantised(OnlyMultiplies(whole)), whole)


@pytest.mark.parametrize("bits", ["int8", "fp8"], indirect=True)
def test_a_row_of_zeros_stays_one(tmp_path, bits):
    """In fp8 it was NaN: a velocity teacher's unused half was refused, and that of a noise model not seen."""
    model = small_families.build("dit")
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[3] = 0
    model.save_pretrained(tmp_path / "dead")
    weight = loading.load(tmp_path / "dead", bits).blocks[0].mlp.fc1.weight
    assert plain_parts(weight).keys() >= {"qdata", "scale"}
    torch.testing.assert_close(dequantised(weight).float(), model.blocks[0].mlp.fc1.weight, rtol=0.07, atol=0.01)
    with torch.no_grad():
        last = model.final_layer.linear
        for half in (last.weight.unflatten(0, (4, 2, 1)), last.bias.unflatten(0, (4, 2, 1))):
            half[:, 1] = 0
    model.save_pretrained(tmp_path / "velocity")
    with pytest.raises(UserError, match="refused, because the variance half of its last layer is zero"):
        loading.load(tmp_path / "velocity", bits)


@pytest.mark.parametrize(("inputs", "bytes_"), [(128, 128 * 8 // 2 + 8 * 4), (96, 2 * 96 * 8)])
def test_maps_that_torchao_leaves_whole_are_counted_whole(inputs, bytes_):
    """int4 is in groups of 128 inputs."""
    assert counted_bytes(nn.Linear(inputs, 8, bias=False), "int4") == bytes_


def test_the_parts_of_a_tensor_are_plain_however_deep_they_lie():
    """An int8 weight of torchao 0.17 has one part, which is of another kind itself."""
    a, b, c = (torch.randn(2, 2) for _ in range(3))
    parts = plain_parts(TwoTensor(TwoTensor(a, b), c))
    assert {name: part.data_ptr() for name, part in parts.items()} == {
        "a.a": a.data_ptr(), "a.b": b.data_ptr(), "b": c.data_ptr()
    }  # fmt: skip
