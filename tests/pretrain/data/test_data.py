"""Loading: the same bits for any number of workers, ranks and resumption; corrupt images; evaluation batches."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from pretrain.data.loading import (
    CorruptCounter,
    TrainLoader,
    batches_per_epoch,
    center_crop,
    epoch_order,
    image_batches,
    normalize,
    random_resized_crop,
    to_device,
)
from pretrain.data.sources import open_source
from pretrain.data.views import view_set
from pretrain.settings import DEFAULTS
from sslight.core.config import load_config
from sslight.core.errors import InputError
from tests.pretrain.data.photos import jpeg, photos, write_folder

SMALL = [
    "VIEWS.GLOBAL_SIZE",
    "48",
    "VIEWS.LOCAL_SIZE",
    "32",
    "VIEWS.LOCAL_NUMBER",
    "2",
    "TRAIN.BATCH_SIZE",
    "4",
    "DATA.WORKERS",
    "0",
    "SEED",
    "7",
]


def config(*overrides: str):
    return load_config(DEFAULTS, None, [*SMALL, *overrides])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data"), per_class=9)


@pytest.fixture
def source(folder):
    return open_source(folder, "train")


def batches(source, cfg, epoch=3, first_batch=0, **ranks):
    return list(TrainLoader(source, view_set(cfg), cfg, **ranks).epoch(epoch, first_batch))


def assert_same(a, b):
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.indices, y.indices) and x.corrupt == y.corrupt
        assert all(torch.equal(u, v) for u, v in zip(x.views, y.views, strict=True))


@pytest.mark.parametrize("pipeline", ["fast", "reference"])
def test_workers_change_nothing(source, pipeline):
    alone = batches(source, config("DATA.PIPELINE", pipeline))
    assert_same(alone, batches(source, config("DATA.PIPELINE", pipeline, "DATA.WORKERS", "2")))
    views = alone[0].views
    assert [list(view.shape) for view in views] == [[4, 3, 48, 48]] * 2 + [[4, 3, 32, 32]] * 2
    assert all(view.dtype == torch.uint8 for view in views)
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(views[:2], 2))


def test_resuming_inside_an_epoch_changes_nothing(source):
    cfg = config()
    assert_same(batches(source, cfg)[2:], batches(source, cfg, first_batch=2))


def test_ranks_share_the_batch_of_one_process(source):
    whole = batches(source, config("TRAIN.BATCH_SIZE", "8"))
    parts = [batches(source, config(), rank=rank, world=2) for rank in range(2)]
    assert len(whole) == 2
    for both, first, second in zip(whole, *parts, strict=True):
        assert torch.equal(both.indices, torch.cat([first.indices, second.indices]))
        for view, a, b in zip(both.views, first.views, second.views, strict=True):
            assert torch.equal(view, torch.cat([a, b]))


def test_an_epoch_sees_each_sample_at_most_once_and_epochs_differ(source):
    cfg = config()
    assert batches_per_epoch(source, cfg, 1) == 4 and batches_per_epoch(source, cfg, 2) == 2  # of 18 images
    seen = [torch.cat([batch.indices for batch in batches(source, cfg, epoch=epoch)]).tolist() for epoch in (0, 1)]
    assert all(len(set(order)) == 16 for order in seen) and seen[0] != seen[1]
    assert sorted(epoch_order(18, 7, 0)) == list(range(18))
    assert seen[0] == epoch_order(18, 7, 0)[:16].tolist()


def test_workers_stay_alive_over_epochs_and_interrupted_ones(source):
    cfg = config("DATA.WORKERS", "2")
    loader = TrainLoader(source, view_set(cfg), cfg)
    abandoned = loader.epoch(0)
    next(abandoned)
    abandoned.close()
    assert_same(list(loader.epoch(5)), batches(source, config(), epoch=5))
    assert_same(list(loader.epoch(6)), batches(source, config(), epoch=6))


def test_too_few_images_are_refused(source):
    with pytest.raises(InputError, match="18 images .* TRAIN.BATCH_SIZE 32"):
        batches_per_epoch(source, config("TRAIN.BATCH_SIZE", "32"), 1)


def test_unknown_pipeline_is_refused(source):
    with pytest.raises(InputError, match="did you mean 'fast'"):
        batches(source, config("DATA.PIPELINE", "fats"))


def test_to_device_normalises(source):
    cfg = config()
    batch = batches(source, cfg)[0]
    out = to_device(batch, cfg, torch.device("cpu"))
    mean, std = torch.tensor(cfg.DATA.MEAN), torch.tensor(cfg.DATA.STD)
    for view, ours in zip(batch.views, out, strict=True):
        expected = (view.double() / 255 - mean[:, None, None]) / std[:, None, None]
        torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=0)
        assert ours.dtype == torch.float32 and ours.is_contiguous(memory_format=torch.channels_last)
    plain = to_device(batch, config("TRAIN.CHANNELS_LAST", "False"), torch.device("cpu"))
    assert plain[0].is_contiguous() and torch.equal(plain[0], out[0])


def test_colour_on_the_device_gives_the_same_views(source):
    """Mean difference at most 1 level of 255 in the normalised views."""
    here, there = config(), config("DATA.COLOR_ON_DEVICE", "True", "DATA.WORKERS", "1")
    for a, b in zip(batches(source, here), batches(source, there), strict=True):
        assert a.color is None and torch.equal(a.indices, b.indices)
        for view, other in zip(
            to_device(a, here, torch.device("cpu")), to_device(b, there, torch.device("cpu")), strict=True
        ):
            assert (view - other).abs().mean() * 255 * 0.225 < 1.0
    assert any(not torch.equal(view, other) for view, other in zip(a.views, b.views, strict=True))


def test_an_image_of_unclear_range_stops_the_run_by_name(tmp_path):
    """Also where the look at some headers before the work missed it; under the setting it keeps its levels."""
    folder = write_folder(tmp_path, per_class=4, splits=("train",))
    values = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    Image.fromarray(values).save(folder / "train" / "dog" / "x.png")
    source, transform = open_source(folder, "train"), center_crop(64, 64)
    words = "dog/x.png in .* has 16 bits a channel.*set DATA.MAX_VALUE"
    for workers in (0, 1):
        with pytest.raises(InputError, match=words):
            list(image_batches(source, range(9), transform, batch_size=4, workers=workers, corrupt=[]))
        for pipeline in ("fast", "reference"):
            with pytest.raises(InputError, match=words):
                batches(
                    source, config("TRAIN.BATCH_SIZE", "9", "DATA.WORKERS", str(workers), "DATA.PIPELINE", pipeline)
                )
    source.max_value = 4095.0
    [(images, _)] = image_batches(source, [8], transform, batch_size=1, workers=0)
    np.testing.assert_allclose(images[0, 0].numpy(), values * (255 / 4095), atol=0.51)


def damaged(tmp_path, number: int = 2):
    """18 images, of which `number` are unreadable: one empty, the others cut off."""
    root = write_folder(tmp_path, per_class=9, splits=("train",))
    files = sorted((root / "train").rglob("*.jpg"))
    for k in range(number):
        files[3 + 5 * k].write_bytes(files[3].read_bytes()[: 200 * k])
    return open_source(root, "train"), {f"{file.parent.name}/{file.name}" for file in files[3 : 3 + 5 * number : 5]}


def test_corrupt_images_are_replaced_counted_and_named(tmp_path):
    source, bad = damaged(tmp_path)
    alone = batches(source, config("TRAIN.BATCH_SIZE", "6"))
    assert_same(alone, batches(source, config("TRAIN.BATCH_SIZE", "6", "DATA.WORKERS", "2")))
    named = dict(entry for batch in alone for entry in batch.corrupt)
    assert set(named) == bad and "empty" in named[min(bad)]
    order = epoch_order(18, 7, 3)
    used = torch.cat([batch.indices for batch in alone]).numpy()
    assert (used != order).sum() == 2 and not {source.name(i) for i in used} & bad


def test_too_many_corrupt_images_stop_the_run_with_the_list(tmp_path):
    source, bad = damaged(tmp_path)
    made = batches(source, config("TRAIN.BATCH_SIZE", "18"))
    counter = CorruptCounter(len(source), limit=2 / 18)
    assert {name for name, _ in counter.update(made[0])} == bad
    assert counter.update(made[0]) == []  # already reported
    counter.gather()
    with pytest.raises(InputError, match="2 of 18 images are corrupt") as caught:
        CorruptCounter(len(source), limit=0.001).update(made[0])
    assert all(name in str(caught.value) for name in bad)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_nothing_but_corrupt_images_is_an_error_not_a_loop(tmp_path, workers):
    source, _ = damaged(tmp_path, number=3)
    for file in (tmp_path / "train").rglob("*.jpg"):
        file.write_bytes(b"\xff\xd8\xff\xe0 not really")
    with pytest.raises(InputError, match="in a row are corrupt") as caught:
        batches(source, config("DATA.WORKERS", workers))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(("width", "height"), [(250, 188), (188, 250), (300, 300), (60, 90), (500, 375)])
def test_center_crop_is_torchvisions(tmp_path, width, height):
    """Mean difference at most 0.3 levels of 255 (the task allows 1), at most 2 anywhere."""
    images = [photo.resize((width, height)) for photo in photos()]
    (tmp_path / "val").mkdir()
    for number, image in enumerate(images):
        image.save(tmp_path / "val" / f"{number}.png")
    theirs = Compose([Resize(128, InterpolationMode.BICUBIC), CenterCrop(112)])
    source = open_source(tmp_path, "val", labels=False)
    made = list(image_batches(source, [1, 0], center_crop(128, 112), batch_size=1, workers=0))
    assert [indices.tolist() for _, indices in made] == [[1], [0]]
    for ours, indices in made:
        difference = np.abs(ours[0].permute(1, 2, 0).numpy().astype(int) - np.asarray(theirs(images[indices[0]])))
        assert difference.mean() <= 0.3 and difference.max() <= 2


def test_image_batches_keep_order_and_the_short_last_batch(source):
    made = list(image_batches(source, range(10), center_crop(40, 32), batch_size=4, workers=2))
    assert torch.cat([indices for _, indices in made]).tolist() == list(range(10))
    assert [len(images) for images, _ in made] == [4, 4, 2] and made[0][0].shape[1:] == (3, 32, 32)
    again = list(image_batches(source, range(10), center_crop(40, 32), batch_size=10, workers=0))
    assert torch.equal(torch.cat([images for images, _ in made]), again[0][0])


def test_random_resized_crop_depends_on_seed_epoch_and_index(source):
    def images(indices, seed, epoch, workers=0):
        crop = random_resized_crop(32, seed, epoch)
        return torch.cat([x for x, _ in image_batches(source, indices, crop, batch_size=3, workers=workers)])

    whole = images(range(8), 0, 0)
    assert torch.equal(whole, images(range(8), 0, 0, workers=2))
    assert torch.equal(whole[[5, 2]], images([5, 2], 0, 0))
    assert not torch.equal(whole, images(range(8), 0, 1)) and not torch.equal(whole, images(range(8), 1, 0))


def test_eval_leaves_corrupt_images_out_or_stops(tmp_path):
    source, bad = damaged(tmp_path)
    found = []
    made = list(image_batches(source, range(18), center_crop(40, 32), batch_size=5, workers=0, corrupt=found))
    assert {name for name, _ in found} == bad
    assert torch.cat([indices for _, indices in made]).tolist() == [i for i in range(18) if source.name(i) not in bad]
    with pytest.raises(InputError, match="corrupt image .*003.jpg"):
        list(image_batches(source, range(18), center_crop(40, 32), batch_size=5, workers=0))


def test_center_crop_larger_than_the_image_is_refused():
    with pytest.raises(InputError, match="at most"):
        center_crop(224, 256)


def test_normalize_matches_its_definition():
    images = torch.arange(0, 240, dtype=torch.uint8).view(1, 3, 8, 10)
    out = normalize(images, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    expected = (images.double() / 255 - mean) / std
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=0)


def test_replacement_is_decided_by_position(tmp_path):
    source, _ = damaged(tmp_path, number=1)
    used = [torch.cat([b.indices for b in batches(source, config("TRAIN.BATCH_SIZE", size), epoch=1)]) for size in "36"]
    assert torch.equal(*used)


def test_images_without_jpeg_end_still_load(tmp_path):
    """Bytes after the end of a JPEG are common and harmless."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.jpg").write_bytes(jpeg(photos()[0]) + b"\0\0\r\n")
    source = open_source(tmp_path, "train", labels=False)
    ((images, _),) = image_batches(source, [0], center_crop(40, 32), batch_size=1, workers=0)
    assert Image.fromarray(images[0].permute(1, 2, 0).numpy()).size == (32, 32)
