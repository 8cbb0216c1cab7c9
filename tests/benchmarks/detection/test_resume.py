"""A resumed detection run sees the images that the uninterrupted one would have seen, batch by batch."""

import itertools

import pytest
import torch

BATCH, IMAGES = 4, 23
WIDE = [bool(number % 3) for number in range(IMAGES)]


class Sizes:
    """What mmdet's batch sampler asks of a data set."""

    def __len__(self):
        return IMAGES

    def get_data_info(self, index):
        return {"width": 20 if WIDE[index] else 10, "height": 15}


@pytest.mark.parametrize("done", [1, 2, 9, 30])
def test_mmdet_batches(done):
    pytest.importorskip("mmdet", reason="comes with the mmdet extra")
    from mmengine.dataset import InfiniteSampler

    from benchmarks.detection.in_mmdet.parts import ResumableBatchSampler

    def batches(count, skip=0):
        sampler = ResumableBatchSampler(InfiniteSampler(Sizes(), seed=5), BATCH)
        if skip:
            list(itertools.islice(iter(sampler), 3))  # what workers drew ahead before the checkpoint was read
            sampler.restart(skip)
        return list(itertools.islice(iter(sampler), count))

    whole = batches(done + 6)
    assert batches(6, skip=done) == whole[done:]
    assert all(len({WIDE[index] for index in batch}) == 1 for batch in whole)


@pytest.mark.parametrize("done", [1, 2, 9, 30])
@pytest.mark.detectron2
def test_detectron2_batches(done):
    from detectron2.data.common import AspectRatioGroupedDataset
    from detectron2.data.samplers import TrainingSampler

    from benchmarks.detection.in_detectron2.parts import ResumedSampler

    def batches(sampler, count):
        images = ({"width": 20 if WIDE[index] else 10, "height": 15, "index": index} for index in sampler)
        groups = itertools.islice(iter(AspectRatioGroupedDataset(images, BATCH)), count)
        return [[image["index"] for image in group] for group in groups]

    whole = batches(TrainingSampler(IMAGES, seed=5), done + 6)
    assert batches(ResumedSampler(WIDE, BATCH, done, seed=5), 6) == whole[done:]


def test_only_log_buffers_are_read_beside_tensors(tmp_path):
    pytest.importorskip("mmdet", reason="comes with the mmdet extra")
    from mmengine.logging import HistoryBuffer

    from benchmarks.detection.in_mmdet.parts import readable_checkpoints

    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save({"loss": buffer, "weight": torch.ones(2)}, tmp_path / "mm.pth")
    with readable_checkpoints():
        assert torch.load(tmp_path / "mm.pth", weights_only=True)["loss"].mean(2) == 1.5

    class Evil:
        def __reduce__(self):
            return getattr, (HistoryBuffer, "__init__")

    torch.save({"loss": Evil()}, tmp_path / "evil.pth")
    with readable_checkpoints(), pytest.raises(Exception, match="refused|Unsupported|getattr"):
        torch.load(tmp_path / "evil.pth", weights_only=True)
