"""Images of a detection set: every header against its entry, before a run; what cannot be decoded, within one."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.detection import preflight
from benchmarks.detection.data import Split
from pretrain.data.decode import decode_reference
from sslight.core.errors import InputError
from tests.benchmarks.detection.coco_tiny import ROOT

SIZE = (30, 20)


def folder_of(tmp_path, count=60) -> Split:
    """Images of noise, all in order; more of them than the sample that is decoded."""
    rng = np.random.default_rng(0)
    for k in range(count):
        Image.fromarray(rng.integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)).save(tmp_path / f"{k}.jpg")
    images = [{"id": k, "file_name": f"{k}.jpg", "width": SIZE[0], "height": SIZE[1]} for k in range(count)]
    return Split(Path("x.json"), tmp_path, {"images": images})


def outside_the_sample(split: Split) -> Path:
    images = split.content["images"]
    sample = {image["id"] for image in random.Random(0).sample(images, preflight.SAMPLE)}
    return split.images / next(image["file_name"] for image in images if image["id"] not in sample)


def turned(file: Path, orientation: int, size=SIZE):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(file, exif=exif)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_headers_say_the_size_that_decoding_gives(suffix, tmp_path):
    for orientation in range(1, 9):
        turned(tmp_path / f"x.{suffix}", orientation)
        with open(tmp_path / f"x.{suffix}", "rb") as file:
            stored, upright = preflight.header_sizes(file)
        assert stored == SIZE
        assert upright == decode_reference((tmp_path / f"x.{suffix}").read_bytes()).size


def test_a_wrong_size_of_any_image_is_found(tmp_path):
    split = folder_of(tmp_path)
    preflight.check_images([split], None)
    file = outside_the_sample(split)
    Image.new("RGB", (31, 20)).save(file)
    with pytest.raises(InputError, match=f"{file.name} is 31x20 pixels, but x.json says 30x20: images and") as error:
        preflight.check_images([split], None)
    assert "EXIF" not in str(error.value) and "more of the" not in str(error.value)
    for k in range(3):
        Image.new("RGB", (20, 20)).save(tmp_path / f"{k}.jpg")
    with pytest.raises(InputError, match=r"0.jpg is 20x20 .*\([23] more of the 60 images are at fault\)"):
        preflight.check_images([split], None)


def test_a_size_before_its_exif_rotation_is_named_so(tmp_path):
    split = folder_of(tmp_path)
    file = outside_the_sample(split)
    turned(file, 6)  # by 90 degrees, as both frameworks read it
    with pytest.raises(
        InputError,
        match=f"{file.name} is 20x30 pixels, but x.json says 30x20, its size before its EXIF orientation turns it",
    ):
        preflight.check_images([split], None)
    turned(file, 6, SIZE[::-1])
    preflight.check_images([split], None)


@pytest.mark.parametrize("keep", [0, 1, 10, 60, -20, -2])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_cut_file_is_found_wherever_it_is_cut(suffix, keep, tmp_path):
    split = folder_of(tmp_path)
    file = outside_the_sample(split)
    Image.open(file).save(tmp_path / f"x.{suffix}")
    file.write_bytes((tmp_path / f"x.{suffix}").read_bytes()[:keep])
    if suffix == "png" and keep == -2:  # of the last, empty part: every pixel is there
        preflight.check_images([split], None)
        return
    with pytest.raises(InputError, match=f"image cannot be read: .*{file.name}.*replace it or remove it") as error:
        preflight.check_images([split], None)
    assert "\n" not in str(error.value)


def test_bytes_behind_the_end_are_no_fault(tmp_path):
    split = folder_of(tmp_path, 3)
    with open(tmp_path / "1.jpg", "ab") as file:
        file.write(b"made by a camera")
    preflight.check_images([split], None)


def test_a_run_that_goes_on_reads_only_what_has_changed(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    split = folder_of(tmp_path, 5)
    preflight.check_images([split], tmp_path / "out")
    monkeypatch.setattr(preflight, "in_order", set())  # as in another process

    def unexpected(file):
        raise AssertionError("read again")

    read = preflight.header_sizes
    monkeypatch.setattr(preflight, "header_sizes", unexpected)
    preflight.check_images([split], tmp_path / "out")
    Image.new("RGB", (9, 9)).save(tmp_path / "2.jpg")
    monkeypatch.setattr(preflight, "header_sizes", read)
    with pytest.raises(InputError, match="2.jpg is 9x9"):
        preflight.check_images([split], tmp_path / "out")
    with pytest.raises(InputError, match="2.jpg is 9x9"):  # a fault is never noted as in order
        preflight.check_images([split], tmp_path / "out")


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise preflight.unreadable("some/image.jpg", "it is\nbroken")


def test_an_error_of_a_loader_worker_stays_one_line():
    with pytest.raises(InputError) as error:
        next(iter(torch.utils.data.DataLoader(Broken(), num_workers=1)))
    assert str(error.value) == (
        "image cannot be read: some/image.jpg (it is broken); replace it or remove it from the annotation file"
    )


def damaged(file: Path, how: str) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(file)
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-200])
    if how == "other bytes":
        file.write_bytes(b"no picture")


@pytest.mark.parametrize(
    "how, words",
    [
        ("cut", "image cannot be read: .*x.jpg"),
        ("", "x.jpg is 90x60 .* says 90x61"),
        ("other bytes", "image cannot be read: .*x.jpg"),
    ],
)
def test_both_frameworks_name_an_image_that_they_cannot_use(how, words, tmp_path):
    file = tmp_path / "x.jpg"
    damaged(file, how)
    pytest.importorskip("mmdet", reason="comes with the mmdet extra")
    from benchmarks.detection.framework import FRAMEWORKS

    FRAMEWORKS["mmdet"]
    from mmdet.registry import TRANSFORMS

    with pytest.raises(InputError, match=words):
        TRANSFORMS.build({"type": "LoadImageFromFile"})({"img_path": str(file), "width": 90, "height": 61})
    pytest.importorskip("detectron2", reason="not on the package index")
    cfg = FRAMEWORKS["detectron2"].load_config(ROOT / "configs" / "detectron2" / "faster_rcnn_r18_fpn_1x.yaml")
    from benchmarks.detection.in_detectron2.parts import Mapper

    with pytest.raises(InputError, match=words):
        Mapper(cfg, is_train=False)({"file_name": str(file), "image_id": 1, "width": 90, "height": 61})
