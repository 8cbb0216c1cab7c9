"""Loader workers hand over batches through shared memory, of which containers may have too little."""

import types

import pytest

from pretrain.data import loading as loader
from pretrain.data.loading import TrainLoader, center_crop, image_batches
from pretrain.data.sources import open_source
from pretrain.data.views import view_set
from pretrain.settings import DEFAULTS
from sslight.core.config import load_config
from sslight.core.errors import InputError

MEGABYTE = 10**6


@pytest.fixture
def shared(monkeypatch):
    """`shared(size, free)`: shared memory of so many bytes."""

    def make(size: int, free: int | None = None):
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        room = types.SimpleNamespace(f_frsize=1, f_blocks=size, f_bavail=size if free is None else free)
        monkeypatch.setattr(loader.os, "statvfs", lambda path: room)

    return make


def test_what_workers_have_under_way_must_fit(shared, monkeypatch):
    """Two batches a worker and two with the process: 4 workers hold 10, and never more than there are."""
    shared(100 * MEGABYTE)
    loader.check_shared_memory(4, 10 * MEGABYTE)
    loader.check_shared_memory(4, 50 * MEGABYTE, most=2)
    loader.check_shared_memory(0, 1000 * MEGABYTE)
    with pytest.raises(InputError, match=r"100 MB .* DATA.WORKERS 4 .* up to 200 MB: .*--shm-size=1g.* DATA.WORKERS 1"):
        loader.check_shared_memory(4, 20 * MEGABYTE)
    with pytest.raises(InputError, match="or set A.KEY 0"):
        loader.check_shared_memory(4, 90 * MEGABYTE, key="A.KEY")
    shared(100 * MEGABYTE, free=50 * MEGABYTE)
    with pytest.raises(InputError, match="50 MB"):
        loader.check_shared_memory(4, 10 * MEGABYTE)
    shared(100 * MEGABYTE)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"in 2 process\(es\) fills up to 200 MB"):
        loader.check_shared_memory(4, 10 * MEGABYTE)


def test_training_and_evaluation_say_so_before_a_worker_starts(shared, image_folder):
    """96 images of two views of 224 px and ten of 128 px take 76 MB, of 512 px 75 MB; a stock container has 64 MiB."""
    source = open_source(image_folder, "train")
    cfg = load_config(DEFAULTS, None, ["TRAIN.BATCH_SIZE", "32", "VIEWS.LOCAL_NUMBER", "10"])
    views = view_set(cfg)
    shared(64 * 2**20)
    with pytest.raises(InputError, match="/dev/shm has 67 MB"):
        TrainLoader(source, views, cfg, world=1)
    with pytest.raises(InputError, match="/dev/shm has 67 MB"):
        next(image_batches(source, range(len(source)), center_crop(512, 512), batch_size=16, workers=4, corrupt=[]))
    images, _ = next(image_batches(source, range(4), center_crop(512, 512), batch_size=16, workers=1))
    assert len(images) == 4
