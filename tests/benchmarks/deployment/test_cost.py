"""The cost of a backbone: counts against closed forms, and what is kept of an earlier measurement."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks.deployment import cost
from benchmarks.evaluation import main
from benchmarks.report import plots as report_cost
from pretrain.backbones import build_backbone
from sslight.core.errors import InputError


def test_the_front_holds_what_nothing_beats():
    points = [(3, 70), (1, 50), (2, 60), (2, 65), (4, 69), (1, 40)]
    assert report_cost.front(points) == [(1, 50), (2, 65), (3, 70)]


def test_a_measurement_is_kept_until_a_setting_changes(tmp_path, capsys):
    call = ["resnet18", "-o", str(tmp_path), "--size", "32", "--batch-size", "2", "--seconds", "0.01"]
    file = tmp_path / "resnet18" / "cost.json"
    assert main(cost.EVALUATION, call) == 0
    first = file.read_bytes()
    assert json.loads(first)["parameters"] == 11_176_512  # torchvision's 11,689,512 without the classifier's 513,000
    assert (
        main(cost.EVALUATION, call) == 0 and file.read_bytes() == first and "measured before" in capsys.readouterr().out
    )
    assert (
        main(cost.EVALUATION, [*call[:-3], "3", *call[-2:]]) == 0 and json.loads(file.read_bytes())["batch_size"] == 3
    )


@pytest.mark.parametrize(
    ("arch", "form", "parameters"), [("mobileone_s0", "deployed", 1_053_504), ("mobilenetv2_100", "single", 2_223_872)]
)
def test_a_network_is_measured_in_the_form_that_a_device_runs(tmp_path, capsys, arch, form, parameters):
    """MobileOne-S0 has 4.27 M parameters in training; deployed, the paper's 2.1 M less the classifier's 1.025 M."""
    main(cost.EVALUATION, [arch, "-o", str(tmp_path), "--size", "32", "--batch-size", "2", "--seconds", "0.01"])
    found = json.loads((tmp_path / arch / "cost.json").read_text())
    assert (found["form"], found["parameters"], found["form_note"]) == (form, parameters, "")
    assert capsys.readouterr().out.startswith(f"{arch} (deployed form): " if form == "deployed" else f"{arch}: ")


def test_a_training_form_is_named(tmp_path, capsys, monkeypatch):
    def unable(network):
        raise RuntimeError("no kernel to fold")

    monkeypatch.setattr("convert.deployment.reparameterize_model", unable)
    main(
        cost.EVALUATION, ["mobileone_s0", "-o", str(tmp_path), "--size", "32", "--batch-size", "2", "--seconds", "0.01"]
    )
    found = cost.read_cost(tmp_path / "mobileone_s0" / "cost.json")
    assert found["form"] == "training" and found["parameters"] == 4_268_272
    assert "(training form: timm cannot fold it (RuntimeError: no kernel to fold)): 4.27 M" in capsys.readouterr().out


def test_a_measurement_of_an_earlier_version_is_made_again(tmp_path):
    call = ["resnet18", "-o", str(tmp_path), "--size", "32", "--batch-size", "2", "--seconds", "0.01"]
    file = tmp_path / "resnet18" / "cost.json"
    main(cost.EVALUATION, call)
    file.write_text(file.read_text().replace(cost.SCHEMA, "sslight-cost-1"))
    main(cost.EVALUATION, call)
    assert cost.read_cost(file)["schema"] == cost.SCHEMA


def test_a_network_is_measured_with_its_build_options(tmp_path, capsys):
    """Patches of 8 pixels are four times as many as of 16; a checkpoint's own options count, too."""
    torch.save(build_backbone("vit_tiny", patch_size=8, img_size=64).state_dict(), tmp_path / "vit.pth")
    call = ["-o", str(tmp_path), "--size", "64", "--batch-size", "2", "--seconds", "0.01"]
    assert main(cost.EVALUATION, ["vit_tiny", "--set", "patch_size=8", *call]) == 0
    found = json.loads((tmp_path / "vit_tiny_patch16_224_patch_size=8" / "cost.json").read_text())
    assert found["parameters"] == sum(value.numel() for value in build_backbone("vit_tiny", patch_size=8).parameters())
    assert (
        main(cost.EVALUATION, [str(tmp_path / "vit.pth"), *call]) == 0 and "measured before" in capsys.readouterr().out
    )
    assert found["options"] == {"patch_size": 8} and main(cost.EVALUATION, ["vit_tiny", *call]) == 0
    plain = json.loads((tmp_path / "vit_tiny_patch16_224" / "cost.json").read_text())
    assert found["flops"] > 2 * plain["flops"] and "options" not in plain
    with pytest.raises(InputError, match="no build option 'patch'"):
        main(cost.EVALUATION, ["resnet18", "--set", "patch=8", *call])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["resnet81"], "did you mean 'resnet18'"), (["resnet18", "--size", "0"], "want positive numbers")],
)
def test_bad_input_is_one_clear_line(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        main(cost.EVALUATION, [*arguments, "-o", str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"flops": 0},
        {"flops": math.inf},
        {"flops": "many"},
        {"latency_ms_quartiles": [1]},
        {"schema": "x"},
        {"schema": "sslight-cost-1"},
        {"form": "other"},
    ],
)
def test_a_file_that_is_none_is_named(tmp_path, change):
    whole = {
        "schema": cost.SCHEMA,
        "form": "single",
        "form_note": "",
        "latency_ms_quartiles": [1, 2],
        "command": "sslight bench cost",
        **dict.fromkeys((*cost.SAME, *cost.NUMBERS), 1),
    }
    (tmp_path / "cost.json").write_text(json.dumps(whole))
    assert cost.read_cost(tmp_path / "cost.json") == whole
    (tmp_path / "cost.json").write_text(json.dumps(whole | change))
    with pytest.raises(InputError, match="not a file of this version's `sslight bench cost`"):
        cost.read_cost(tmp_path / "cost.json")
