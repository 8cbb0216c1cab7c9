"""Private names of libraries do what we use them for, and stand nowhere but in sslight/core/compat.py."""

from __future__ import annotations

import ast
import importlib
import io
import pickle
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convert.targets.mmcv_ops import install
from pretrain.backbones import build_backbone
from sslight.core import compat
from sslight.core.arguments import Parser
from tests.docs.pages import ROOT

PRODUCT = ("sslight", "pretrain", "convert", "benchmarks", "tools", "configs")
FILES = [file for package in PRODUCT for file in sorted((ROOT / package).rglob("*.py"))]
COMPAT = ROOT / "sslight" / "core" / "compat.py"


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def uses(file) -> dict[str, int]:
    """Private names that a file takes from elsewhere: attributes, imports and names in getattr -> line."""
    found = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr"):
            names = [node.args[1].value] if isinstance(node.args[1], ast.Constant) else []
        else:
            continue
        found |= {name: node.lineno for name in names if private(name)}
    return found


def own(file) -> set[str]:
    """Private names that a file gives to something of its own: functions, classes, variables, attributes of self."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names |= {node.attr} if getattr(node.value, "id", "") in ("self", "cls") else set()
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "register_buffer":
            names |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    return names


def test_no_private_name_of_a_library_stands_outside_of_compat():
    others = [file for file in FILES if file != COMPAT]
    ours = set().union(*map(own, others)) - set(uses(COMPAT))
    strange = {str(file.relative_to(ROOT)): {**uses(file)} for file in others if uses(file).keys() - ours}
    assert strange == {}


def test_compat_imports_nothing_when_it_is_imported(run):
    """A library is there only once a function needs it."""
    heavy = ("torch", "numpy", "timm", "tqdm", "mmengine", "submitit", "detectron2")
    run("-c", f"import sys\nfrom sslight.core import compat\nassert not set({heavy}) & set(sys.modules)")


@pytest.mark.parametrize("where", compat.OVERRIDDEN)
def test_libraries_have_the_methods_that_ours_override(where):
    module, _, owner = where.partition(":")
    pytest.importorskip(module)
    assert callable(getattr(getattr(importlib.import_module(module), owner), compat.OVERRIDDEN[where]))


def test_option_strings_and_actions():
    parser = Parser("p", "", "")
    parser.add_argument("--left", "-l")
    parser.add_argument("right")
    assert set(compat.option_strings(parser)) == {"-h", "--help", "--left", "-l"}
    assert [action.dest for action in compat.actions(parser)] == ["help", "left", "right"]


def test_set_clock():
    from tqdm import tqdm

    now, shown = [5.0], io.StringIO()
    with tqdm(total=10, file=shown, mininterval=0) as bar:
        compat.set_clock(bar, lambda: now[0])
        now[0] = 7.0
        bar.update(4)
        assert bar.format_dict["elapsed"] == 2.0
    assert "4/10 [00:02<00:03" in shown.getvalue()


def test_foreach_is_the_loop():
    torch.manual_seed(0)
    a, b = ([torch.randn(n, 3) for n in (1, 4)] for _ in range(2))
    foreach, expected = compat.foreach(), [x.clone() for x in a]
    assert torch.equal(torch.stack(foreach.norm(a)), torch.stack([x.norm() for x in a]))
    foreach.add_(a, b, alpha=0.5)
    foreach.mul_(a, 2.0)
    foreach.mul_(a, [torch.tensor(1.0), torch.tensor(3.0)])
    foreach.lerp_(a, b, 0.25)
    for x, y, before, factor in zip(a, b, expected, (2.0, 6.0), strict=True):
        torch.testing.assert_close(x, (before + 0.5 * y) * factor * 0.75 + 0.25 * y, rtol=1e-6, atol=1e-6)


def test_fused_sgd_is_the_update_with_dampening():
    """mu = m mu + (1 - dampening) (g + wd p), p = p - lr mu, as torch.optim.SGD documents."""
    torch.manual_seed(0)
    p, g, mu = (torch.randn(50) for _ in range(3))
    momentum = 0.9 * mu + 0.7 * (g + 0.1 * p)
    expected = p - 0.2 * momentum
    constants = {"lr": 0.2, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}
    compat.fused_sgd()([p], [g], [mu], nesterov=False, maximize=False, is_first_step=False, **constants)
    torch.testing.assert_close(mu, momentum, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(p, expected, rtol=1e-6, atol=1e-6)


def test_bicubic_into_writes_what_interpolate_returns():
    image = torch.randint(0, 256, (1, 3, 40, 30), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    out = torch.empty(1, 3, 16, 12, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    compat.bicubic_into()(image, (16, 12), False, None, None, out=out)
    assert torch.equal(out, F.interpolate(image, (16, 12), mode="bicubic", antialias=True))


def test_shared_storage_is_shared_and_that_large():
    storage = compat.shared_storage(24)
    assert storage.is_shared() and storage.nbytes() == 24
    assert torch.tensor([], dtype=torch.uint8).set_(storage, 0, (2, 12)).shape == (2, 12)


def test_python_unpickler_runs_the_instructions_of_its_table():
    class Mine(compat.python_unpickler()):
        dispatch = {**compat.python_unpickler().dispatch, ord("R"): lambda self: self.stack.pop()}

    assert Mine(io.BytesIO(pickle.dumps(complex(1, 2), 2))).load() is complex  # what it would call is left


def test_batch_norm_class():
    norms = [nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.SyncBatchNorm(2)]
    assert all(isinstance(norm, compat.batch_norm_class()) for norm in norms)
    assert not any(isinstance(norm, compat.batch_norm_class()) for norm in (nn.LayerNorm(2), nn.GroupNorm(1, 2)))


def test_forget_workers():
    loader = torch.utils.data.DataLoader(list(range(4)), num_workers=1, persistent_workers=True)
    first = iter(loader)
    assert iter(loader) is first  # persistent: the same workers go on
    compat.forget_workers(loader)
    second = iter(loader)
    assert second is not first and [int(item) for item in second] == [0, 1, 2, 3]


def test_roi_align_backward_is_the_gradient():
    from torchvision.ops import roi_align

    features = torch.randn(1, 2, 8, 8, requires_grad=True)
    rois = torch.tensor([[0.0, 1.0, 1.0, 6.0, 5.0]])
    pooled = roi_align(features, rois, (2, 2), sampling_ratio=2, aligned=True)
    weights = torch.randn_like(pooled)
    (pooled * weights).sum().backward()
    gradient = compat.roi_align_backward()(weights, rois, 1.0, 2, 2, *features.shape, 2, True)
    torch.testing.assert_close(gradient, features.grad)


def test_pickled_arrays_are_read_with_the_constructors_alone(tmp_path):
    torch.save({"array": np.arange(3.0), "number": np.float64(2)}, tmp_path / "file.pth")
    kinds = [np.ndarray, np.dtype, np.dtypes.Float64DType]
    with pytest.raises(pickle.UnpicklingError), torch.serialization.safe_globals(kinds):
        torch.load(tmp_path / "file.pth", weights_only=True)
    with torch.serialization.safe_globals([*kinds, *compat.array_constructors()]):
        content = torch.load(tmp_path / "file.pth", weights_only=True)
    assert content["array"].tolist() == [0, 1, 2] and content["number"] == 2


def test_set_pos_embed():
    model, images = build_backbone("test_vit").eval(), torch.randn(1, 3, 64, 64)
    before = model(images)
    compat.set_pos_embed(model, lambda model, patches: patches.flatten(1, 2) * 0)
    assert torch.equal(model(images), model(images * 2)) and not torch.equal(model(images), before)
    compat.set_pos_embed(model, None)
    assert torch.equal(model(images), before)


def test_mmengines_config_and_values():
    config = pytest.importorskip("mmengine.config")
    tree = compat.config_tree(config.Config({"model": {"depth": 18}}))
    assert isinstance(tree, dict) and "depth" in tree["model"] and "width" not in tree["model"]
    for text, value in (("[1,2]", [1, 2]), ("(a,b)", ("a", "b")), ("0.5", 0.5), ("True", True), ("name", "name")):
        assert compat.parse_value(text) == value


def test_mmengines_endless_data_and_checkpoint(tmp_path):
    pytest.importorskip("mmengine")
    from mmengine.hooks import CheckpointHook

    items = compat.endless(torch.utils.data.DataLoader([1, 2, 3]))
    assert [int(next(items)) for _ in range(7)] == [1, 2, 3, 1, 2, 3, 1]

    saved = []
    runner = types.SimpleNamespace(
        iter=4,
        epoch=0,
        work_dir=str(tmp_path),
        message_hub=types.SimpleNamespace(update_info=lambda *_: None, pop_info=lambda *_: None),
        save_checkpoint=lambda folder, filename, *_, **__: saved.append((folder, filename)),
    )
    hook = CheckpointHook(interval=100, by_epoch=False, save_last=False)
    hook.out_dir, hook.file_backend = str(tmp_path), types.SimpleNamespace(join_path=lambda *path: "/".join(path))
    compat.save_now(hook, runner)
    assert saved == [(str(tmp_path), "iter_5.pth")]


def test_mmdets_batches_start_again():
    pytest.importorskip("mmdet")
    install()
    from mmdet.datasets.samplers import AspectRatioBatchSampler
    from mmengine.dataset import InfiniteSampler

    class Images(list):
        def get_data_info(self, i):
            return self[i]

    images = Images({"width": 1 + i % 3, "height": 2} for i in range(12))
    batches = AspectRatioBatchSampler(InfiniteSampler(images, seed=0), batch_size=2)
    draw = iter(batches)
    first = [next(draw) for _ in range(5)]
    compat.restart_batches(batches)
    draw = iter(batches)
    assert [next(draw) for _ in range(5)] == first


class Outputs:
    """What detectron2's tests share."""

    @pytest.fixture(autouse=True)
    def detectron2(self):
        pytest.importorskip("detectron2.modeling")


