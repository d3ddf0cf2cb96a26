"""Own folders of images: what people's files are like, and what comes out of them."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flowbook import data
from flowbook.flow_matching import FlowMatching
from flowbook.models import UNet
from flowbook.training import TrainConfig, fit, load

SIZE = (8, 8)


def picture(path: Path, value: int = 128, mode: str = "RGB", size: tuple[int, int] = SIZE, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).convert(mode).save(path, **options)
    return path


def only(folder: Path, **options: Any) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = data.image_folder(folder, 8, **options)
    assert len(images) == 1
    image = images[0]
    assert isinstance(image, Tensor) and image.dtype == torch.float32
    return image


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".gif", ".jfif", ".bmp", ".webp", ".tif", ".PNG", ".ppm"])
def test_every_format_is_read(suffix: str, tmp_path: Path) -> None:
    picture(tmp_path / f"a{suffix}", 128, format="JPEG" if suffix == ".jfif" else None)
    torch.testing.assert_close(only(tmp_path), torch.full((3, 8, 8), 2 * 128 / 255 - 1), rtol=0, atol=0.02)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "LA"])
def test_every_mode_becomes_gray_or_color(mode: str, channels: int, tmp_path: Path) -> None:
    picture(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), 255, mode)
    torch.testing.assert_close(only(tmp_path, channels=channels), torch.ones(channels, 8, 8), rtol=0, atol=0.01)


def test_sixteen_bits_and_floats_are_scaled_by_their_type(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    expected = torch.from_numpy(ramp.astype(np.float32) / 65535 * 2 - 1)
    torch.testing.assert_close(only(tmp_path, channels=1)[0], expected, rtol=0, atol=1e-5)
    assert only(tmp_path).shape == (3, 8, 8)
    (tmp_path / "a.png").unlink()
    Image.fromarray(ramp.astype(np.float32) / 65535).save(tmp_path / "a.tif")
    torch.testing.assert_close(only(tmp_path, channels=1)[0], expected, rtol=0, atol=1e-5)
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif cannot be read: expected values from 0 to 1 .* got 0 to 65535"):
        only(tmp_path)


def test_the_orientation_of_a_camera_is_followed(tmp_path: Path) -> None:
    image = Image.new("L", (8, 8), 0)
    image.paste(255, (0, 0, 8, 4))  # white above, until it is turned
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "a.png", exif=exif)
    upside = only(tmp_path, channels=1)[0]
    assert bool((upside[:4] == -1).all()) and bool((upside[4:] == 1).all())


def test_what_is_transparent_shows_the_background(tmp_path: Path) -> None:
    Image.new("RGBA", SIZE, (255, 0, 0, 0)).save(tmp_path / "a.png")  # red, but invisible
    assert bool((only(tmp_path) == 1).all())
    assert bool((only(tmp_path, background="black") == -1).all())
    torch.testing.assert_close(only(tmp_path, background="#0000ff")[:, 0, 0], torch.tensor([-1.0, -1.0, 1.0]))
    with pytest.raises(ValueError, match="background: expected a color, such as 'white' or '#204080'; got 'wite'"):
        only(tmp_path, background="wite")


def test_sides_of_any_proportion_are_cut_around_the_center(tmp_path: Path) -> None:
    image = Image.new("L", (40, 20), 0)
    image.paste(255, (10, 0, 30, 20))
    image.save(tmp_path / "a.png")
    assert bool((only(tmp_path, channels=1)[..., 1:-1] == 1).all())
    wide = data.image_folder(tmp_path, (10, 20), channels=1)[0]
    assert wide.shape == (1, 10, 20) and float(wide[0, 0, 0]) == -1 and float(wide[0, 0, 10]) == 1


def test_folders_are_flat_or_have_classes(tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    picture(flat / "b.png", 0)
    picture(flat / "a.png", 255)
    images = data.image_folder(flat, 8)
    assert len(images) == 2 and images.classes is None and float(images[0].mean()) == 1  # sorted by name
    with pytest.raises(ValueError, match="labels: expected subfolders in"):
        data.image_folder(flat, 8, labels=True)
    classes = tmp_path / "classes"
    for name in ("zebra", "ant", ".ipynb_checkpoints", "empty"):
        (classes / name).mkdir(parents=True)
    picture(classes / "zebra" / "1.png")
    picture(classes / "ant" / "1.png")
    picture(classes / ".ipynb_checkpoints" / "1.png")
    picture(classes / "ant" / ".hidden.png")
    images = data.image_folder(classes, 8)
    assert images.classes == ["ant", "zebra"] and images.targets == [0, 1] and images[1][1] == 1
    picture(classes / "loose.png")
    with pytest.raises(ValueError, match=r"either in .* or in its subfolders; got 1 in it, and more in ant, zebra"):
        data.image_folder(classes, 8)


def test_what_is_no_image_is_left_out_with_a_note(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    for name in ("notes.txt", "more.txt", "Thumbs.db", "LICENSE"):
        (tmp_path / name).write_text("text")
    with pytest.warns(UserWarning, match=r"root: 4 entries of .* are no images and are left out \(2 \.txt, "):
        assert len(data.image_folder(tmp_path, 8)) == 1


def test_what_cannot_be_read_is_named_and_skipped_only_when_asked(tmp_path: Path) -> None:
    for k in range(3):
        noise = np.random.default_rng(k).integers(0, 255, (256, 256, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{k}.jpg")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"root: 1 of 4 files cannot be read: .*empty\.png \(.*\)\. Remove .*skip"):
        data.image_folder(tmp_path, 8)
    (tmp_path / "empty.png").unlink()
    whole = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(whole[: len(whole) // 2])
    images = data.image_folder(tmp_path, 8)  # the header is there
    with pytest.raises(ValueError, match=r"data: .*1\.jpg cannot be read: .*truncated"):
        images[1]
    with pytest.warns(UserWarning, match=r"root: 1 of 3 files cannot be read: .*1\.jpg \(.*\); they are left out"):
        assert len(data.image_folder(tmp_path, 8, unreadable="skip")) == 2
    for k in (0, 2):
        (tmp_path / f"{k}.jpg").unlink()
    with pytest.raises(ValueError, match="root: 1 of 1 files cannot be read"):
        data.image_folder(tmp_path, 8, unreadable="skip")


def test_an_enormous_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png", size=(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"root: 1 of 1 files cannot be read: .*a\.png"):
        data.image_folder(tmp_path, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (8, 8, 8)}, "size: expected one number, or height and width"),
        ({"size": 0}, "size: expected an integer of at least 1"),
        ({"size": 8, "channels": 4}, "channels: expected one of 1, 3; got 4"),
        ({"size": 8, "unreadable": "ignore"}, "unreadable: expected one of"),
    ],
)
def test_misuse_names_the_argument(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match=message):
        data.image_folder(tmp_path, **options)


def test_a_folder_that_is_not_one_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a folder; expected one of images, or of subfolders per class"):
        data.image_folder(tmp_path / "none", 8)
    with pytest.raises(FileNotFoundError, match="root: no images in"):
        data.image_folder(tmp_path, 8)
    picture(tmp_path / "train" / "ants" / "a.png")
    with pytest.raises(FileNotFoundError, match=r"there are folders within train: name the folder with the classes"):
        data.image_folder(tmp_path, 8)


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    picture(tmp_path / "pictures" / "a.png")
    assert len(data.image_folder("~/pictures", 8)) == 1


# In a training --------------------------------------------------------------------------------------------------------

CONFIG = TrainConfig(steps=2, batch_size=4)


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    for name, value in (("ants", 0), ("bees", 255)):
        for k in range(3):
            picture(tmp_path / "animals" / name / f"{k}.png", value)
    return tmp_path / "animals"


def network(classes: int | None) -> UNet:
    return UNet(3, 8, width=8, multipliers=(1, 2), num_classes=classes)


@pytest.mark.parametrize("classes", [1, 3, 10])
def test_another_number_of_classes_than_the_folder_s_is_refused(classes: int, animals: Path) -> None:
    with pytest.raises(ValueError, match=rf"num_classes: expected 2, .* \(ants, bees\); got {classes}"):
        fit(network(classes), FlowMatching(), data.image_folder(animals, 8), CONFIG)


def test_labels_of_any_data_set_are_held_against_the_classes() -> None:
    class Labeled(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Any:
            return torch.zeros(3, 8, 8), 2  # the null label of two classes

    with pytest.raises(ValueError, match="y: expected labels from 0 to 1, and -1 where there is none; got 2 to 2"):
        fit(network(2), FlowMatching(condition_dropout=0.1), Labeled(), CONFIG)


def test_the_names_of_the_classes_are_stored(animals: Path, tmp_path: Path) -> None:
    run = fit(network(2), FlowMatching(), data.image_folder(animals, 8), CONFIG, out=tmp_path / "run")
    assert run.velocity.classes == load(tmp_path / "run").classes == ["ants", "bees"]


def test_a_folder_that_moved_is_the_same_and_one_that_changed_is_not(animals: Path, tmp_path: Path) -> None:
    def run(stop: int, folder: Path) -> int:
        images = data.image_folder(folder, 8)
        return fit(network(2), FlowMatching(), images, CONFIG, out=tmp_path / "run", stop_after=stop).step

    run(1, animals)
    shutil.move(animals, tmp_path / "elsewhere")
    assert run(2, tmp_path / "elsewhere") == 2
    picture(tmp_path / "elsewhere" / "ants" / "new.png")
    with pytest.raises(ValueError, match=r"data was '6 images .*', is '7 images .*extend=.'data'. goes on"):
        run(2, tmp_path / "elsewhere")


def test_what_lies_deeper_and_broken_links_are_counted(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "a.png")
    picture(tmp_path / "cat" / "more" / "b.png")
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.warns(UserWarning, match="2 entries of .* are left out .*(folders within classes|broken links)"):
        size: Any = np.int64(8)
        assert len(data.image_folder(tmp_path, size)) == 1
