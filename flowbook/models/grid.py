"""Samples on a grid: images, but also sequences (one dimension) and volumes (three)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flowbook._core import validate


def sides_of(size: int | Sequence[int]) -> tuple[int, ...]:
    """The length of each side: an integer is a square image.

    Example:
        >>> sides_of(32), sides_of((100,)), sides_of([16, 24])
        ((32, 32), (100,), (16, 24))
    """
    if validate.is_integer(size):
        validate.positive_int("size", size)
        return (int(size), int(size))  # type: ignore[arg-type]
    if not isinstance(size, Sequence) or isinstance(size, str) or not 1 <= len(size) <= 3:
        raise TypeError(f"size: expected an integer, or one to three of them, such as (128,) or (32, 48); got {size!r}")
    for side in size:
        validate.positive_int("size", side)
    return tuple(int(side) for side in size)


def check_grid(x: Tensor, channels: int, sides: tuple[int, ...], multiple: int) -> None:
    """``x`` has these channels, as many sides, and each of them is a multiple.

    Raises:
        ValueError: with the shape that was expected.

    Example:
        >>> import torch
        >>> check_grid(torch.zeros(2, 3, 8, 10), 3, (8, 8), multiple=4)
        Traceback (most recent call last):
        ValueError: x: expected shape (B, 3, 8, 8), or other sides that are multiples of 4; got (2, 3, 8, 10)
    """
    found = x.shape[2:]
    if x.dim() == len(sides) + 2 and x.shape[1] == channels and all(side and side % multiple == 0 for side in found):
        return
    wanted = ", ".join(map(str, (channels, *sides)))
    raise ValueError(
        f"x: expected shape (B, {wanted}), or other sides that are multiples of {multiple}; got {tuple(x.shape)}"
    )


def patches(x: Tensor, patch: int) -> Tensor:
    """Squares of ``patch`` elements as channels: (B, C, n p, ...) -> (B, C p^d, n, ...), as ``F.pixel_unshuffle``.

    Example:
        >>> import torch
        >>> patches(torch.arange(6.0).reshape(1, 1, 6), 2)[0].tolist()
        [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
    """
    if patch == 1:
        return x
    b, c, *sides = x.shape
    dims = len(sides)
    split = x.reshape(b, c, *(length for side in sides for length in (side // patch, patch)))
    inner, outer = range(3, 3 + 2 * dims, 2), range(2, 2 + 2 * dims, 2)
    return split.permute(0, 1, *inner, *outer).reshape(b, c * patch**dims, *(side // patch for side in sides))


def unpatched(x: Tensor, patch: int) -> Tensor:
    """The inverse of :func:`patches`.

    Example:
        >>> import torch
        >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> torch.equal(unpatched(patches(x, 2), 2), x)
        True
    """
    if patch == 1:
        return x
    b, c, *sides = x.shape
    dims = len(sides)
    split = x.reshape(b, c // patch**dims, *[patch] * dims, *sides)
    order = (axis for d in range(dims) for axis in (2 + dims + d, 2 + d))
    return split.permute(0, 1, *order).reshape(b, c // patch**dims, *(patch * side for side in sides))
