"""The cost of a backbone: counts against closed forms, and what is kept of an earlier measurement."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from benchmarks import cost, cost_measure, report_cost
from pretrain.backbones import build_backbone
from pretrain.errors import InputError


def macs_of_a_vit(width=192, depth=12, tokens=197, patch=16):
    """By hand: patch embedding; per block qkv, output and MLP (12 width^2) and the two products with T^2 scores."""
    return 196 * 3 * patch**2 * width + depth * (12 * width**2 * tokens + 2 * tokens**2 * width)


def test_flops_of_a_vit_include_attention():
    """Within 1% of the closed form, which leaves norms out; without attention it would be 14% lower."""
    counted = cost_measure.flops(build_backbone("vit_tiny").eval(), torch.zeros(1, 3, 224, 224))
    assert counted == pytest.approx(macs_of_a_vit(), rel=0.01)


def test_flops_of_a_convolution_are_exact():
    layer = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False))
    assert cost_measure.flops(layer, torch.zeros(1, 3, 10, 10)) == 10 * 10 * 8 * 3 * 9


def test_the_front_holds_what_nothing_beats():
    points = [(3, 70), (1, 50), (2, 60), (2, 65), (4, 69), (1, 40)]
    assert report_cost.front(points) == [(1, 50), (2, 65), (3, 70)]


def test_a_measurement_is_kept_until_a_setting_changes(tmp_path, capsys):
    call = ["resnet18", "-o", str(tmp_path), "--size", "32", "--batch-size", "2", "--seconds", "0.01"]
    file = tmp_path / "resnet18" / "cost.json"
    assert cost.main(call) == 0
    first = file.read_bytes()
    assert json.loads(first)["parameters"] == 11_176_512  # torchvision's 11,689,512 without the classifier's 513,000
    assert cost.main(call) == 0 and file.read_bytes() == first and "measured before" in capsys.readouterr().out
    assert cost.main([*call[:-3], "3", *call[-2:]]) == 0 and json.loads(file.read_bytes())["batch_size"] == 3


@pytest.mark.parametrize(("arguments", "message"), [
    (["resnet81"], "did you mean 'resnet18'"), (["resnet18", "--size", "0"], "want positive numbers")])
def test_bad_input_is_one_clear_line(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        cost.main([*arguments, "-o", str(tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [
    {"flops": 0}, {"flops": math.inf}, {"flops": "many"}, {"latency_ms_quartiles": [1]}, {"schema": "x"}])
def test_a_file_that_is_none_is_named(tmp_path, change):
    whole = {"schema": "sslight-cost-1", "latency_ms_quartiles": [1, 2], "command": "sslight bench cost",
             **dict.fromkeys((*cost.SAME, *cost.NUMBERS), 1)}
    (tmp_path / "cost.json").write_text(json.dumps(whole))
    assert cost.read_cost(tmp_path / "cost.json") == whole
    (tmp_path / "cost.json").write_text(json.dumps(whole | change))
    with pytest.raises(InputError, match="not a file of `sslight bench cost`"):
        cost.read_cost(tmp_path / "cost.json")
