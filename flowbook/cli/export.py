"""``flowbook export``: a checkpoint's averaged parameters (EMA) as one small file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flowbook.cli.common import path


def add(commands: Any) -> None:
    command = commands.add_parser("export", help="write a checkpoint's averaged parameters (EMA) as one small file")
    command.add_argument("checkpoint", help="folder of a run or checkpoint")
    command.add_argument("out", type=path, help="the file, ....safetensors")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from flowbook import models
    from flowbook.training import checkpoint as checkpoints
    from flowbook.training import load

    if not Path(options.checkpoint).is_dir():
        raise ValueError(
            f"checkpoint: expected the folder of a run or checkpoint; got {options.checkpoint!r} (shipped weights are "
            "exported already)"
        )
    found = checkpoints.locate(options.checkpoint)
    stored = checkpoints.read(found)
    models.export(load(found), options.out, step=stored.step, recipe=stored.recipe)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.2f} MB")
    return 0
