"""Networks leave the package for batches of any size, and the shipped weights are what they were."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import randomized
from safetensors import safe_open
from torch import nn

from flowbook import models
from flowbook.guidance import guided

NETWORKS: dict[str, Any] = {
    "mlp": lambda: (models.MLP(2, hidden=16, num_classes=3), (2,)),
    "unet": lambda: (
        models.UNet(1, 8, width=8, multipliers=(1, 2), blocks=1, attention=(4,), num_classes=3),
        (1, 8, 8),
    ),
    "dit": lambda: (models.DiT(1, 8, width=32, depth=1, heads=2, num_classes=3), (1, 8, 8)),
}


def built(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    network, shape = NETWORKS[name]()
    return randomized(network).eval(), shape


def inputs(shape: tuple[int, ...], batch: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(batch)
    x, t = torch.randn(batch, *shape, generator=generator), torch.rand(batch, generator=generator)
    return x, t, torch.arange(batch) % 3


@pytest.mark.parametrize("name", NETWORKS)
def test_torch_export_takes_a_dynamic_batch(name: str) -> None:
    network, shape = built(name)
    batch = torch.export.Dim("batch", min=2, max=1024)
    dynamic = ({0: batch}, {0: batch}, {0: batch})
    with torch.no_grad():
        exported = torch.export.export(network, inputs(shape, 4), dynamic_shapes=dynamic).module()
        for size in (2, 4, 5, 33):
            arguments = inputs(shape, size)
            torch.testing.assert_close(exported(*arguments), network(*arguments), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_takes_a_dynamic_batch(name: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="needs onnx, onnxscript and onnxruntime: pip install them")
    pytest.importorskip("onnxscript", reason="needs onnx, onnxscript and onnxruntime: pip install them")
    network, shape = built(name)
    batch = torch.export.Dim("batch", min=2, max=1024)
    file = tmp_path / "network.onnx"
    with torch.no_grad():
        torch.onnx.export(
            network, inputs(shape, 4), file, dynamo=True, dynamic_shapes=({0: batch}, {0: batch}, {0: batch}),
            input_names=["x", "t", "y"],
        )  # fmt: skip
        session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        for size in (4, 5, 33):
            x, t, y = inputs(shape, size)
            (found,) = session.run(None, {"x": x.numpy(), "t": t.numpy(), "y": y.numpy()})
            torch.testing.assert_close(torch.from_numpy(found), network(x, t, y), rtol=1e-3, atol=1e-4)


def test_a_guided_network_is_exported_too() -> None:
    network, shape = built("mlp")
    batch = torch.export.Dim("batch", min=2, max=64)
    velocity = guided(network, 2.0).eval()
    with torch.no_grad():
        exported = torch.export.export(
            velocity, inputs(shape, 4), dynamic_shapes=({0: batch}, {0: batch}, {0: batch})
        ).module()
        arguments = inputs(shape, 7)
        torch.testing.assert_close(exported(*arguments), velocity(*arguments), rtol=1e-4, atol=1e-5)


# The SHA-256 of each file's tensors, by name: moving or describing a file anew must not touch a number.
DIGESTS = {
    "digits": "7332774cb6c1fab835a9a1dc8a10a476c20b5cd02f9bc56ff22e4daaa9e11870",
    "digits_classifier": "7c0868ae7fda83114f4195b87a8a9c89c12f67ec8d64662f64072a0ba10dc371",
    "mnist": "05fa09e3ba19f5a7bebb7e95410cba0d3c095f01c6d8e87251e14cb9a80c85c3",
    "mnist_classifier": "1f7215e73f0d4054b99a0a8025463dd6d36e82e6eb3aad43de8b87dfd6034b09",
    "mnist_dequantized": "77f3bf0ae8e41356776e605b3344450abf443c851a44cab20c2f2c7c2aa964a1",
    "mnist_moments": "d762041920b999f0b129350a005ddbcafdf354d708c41f425d375e53ddb835ff",
    "mnist_one_step": "d7a2da0535ceb5398564aa292dd74b231e00c5eed39de7299aabbd6df988f75f",
}


@pytest.mark.parametrize("name", DIGESTS)
def test_the_shipped_numbers_are_the_ones_that_were_trained(name: str) -> None:
    sha = hashlib.sha256()
    with safe_open(models.asset(f"{name}.safetensors"), framework="pt") as file:
        for key in sorted(file.keys()):
            tensor = file.get_tensor(key).contiguous()
            sha.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    assert sha.hexdigest() == DIGESTS[name]


def test_every_shipped_file_has_its_digest() -> None:
    assert set(DIGESTS) == {path.stem for path in models.asset("digits.safetensors").parent.glob("*.safetensors")}