class TestDetectron2(Outputs):
    def test_set_outputs(self):
        from detectron2.modeling import Backbone

        class Two(Backbone):
            forward = None

        backbone = Two()
        compat.set_outputs(backbone, ["a", "b"], (8, 16), (4, 8))
        shapes = backbone.output_shape()
        assert {name: (shape.channels, shape.stride) for name, shape in shapes.items()} == {"a": (8, 4), "b": (16, 8)}

    def test_res5_block(self):
        from detectron2.config import get_cfg
        from detectron2.modeling.roi_heads import Res5ROIHeads

        stage, width = compat.res5_block(Res5ROIHeads, get_cfg())
        assert width == 2048 and stage(torch.randn(1, 1024, 14, 14)).shape == (1, 2048, 7, 7)

    def test_only_write(self, tmp_path):
        from detectron2.data import DatasetCatalog, MetadataCatalog
        from detectron2.evaluation import COCOEvaluator

        content = '{"images": [{"id": 1, "height": 4, "width": 4}], "annotations": [], "categories": [{"id": 1}]}'
        (tmp_path / "truth.json").write_text(content)
        MetadataCatalog.get("compat").json_file = str(tmp_path / "truth.json")
        try:
            evaluator = COCOEvaluator("compat", tasks=("bbox",), distributed=False, output_dir=str(tmp_path / "out"))
            compat.only_write(evaluator)
            evaluator.reset()
            box = {"image_id": 1, "category_id": 0, "bbox": [0, 0, 1, 1], "score": 1.0}
            evaluator._predictions = [{"image_id": 1, "instances": [box]}]
            assert not evaluator.evaluate()
            assert (tmp_path / "out" / "coco_instances_results.json").is_file()
        finally:
            MetadataCatalog.pop("compat")
            assert "compat" not in DatasetCatalog.list()

    def test_set_period(self):
        from detectron2.engine.hooks import PeriodicWriter
        from detectron2.utils.events import EventStorage, EventWriter

        written = []

        class Writer(EventWriter):
            def write(self):
                written.append(hook.trainer.iter)

        hook = PeriodicWriter([Writer()], period=1000)
        compat.set_period(hook, 3)
        hook.trainer = types.SimpleNamespace(max_iter=8)
        with EventStorage():
            for hook.trainer.iter in range(7):
                hook.after_step()
        assert written == [2, 5]

    def test_set_train_data(self):
        from detectron2.engine import SimpleTrainer

        inner = SimpleTrainer(nn.Linear(1, 1), ["old", "old"], None)
        assert next(inner._data_loader_iter) == "old"
        compat.set_train_data(types.SimpleNamespace(_trainer=inner), ["new"])
        assert next(inner._data_loader_iter) == "new"

    def test_last_results(self):
        """Of the hook that `DefaultTrainer` evaluates by."""
        from detectron2.config import get_cfg
        from detectron2.engine import DefaultTrainer, hooks

        trainer = object.__new__(DefaultTrainer)
        assert compat.last_results(trainer) == {}
        checkpointer = types.SimpleNamespace(path_manager=None, save_dir="")
        inner = types.SimpleNamespace(model=None)
        trainer.__dict__.update(cfg=get_cfg(), _trainer=inner, checkpointer=checkpointer, iter=0, max_iter=1)
        trainer.__dict__.update(build_writers=lambda: [], test=lambda cfg, model: {"bbox": {"AP": 1.0}})
        [evaluation] = [hook for hook in trainer.build_hooks() if isinstance(hook, hooks.EvalHook)]
        evaluation._func()
        assert compat.last_results(trainer) == {"bbox": {"AP": 1.0}}


def test_slurm_parameters():
    pytest.importorskip("submitit")
    assert {"time", "partition", "gpus_per_node", "nodes"} <= compat.slurm_parameters()
