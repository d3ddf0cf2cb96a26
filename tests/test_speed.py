"""What `flowbook bench` says agrees with itself and with a training."""

from __future__ import annotations

import pytest
import torch

from flowbook import cli, models
from flowbook.models import DiT, UNet
from flowbook.training import recipes, speed


def test_the_parts_make_the_step_and_the_rates_follow_from_it() -> None:
    result = speed.bench(recipes.read("digits", ["train.batch_size=16"]), steps=5, warmup=2)
    assert 0.5 < sum(result.parts.values()) / result.step < 2  # medians of other steps
    assert result.images_per_second == pytest.approx(16 / result.step)
    work = 3 * 16 * result.cost.flops
    assert result.utilisation == pytest.approx(work / result.step / result.matrix_rate) and result.utilisation < 1
    assert result.memory > 1e6 and f"{torch.__version__}; fp32" in str(result)


def test_operations_are_counted_as_by_hand() -> None:
    x, width = torch.zeros(1, 3, 8, 8), 16
    network = DiT(3, 8, patch=2, width=width, depth=1, heads=2)
    # 16 patches: in, q k v, two products of attention, out, two layers of the perceptron, back; then the embedding's.
    patches = 16 * (12 * width + 3 * width**2 + 2 * 16 * width + width**2 + 8 * width**2 + 12 * width)
    embedding = 256 * width + width**2 + 6 * width**2 + 2 * width**2
    assert models.cost(network, x).flops == 2 * (patches + embedding)
    assert models.cost(network, x).weights == sum(p.numel() for p in network.parameters())


def test_cost_needs_no_memory_and_leaves_the_model_alone() -> None:
    with torch.device("meta"):
        large = UNet(3, 64, width=512, multipliers=(1, 2, 4), num_classes=10)  # some gigabytes, if they were there
    assert models.cost(large, torch.zeros(1, 3, 64, 64)).weights > 2e8
    small = UNet(1, 8, width=8, multipliers=(1,), num_classes=3)
    models.cost(small, torch.zeros(4, 1, 8, 8))
    assert small.training and all(p.requires_grad and p.device.type == "cpu" for p in small.parameters())


def test_the_command_prints_six_lines_and_refuses_what_is_no_velocity(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["bench", "digits", "--steps", "2", "train.batch_size=8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and "samples a second; a step of 8 takes" in lines[2] and "% of a matrix" in lines[4]
    assert cli.main(["bench", "digits_classifier"]) == 2
    assert "expected one that learns a velocity; got Classifier" in capsys.readouterr().err
