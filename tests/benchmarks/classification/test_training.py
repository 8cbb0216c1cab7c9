"""An epoch's batches against torch's sampler and loader, as the published program uses them; the last one's weight."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import BatchSampler, DistributedSampler

from benchmarks.classification import linear, semisup, training
from benchmarks.classification.labelled import open_splits
from benchmarks.classification.weights import load_subject
from benchmarks.evaluation import main
from pretrain.data.loading import epoch_order, image_batches, normalize, random_resized_crop
from sslight.core import distributed
from sslight.core.config import load_config
from sslight.core.result import read_result
from tests.benchmarks.classification.test_linear import PUBLISHED, arguments, final_weights


@pytest.mark.parametrize(
    "images, world, share, steps",
    [
        (12811, 8, 128, 13),
        (128116, 8, 128, 126),
        (1281167, 8, 512, 313),  # 1%, 10%, linear: the published runs
        (12811, 1, 1024, 13),
        (96, 2, 24, 2),
        (97, 2, 24, 3),
        (50, 4, 16, 1),
        (20, 8, 16, 1),
    ],
)
def test_batches_are_those_of_the_published_loader(monkeypatch, images, world, share, steps):
    """Every rank's batches equal a BatchSampler over a DistributedSampler, without its repeated images."""
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    shuffled = np.array(list(DistributedSampler(range(images), num_replicas=1, rank=0)))
    order = training.fill_up(shuffled, share * world, 1)
    for rank in (0, world - 1):
        sampler = DistributedSampler(range(images), num_replicas=world, rank=rank)
        expected = list(BatchSampler(sampler, share, drop_last=False))
        mine = order[rank::world]
        assert len(expected) == steps
        if rank >= images % world > 0 and images % (share * world) > world:  # here the sampler repeats an image
            expected[-1].pop()
        assert [mine[i * share : (i + 1) * share].tolist() for i in range(steps)] == expected


@pytest.mark.parametrize("images, world, share", [(97, 1, 24), (49, 2, 24), (100, 4, 24), (19, 4, 16)])
def test_no_rank_is_left_with_too_few_images_for_batch_norm(monkeypatch, images, world, share):
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    order = training.fill_up(np.arange(images), share * world, 2)
    assert order[:images].tolist() == list(range(images))
    assert (len(order) % (share * world)) // world >= 2


def test_the_last_batch_weighs_as_much_as_the_others(image_folder, tmp_path):
    """96 images in batches of 40: three steps of SGD, each on the mean over its own images, written out."""
    argv = arguments(
        PUBLISHED,
        image_folder,
        tmp_path,
        **{
            "TRAIN.BATCH_SIZE": 40,
            "SOLVER.TOTAL_EPOCHS": 1,
            "SOLVER.OPTIMIZER": "SGD",
            "SOLVER.BASE_LR": 0.5,
            "TRAIN.LOG_PERIOD": 1,
        },
    )
    main(linear.EVALUATION, argv)
    cfg = load_config(linear.EVALUATION.settings, PUBLISHED, argv[2:])
    train, subject = open_splits(cfg)[0], load_subject(cfg)
    images, used = next(
        image_batches(train.source, epoch_order(96, 0, 0), random_resized_crop(32, 0, 0), batch_size=96, workers=0)
    )
    with torch.no_grad():
        features = subject.backbone.eval()(normalize(images, subject.mean, subject.std))
    labels = torch.as_tensor(train.labels[used.numpy()])
    with training.seeded(0):
        head = torch.nn.Linear(512, 4)
        torch.nn.init.normal_(head.weight, std=0.01)
        torch.nn.init.zeros_(head.bias)
    sgd = torch.optim.SGD(head.parameters(), lr=0.5 * 40 / 256, momentum=0.9)
    for rows in torch.arange(96).split(40):
        sgd.zero_grad()
        F.cross_entropy(head(features[rows]), labels[rows]).backward()
        sgd.step()
    ours = final_weights(tmp_path)
    torch.testing.assert_close(ours["heads.0.weight"], head.weight.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours["heads.0.bias"], head.bias.detach(), rtol=1e-4, atol=1e-6)


def test_a_last_image_alone_does_not_stop_batch_norm(image_folder, tmp_path):
    """96 images in batches of 19 leave one over."""
    main(
        semisup.EVALUATION,
        arguments(
            "configs/classification/finetune.yaml",
            image_folder,
            tmp_path,
            **{"TRAIN.BATCH_SIZE": 19, "SOLVER.TOTAL_EPOCHS": 1, "HEAD.HIDDEN_SIZE": 16, "TRAIN.LOG_PERIOD": 1},
        ),
    )
    assert read_result(tmp_path)["data"]["counts"]["labelled"] == 96
    assert len((tmp_path / "seed_0" / "metrics.jsonl").read_text().splitlines()) == 6 + 1  # six steps, one epoch


def test_two_processes_share_an_odd_last_batch_as_one_takes_it(image_folder, run, tmp_path):
    """95 images in batches of 40: the last one's 15 are 8 and 7. Every weight to 1e-5."""
    shutil.copytree(image_folder, tmp_path / "data")
    next((tmp_path / "data" / "train").rglob("*.jpg")).unlink()
    words = {"SOLVER.TOTAL_EPOCHS": 1, "SOLVER.OPTIMIZER": "SGD", "SOLVER.BASE_LR": 0.5}
    for processes in (1, 2):
        argv = arguments(
            PUBLISHED, tmp_path / "data", tmp_path / str(processes), **words, **{"TRAIN.BATCH_SIZE": 40 // processes}
        )
        run(
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            processes,
            "-m",
            "benchmarks.linear",
            *argv,
        )
    one, two = (final_weights(tmp_path / str(processes)) for processes in (1, 2))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-5, rtol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
