"""A grown network in other people's code: each use gives the right logits, or one sentence."""

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from space_warps.core import InputError, seeded
from space_warps.data.dataset import InputStatistics
from space_warps.models.blocks import BlockSpec, registered_families
from space_warps.models.model import Architecture, ProgressiveModel

EDGES = ((0.0, 0.01, 0.1, 1.0, 3.0), (0.0, 1e-4, 1e-3, 1e-2, 0.1))
Use = Callable[[ProgressiveModel, Tensor, Tensor], Tensor]


def network(**options: Any) -> ProgressiveModel:
    """Three blocks on images of 24 pixels, with trained-like normalization statistics."""
    statistics = InputStatistics((0.2,), (0.15,), EDGES)
    blocks = (BlockSpec(8, kernel_size=5, downsample=3), BlockSpec(12), BlockSpec(16, use_se=True))
    names = ("z", "z_err")
    with seeded(0):
        model = ProgressiveModel(
            Architecture((1, 24, 24), ("A", "B", "C"), names, statistics, blocks, **options)
        )
        images, features = inputs(64)
        for _ in range(20):
            model(images, features)
    return model.eval()


def inputs(num_rows: int = 16) -> tuple[Tensor, Tensor]:
    """Noise with a spot of varying height; redshifts and their uncertainties."""
    generator = torch.Generator().manual_seed(1)
    y, x = torch.meshgrid(*[torch.arange(24.0) - 12] * 2, indexing="ij")
    spot = torch.exp(-(x**2 + y**2) / 18)
    heights = torch.linspace(0.2, 0.8, num_rows)[:, None, None]
    images = 0.1 + heights * spot + 0.02 * torch.randn(num_rows, 24, 24, generator=generator)
    z, z_err = torch.linspace(0.02, 1.5, num_rows), torch.linspace(1e-4, 5e-3, num_rows)
    return images.clamp(0, 1)[:, None], torch.stack([z, z_err], dim=1)


def export(model: ProgressiveModel, images: Tensor, features: Tensor) -> Tensor:
    batch = torch.export.Dim("batch")
    shapes = ({0: batch}, {0: batch})
    program = torch.export.export(model, (images, features), dynamic_shapes=shapes)
    parts = (slice(0, 1), slice(1, 4), slice(4, None))
    return torch.cat([program.module()(images[part], features[part]) for part in parts])


def load_state(model: ProgressiveModel, images: Tensor, features: Tensor) -> Tensor:
    other = ProgressiveModel(model.architecture).eval()
    other.load_state_dict(model.state_dict())
    return other(images, features)


def save_whole(model: ProgressiveModel, images: Tensor, features: Tensor) -> Tensor:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded: ProgressiveModel = torch.load(buffer, weights_only=False)
    return loaded(images, features)


