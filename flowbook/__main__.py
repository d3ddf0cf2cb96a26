"""``python -m flowbook`` is the command ``flowbook``: for ``torchrun -m``, and where no script was installed."""

from flowbook.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
