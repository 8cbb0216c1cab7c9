"""Linear probes on real files: each protocol, heads that do not see one another, exact resume, several processes."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from benchmarks.classification import features as cache, linear, training
from benchmarks.classification.features import Features, choices_for, widths
from benchmarks.classification.heads import LinearProbes
from benchmarks.classification.weights import state_hash
from benchmarks.evaluation import main
from pretrain.backbones import build_backbone
from sslight.core.config import load_config
from sslight.core.errors import InputError, Stopped
from sslight.core.result import read_result

PUBLISHED, SWEEP, CACHED = (f"configs/classification/linear_{name}.yaml" for name in ("cnn", "sweep", "cached"))


def arguments(cfg, data, out, **extra):
    pairs = {
        "WEIGHTS": "random",
        "MODEL.BACKBONE_ARCH": "resnet18",
        "DATA.PATH_TO_DATA_DIR": data,
        "OUTPUT_DIR": out,
        "DATA.RESIZE": 36,
        "DATA.SIZE": 32,
        "DATA.WORKERS": 0,
        "TRAIN.BATCH_SIZE": 24,
        "FEATURES.BATCH_SIZE": 16,
        "FEATURES.AMP": "none",
        "SOLVER.TOTAL_EPOCHS": 3,
        **extra,
    }
    return ["--cfg", cfg, *(str(word) for pair in pairs.items() for word in pair)]


def final_weights(out, seed=0):
    return torch.load(out / f"seed_{seed}" / "state.pth", weights_only=True)["model"]


def test_published_protocol_reports_last_and_best_epoch(image_folder, tmp_path):
    main(linear.EVALUATION, arguments(PUBLISHED, image_folder, tmp_path, SEEDS="[0,1]"))
    result = read_result(tmp_path)
    assert result["benchmark"] == "linear" and result["protocol"] == "linear_cnn" and result["headline"] == "last epoch"
    for run in result["per_seed"]:
        curve = [point["pooled lr 0.05"] for point in run["curve"]]
        assert len(curve) == 3
        assert run["top1"] == pytest.approx(curve[-1]) and run["top1_best_epoch"] == pytest.approx(max(curve))
        assert run["best_epoch"] == curve.index(max(curve)) + 1
    assert result["metrics"]["top1"]["value"] == pytest.approx(sum(r["top1"] for r in result["per_seed"]) / 2)
    assert "std" in result["metrics"]["top1"]
    assert (tmp_path / "seed_0" / "metrics.jsonl").exists() and (tmp_path / "seed_0" / "tensorboard").is_dir()


def test_one_head_of_a_sweep_equals_that_head_alone(image_folder, tmp_path):
    rates = {"PROBE.LEARNING_RATES": "[0.001,0.02,0.1]", "PROBE.HOLDOUT": 0.25, "TRAIN.EVAL_PERIOD": 3}
    main(
        linear.EVALUATION,
        arguments(SWEEP, image_folder, tmp_path / "all", **rates, **{"PROBE.FEATURES": "['pooled','stage2']"}),
    )
    main(
        linear.EVALUATION,
        arguments(
            SWEEP,
            image_folder,
            tmp_path / "one",
            **rates | {"PROBE.LEARNING_RATES": "[0.02]"},
            **{"PROBE.FEATURES": "['stage2']"},
        ),
    )
    together, alone = final_weights(tmp_path / "all"), final_weights(tmp_path / "one")
    for part in ("weight", "bias"):  # heads: pooled at three rates, then stage2 at three
        torch.testing.assert_close(together[f"heads.4.{part}"], alone[f"heads.0.{part}"], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(together[f"heads.5.{part}"], alone[f"heads.0.{part}"], atol=1e-4)
    result = read_result(tmp_path / "all")
    run = result["per_seed"][0]
    assert len(run["heads"]) == 6
    chosen = run["heads"][run["head"]]
    assert chosen["holdout_top1"] == max(head["holdout_top1"] for head in run["heads"].values())
    assert run["top1"] == pytest.approx(chosen["val_top1"]) and "top1_best_epoch" not in run


def test_a_step_is_the_papers_update():
    """SGD with momentum on one head, written out: p -= lr * (0.9 v + g)."""
    torch.manual_seed(0)
    features = Features(build_backbone("resnet18"), ["pooled"])
    model = LinearProbes(features, {"pooled": 512}, 4, [0.5], seed=1).train()
    cfg = load_config(linear.EVALUATION.settings, None, ["SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "0.5"])
    optimizer = training.build_optimizer(cfg, model.groups(0.5))
    weight, momentum = model.heads[0].weight.detach().clone(), 0
    images, labels = torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 3, 0, 1])
    for _ in range(3):
        x = features.eval()(images)["pooled"].detach()
        p = (x @ model.heads[0].weight.detach().T + model.heads[0].bias.detach()).softmax(1)
        momentum = 0.9 * momentum + (p - torch.nn.functional.one_hot(labels, 4)).T @ x / 6
        weight = weight - 0.02 * momentum
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * group["lr_factor"]
        training.one_step(cfg, model, optimizer, images, labels, torch.device("cpu"))
        torch.testing.assert_close(model.heads[0].weight.detach(), weight, atol=1e-5, rtol=1e-4)


def test_the_backbone_stays_as_it_is(image_folder, tmp_path, monkeypatch):
    main(linear.EVALUATION, arguments(PUBLISHED, image_folder, tmp_path / "fine"))
    monkeypatch.setattr(LinearProbes, "train", torch.nn.Module.train)  # a probe that forgets eval mode moves BN
    with pytest.raises(RuntimeError, match="changed during evaluation"):
        main(linear.EVALUATION, arguments(PUBLISHED, image_folder, tmp_path / "moved"))


def test_cached_features_say_that_they_are_another_protocol(image_folder, tmp_path):
    main(
        linear.EVALUATION,
        arguments(CACHED, image_folder, tmp_path, **{"PROBE.FLIPS": True, "PROBE.PENALTIES": "[0.1,0.01]"}),
    )
    result = read_result(tmp_path)
    assert "not the published protocol" in result["headline"]
    assert [row["penalty"] for row in result["per_seed"][0]["path"]] == [0.1, 0.01]
    assert len(list((tmp_path / "features").iterdir())) == 3  # train, train mirrored, val


@pytest.mark.parametrize("batch, stop_after", [(24, 1), (24, 4), (24, 6), (40, 2), (40, 3)])  # 40 + 40 + 16 images
def test_a_stopped_run_continues_to_the_same_numbers(image_folder, tmp_path, monkeypatch, batch, stop_after):
    extra = {"TRAIN.BATCH_SIZE": batch}
    main(linear.EVALUATION, arguments(PUBLISHED, image_folder, tmp_path / "whole", **extra))
    steps = []
    original = training.StopSignal.requested

    def requested(self):
        steps.append(1)
        return len(steps) == stop_after or original(self)

    monkeypatch.setattr(training.StopSignal, "requested", requested)
    with pytest.raises(Stopped, match="start the same command again"):
        main(linear.EVALUATION, arguments(PUBLISHED, image_folder, tmp_path / "parts", **extra))
    main(linear.EVALUATION, arguments(PUBLISHED, image_folder, tmp_path / "parts", **extra))
    same_outcome(tmp_path / "whole", tmp_path / "parts")


def same_outcome(first, second):
    one, two = read_result(first), read_result(second)
    assert one["metrics"] == two["metrics"] and one["per_seed"] == two["per_seed"]
    weights = final_weights(first), final_weights(second)
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_stop_saves_and_exits_75(image_folder, tmp_path, number):
    argv = arguments(PUBLISHED, image_folder, tmp_path / "out", **{"SOLVER.TOTAL_EPOCHS": 500})
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.linear", *argv],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": "."},
    )
    while not (tmp_path / "out" / "seed_0" / "state.pth").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75 and errors.startswith("stopped: saved"), errors


@pytest.mark.parametrize(
    "change, words",
    [
        ({"PROBE.LEARNING_RATES": "[0.1,0.2]"}, "several heads need PROBE.HOLDOUT"),
        ({"PROBE.FEATURES": "['stage9']"}, "has 5 stages"),
        ({"PROBE.CACHED": True}, "set PROBE.HOLDOUT"),
        ({"SOLVER.OPTIMIZER": "ADAM"}, "SGD, LARS"),
        ({"SEEDS": "[0,0]"}, "names a seed twice"),
        ({"SOLVER.BASE_LR": 1e38, "SOLVER.OPTIMIZER": "SGD"}, "the loss is"),
    ],
)
def test_bad_input_is_one_line(image_folder, tmp_path, change, words):
    with pytest.raises(InputError, match=words) as error:
        main(linear.EVALUATION, arguments(PUBLISHED, image_folder, tmp_path, **change))
    assert "\n" not in str(error.value)


def test_a_directory_of_another_recipe_is_refused(image_folder, tmp_path):
    main(linear.EVALUATION, arguments(PUBLISHED, image_folder, tmp_path))
    with pytest.raises(InputError, match="SOLVER.BASE_LR"):
        main(linear.EVALUATION, arguments(PUBLISHED, image_folder, tmp_path, **{"SOLVER.BASE_LR": 0.2}))


class TestFeatures:
    def test_vit_class_tokens_are_the_normed_ones_of_the_last_blocks(self):
        torch.manual_seed(0)
        model = build_backbone("test_vit").eval()
        images, tokens = torch.randn(2, 3, 48, 48), []
        hooks = [block.register_forward_hook(lambda _, __, out: tokens.append(out)) for block in model.blocks]
        with torch.no_grad():
            pooled = model(images)
            normed = [model.norm(token) for token in tokens]
            tokens.clear()
            found = Features(model, ["pooled", "cls1", "cls2", "cls2_avg"])(images)
        for hook in hooks:
            hook.remove()
        cls2 = torch.cat([normed[-2][:, 0], normed[-1][:, 0]], 1)
        torch.testing.assert_close(found["pooled"], pooled)
        torch.testing.assert_close(found["cls1"], normed[-1][:, 0])
        torch.testing.assert_close(found["cls2"], cls2)
        patches = normed[-1][:, model.num_prefix_tokens :].mean(1)
        torch.testing.assert_close(found["cls2_avg"], torch.cat([cls2, patches], 1))

    @pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2"])
    def test_stages_and_pooled_from_one_forward(self, arch):
        model = build_backbone(arch).eval()
        images = torch.randn(2, 3, 32, 32)
        chosen = choices_for(model, ["auto"])
        with torch.no_grad():
            found = Features(model, chosen)(images)
            torch.testing.assert_close(found["pooled"], model(images))
        assert chosen == ["pooled", "stage1", "stage2"]
        assert {name: value.shape[1] for name, value in found.items()} == widths(Features(model, chosen), 32)
        if arch == "resnet18":
            torch.testing.assert_close(found["stage1"], found["pooled"])
            assert found["stage2"].shape[1] == 256

    def test_what_a_network_lacks_is_refused(self):
        with pytest.raises(InputError, match="use pooled, stage1"):
            choices_for(build_backbone("resnet18"), ["cls1"])
        with pytest.raises(InputError, match="cls9"):
            choices_for(build_backbone("test_vit"), ["cls9"])


def test_rows_of_parts_read_like_one_array(tmp_path):
    whole = np.arange(50, dtype=np.float32).reshape(25, 2)
    paths = []
    for first in range(0, 25, 10):
        paths.append(tmp_path / f"{first}.npy")
        np.save(paths[-1], whole[first : first + 10])
    rows = cache.Rows(paths)
    assert rows.shape == (25, 2)
    for start in range(0, 26):
        for stop in (start, start + 1, start + 7, 25, 40):
            np.testing.assert_array_equal(rows[start:stop], whole[start:stop])


def test_the_hash_sees_statistics_and_names():
    torch.manual_seed(0)
    model = build_backbone("resnet18")
    before = state_hash(model)
    assert state_hash(model) == before
    model.bn1.running_mean[0] += 1
    assert state_hash(model) != before