def autocast(model: ProgressiveModel, images: Tensor, features: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(images, features)


def half_then_grow(model: ProgressiveModel, images: Tensor, features: Tensor) -> Tensor:
    small = ProgressiveModel(model.architecture).half()
    small.grow(BlockSpec(4))
    assert small.eval()(images, features).dtype == torch.float16
    return model(images, features)


RIGHT: dict[str, tuple[Use, float]] = {
    "deepcopy": (lambda m, x, f: copy.deepcopy(m)(x, f), 0),
    "pickle": (lambda m, x, f: pickle.loads(pickle.dumps(m))(x, f), 0),
    "pickle of half": (lambda m, x, f: pickle.loads(pickle.dumps(m.half()))(x, f), 0.02),
    "torch.save": (save_whole, 0),
    "state_dict": (load_state, 0),
    "rows one by one": (
        lambda m, x, f: torch.cat([m(x[i : i + 1], f[i : i + 1]) for i in range(len(x))]),
        1e-5,
    ),
    "no rows": (lambda m, x, f: torch.cat([m(x, f), m(x[:0], f[:0])]), 1e-5),
    "float64 inputs": (lambda m, x, f: m(x.double(), f.double()), 1e-5),
    "float16 inputs": (lambda m, x, f: m(x.half(), f.half()), 0.02),
    "half": (lambda m, x, f: m.half()(x.half(), f.half()), 0.02),
    "half, float32 inputs": (lambda m, x, f: m.half()(x, f), 0.02),
    "half and back": (lambda m, x, f: m.half().float()(x, f), 0.02),
    "half, then grow": (half_then_grow, 0),
    "bfloat16": (lambda m, x, f: m.bfloat16()(x, f), 0.1),
    "double": (lambda m, x, f: m.double()(x.double(), f.double()), 1e-5),
    "to(dtype)": (lambda m, x, f: m.to(torch.float64)(x, f), 1e-5),
    "autocast": (autocast, 0.1),
    "channels last": (
        lambda m, x, f: m.to(memory_format=torch.channels_last)(
            x.contiguous(memory_format=torch.channels_last), f
        ),
        1e-5,
    ),
    "torch.export": (export, 1e-5),
    "torch.compile": (lambda m, x, f: torch.compile(m, backend="eager")(x, f), 1e-5),
    "torch.func": (
        lambda m, x, f: torch.func.functional_call(m, dict(m.named_parameters()), (x, f)),
        0,
    ),
}
REFUSED: dict[str, tuple[Use, str]] = {
    "no features": (lambda m, x, f: m(x), "reads 2 features (z, z_err); got 0 per row"),
    "one feature": (lambda m, x, f: m(x, f[:, :1]), "reads 2 features (z, z_err); got 1 per row"),
    "flat features": (lambda m, x, f: m(x, f[:, 0]), "of shape [batch, 2]; got [16]"),
    "other rows": (lambda m, x, f: m(x, f[:3]), "as many rows; got 16 images and 3 rows"),
    "swapped features": (lambda m, x, f: m(x, f.flip(1)), "features z and z_err are swapped"),
    "three channels": (lambda m, x, f: m(x.expand(-1, 3, -1, -1), f), "[batch, 1, 24, 24]"),
    "no channel": (lambda m, x, f: m(x[:, 0], f), "got [16, 24, 24]"),
    "one image": (lambda m, x, f: m(x[0], f[:1]), "got [1, 24, 24]"),
    "another size": (lambda m, x, f: m(x[..., :23, :23], f), "got [16, 1, 23, 23]"),
    "bytes": (lambda m, x, f: m((255 * x).byte(), f), "floats in [0, 1]; got"),
    "up to 255": (lambda m, x, f: m(255 * x, f), "divide bytes by 255"),
    "NumPy": (lambda m, x, f: m(x.numpy(), f), "tensor"),
}


@pytest.mark.parametrize("use", RIGHT)
def test_the_logits_are_right(use: str) -> None:
    model, (images, features) = network(), inputs()
    call, tolerance = RIGHT[use]
    with torch.no_grad():
        expected = model(images, features)
        logits = call(copy.deepcopy(model), images, features)
    assert logits.shape == expected.shape
    torch.testing.assert_close(logits.float(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("use", REFUSED)
def test_one_sentence_says_what_is_expected(use: str) -> None:
    call, message = REFUSED[use]
    with pytest.raises(InputError) as error:
        call(network(), *inputs())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


KINDS: dict[str, dict[str, Any]] = {
    "averaged": {"tta": True},
    "averaged, rotations": {"tta": True, "symmetries": "rotations"},
    "images only": {"feature_names": ()},
    "oblong": {"image_shape": (2, 24, 18), "tta": True},
    "without blocks": {"blocks": ()},
    **{family: {"blocks": (BlockSpec(8, family),)} for family in registered_families()},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_network_is_exported(kind: str) -> None:
    options = KINDS[kind]
    architecture = replace(network().architecture, **options)
    channels = architecture.image_shape[0]
    statistics = InputStatistics((0.2,) * channels, (0.15,) * channels, EDGES)
    with seeded(0):
        model = ProgressiveModel(replace(architecture, input_statistics=statistics)).eval()
        images = torch.rand(8, *architecture.image_shape)
    features = inputs(8)[1][:, : len(architecture.feature_names)]
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        model, (images, features), dynamic_shapes=({0: batch}, {0: batch})
    ).module()
    with torch.no_grad():
        for num_rows in (1, 3, 8):
            rows = images[:num_rows], features[:num_rows]
            torch.testing.assert_close(program(*rows), model(*rows), rtol=0, atol=1e-5)


def test_a_network_is_written_as_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, (images, features) = network(tta=True), inputs()
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        model, (images, features), dynamic_shapes=({0: batch}, {0: batch})
    )
    names = ["images", "features"]
    torch.onnx.export(program, f=tmp_path / "m.onnx", input_names=names, external_data=False)
    session = runtime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for num_rows in (1, 3, 16):
        rows = images[:num_rows], features[:num_rows]
        feed = {name: tensor.numpy() for name, tensor in zip(names, rows, strict=True)}
        logits = torch.from_numpy(session.run(None, feed)[0])
        torch.testing.assert_close(logits, model(*rows).detach(), rtol=0, atol=1e-5)
