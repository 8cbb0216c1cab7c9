"""What can be named as a checkpoint: files, folders of other projects' savers, timm's weights, hub repositories."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from convert.convert_ckpt import convert
from convert.reader import read_checkpoint
from convert.sources import Source, locate, names_checkpoint, short_name
from sslight.core.errors import InputError
from tests.convert.family_files import sslight
from tests.convert.own_networks import timm_own

ARCH, COMMIT = "mobilenetv2_035", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def own():
    return timm_own(ARCH)


def _same(state, own) -> bool:
    return all(torch.equal(state[key], value) for key, value in own.state.items())


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub's cache in its own layout, and no network: a function that adds a repository's file."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)

    def add(repository: str, name: str) -> Path:
        place = cache / f"models--{repository.replace('/', '--')}"
        (place / "refs").mkdir(parents=True, exist_ok=True)
        (place / "refs" / "main").write_text(COMMIT)
        (place / "snapshots" / COMMIT).mkdir(parents=True, exist_ok=True)
        return place / "snapshots" / COMMIT / name

    return add


def test_a_file_brings_the_settings_beside_it_where_it_is_the_only_one(own, tmp_path):
    save_file(own.state, tmp_path / "net.safetensors")
    (tmp_path / "config.json").write_text('{"num_attention_heads": 3}')
    assert locate(tmp_path / "net.safetensors").beside == {"config.json": {"num_attention_heads": 3}}
    torch.save(own.state, tmp_path / "other.pth")
    assert locate(tmp_path / "net.safetensors").beside == {}
    (tmp_path / "config.json").write_text("{")  # damaged, and nobody's concern
    assert _same(read_checkpoint(tmp_path / "net.safetensors").state, own)


def test_a_run_directory_is_its_backbone_or_else_its_last_checkpoint(own, tmp_path):
    run = tmp_path / "r18"
    (run / "checkpoints").mkdir(parents=True)
    torch.save(sslight(own), run / "checkpoints" / "last.pth")
    assert locate(run).files == (run / "checkpoints" / "last.pth",) and locate(run / "checkpoints").files
    assert _same(read_checkpoint(run).state, own)
    convert(run, "timm", run / "backbone.safetensors", verify=False)
    assert locate(run).files == (run / "backbone.safetensors",)
    assert short_name(str(run)) == "r18" and short_name(str(run / "checkpoints" / "last.pth")) == "r18-last"


def _saved(folder: Path, own, kind: str) -> None:
    """As Hugging Face's, timm's, Lightning's savers write."""
    if kind == "timm":
        model = timm.create_model(ARCH, num_classes=0)
        model.load_state_dict(own.state)
        timm.models.save_for_hf(model, str(folder), safe_serialization="both")
    elif kind == "one file":
        torch.save({"state_dict": {f"model.{key}": value for key, value in own.state.items()}}, folder / "epoch=3.ckpt")
        torch.save({}, folder / "optimizer.pt")
    elif kind == "below":
        (folder / "checkpoints").mkdir()
        torch.save(own.state, folder / "checkpoints" / "last.ckpt")
    else:
        save = save_file if kind == "safetensors" else torch.save
        name, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
        keys, files = list(own.state), [f"{name}-0000{part}-of-00002.{suffix}" for part in (1, 2)]
        shards = {key: files[number % 2] for number, key in enumerate(keys)}
        for file in files:
            save({key: own.state[key] for key in keys if shards[key] == file}, folder / file)
        (folder / f"{name}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


@pytest.mark.parametrize("kind", ["timm", "one file", "below", "safetensors", "bin"])
def test_folders_of_other_projects_savers_are_read(kind, own, tmp_path):
    _saved(tmp_path, own, kind)
    read = read_checkpoint(tmp_path)
    assert read.arch == ARCH and _same(read.state, own)
    if kind == "timm":
        assert locate(tmp_path).beside["config.json"]["architecture"] == ARCH
    if kind in ("safetensors", "bin"):
        lines = [
            f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in sorted(tmp_path.glob("*of-00002*"))
        ]
        assert read.sha256 == hashlib.sha256("".join(lines).encode()).hexdigest() and len(lines) == 2


def test_what_names_no_checkpoint_is_one_line(own, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "many"
    folder.mkdir()
    cases = [
        (str(folder), "directory without a weights file"),
        ("https://huggingface.co/facebook/dino-vits16", "name the repository, hf:facebook/dino-vits16"),
        ("https://example.org/net.pth", "is an address: download the file"),
        ("facebook/dino-vits16", "if you mean hf:facebook/dino-vits16 on the Hugging Face hub"),
        ("resnet18", "if you mean timm:resnet18"),
        ("hf:dino", "write hf:ORG/NAME"),
        ("hf:org/none", "hf:org/none is not in the cache .*hf download org/none.*models--org--none"),
        ("hf:org/none@v2", "--revision v2"),
        ("timm:resnet19", "timm has no network 'resnet19' .did you mean"),
        ("timm:resnet18.a9", "no weights of this name; it has .*timm:resnet18.a1_in1k"),
        ("timm:resnet18.a1_in1k", "timm:resnet18.a1_in1k is hf:timm/resnet18.a1_in1k.* not in the cache"),
        ("SUPERVISED", "needs an architecture: add --arch"),
    ]
    for word, said in cases:
        with pytest.raises(InputError, match=said) as error:
            read_checkpoint(word)
        assert "\n" not in str(error.value)
    for name in ("a.pth", "b.pth"):
        torch.save(own.state, folder / name)
    with pytest.raises(InputError, match="2 weights files; name one of a.pth, b.pth"):
        read_checkpoint(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../../etc/passwd"}}')
    with pytest.raises(InputError, match="names shards that are missing: passwd"):  # only ever beside the index
        read_checkpoint(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json cannot be read as settings"):
        read_checkpoint(folder)


def test_a_hubs_repository_comes_from_its_cache_with_its_commit(own, hub, tmp_path):
    save_file(own.state, hub("org/net", "model.safetensors"))
    hub("org/net", "config.json").write_text(json.dumps({"architecture": ARCH, "num_features": 1280}))
    source = locate("hf:org/net")
    assert (source.revision, source.beside["config.json"]["architecture"]) == (COMMIT, ARCH)
    for word in ("hf:org/net", f"hf:org/net@{COMMIT}", "hf:org/net@main"):
        report = convert(word, "timm", tmp_path / "out.safetensors", verify=False, force=True)
        assert report["source"]["revision"] == COMMIT and report["source"]["path"] == word
    read = read_checkpoint(tmp_path / "out.safetensors")
    assert _same(read.state, own)
    from sslight.core.checkpoint import read_backbone_file

    assert read_backbone_file(tmp_path / "out.safetensors")[1]["source_revision"] == COMMIT


def test_timms_weights_come_from_the_hubs_cache_or_torchs(own, hub, tmp_path):
    cfg = timm.models.get_pretrained_cfg("mobilenetv2_100")
    model = timm.create_model("mobilenetv2_100")
    save_file(model.state_dict(), hub(cfg.hf_hub_id, "model.safetensors"))
    source = locate("timm:mobilenetv2_100")
    assert source.revision == COMMIT
    assert source.beside["config.json"]["pretrained_cfg"]["input_size"] == [3, 224, 224]
    read = read_checkpoint("timm:mobilenetv2_100")
    assert read.arch == "mobilenetv2_100" and torch.equal(read.state["conv_stem.weight"], model.conv_stem.weight)
    url = timm.models.get_pretrained_cfg("resnet18.a1_in1k").url
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "torch/hub/checkpoints" / Path(url).name)
    assert read_checkpoint("timm:resnet18.a1_in1k").arch == "resnet18"


def test_supervised_weights_are_torchvisions(hub, tmp_path):
    url = torchvision.models.get_model_weights("resnet18").IMAGENET1K_V1.url
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    network = torchvision.models.resnet18()
    torch.save(network.state_dict(), tmp_path / "torch/hub/checkpoints" / Path(url).name)
    read = read_checkpoint("SUPERVISED", arch="resnet18")
    assert (read.arch, read.method) == ("resnet18", "supervised")
    assert torch.equal(read.state["conv1.weight"], network.conv1.weight)


def test_timms_own_preprocessing_is_read_beside_the_weights(hub):
    pytest.importorskip("convert.hub_config")
    cfg = timm.models.get_pretrained_cfg("vit_tiny_patch16_224")
    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), hub(cfg.hf_hub_id, "model.safetensors"))
    for word, arch in (("timm:vit_tiny_patch16_224", None), ("SUPERVISED", "vit_tiny")):
        read = read_checkpoint(word, arch=arch)
        assert read.preprocess["mean"] == read.preprocess["std"] == [0.5, 0.5, 0.5]  # as the ViT's were trained
        assert "preprocess" not in read.assumed


def test_a_hub_is_asked_for_weights_and_settings_alone(own, hub, tmp_path, monkeypatch):
    """A small hub on this machine, with huggingface_hub's own client: safetensors are preferred, subfolders left."""
    torch.save(own.state, tmp_path / "net.bin")
    few = {"config.json": b'{"architecture": "x"}', "onnx/model.safetensors": b"no", "README.md": b"no"}
    few["pytorch_model.bin"] = (tmp_path / "net.bin").read_bytes()
    sites = {"org/net": few, "org/both": {**few, "model.safetensors": b"preferred"}}
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.split("?")[0]
            repository = "/".join(path.removeprefix("/api/models").split("/")[1:3])
            name, site = path.partition(f"/resolve/{COMMIT}/")[2], sites.get(repository, {})
            body, kind = site.get(name, b"{}"), 200 if name in site else 404
            if path.startswith("/api/") and site:
                tree = [{"type": "file", "path": file, "size": len(data), "oid": "0"} for file, data in site.items()]
                siblings = [{"rfilename": file} for file in site]
                content = tree if "/tree/" in path else {"id": repository, "sha": COMMIT, "siblings": siblings}
                body, kind = json.dumps(content).encode(), 200
            elif not path.startswith("/api/"):
                asked.append(name)
            self.send_response(kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if kind == 404:
                self.send_header("X-Error-Code", "EntryNotFound" if site else "RepoNotFound")
            self.end_headers()
            self.wfile.write(body if self.command == "GET" else b"")

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(
            huggingface_hub, "snapshot_download", _at(f"http://127.0.0.1:{server.server_port}", tmp_path / "hub")
        )
        source = locate("hf:org/net")
        assert source.revision == COMMIT and source.files[0].name == "pytorch_model.bin"
        assert _same(read_checkpoint("hf:org/net").state, own)
        assert locate("hf:org/both").files[0].name == "model.safetensors"
        assert set(asked) == {"config.json", "pytorch_model.bin", "model.safetensors"}
        with pytest.raises(InputError, match="hf:org/none: no such repository, or a private one"):
            locate("hf:org/none")
        server.shutdown()


def _at(endpoint: str, cache: Path):
    real = huggingface_hub.snapshot_download
    return lambda repository, **options: real(repository, endpoint=endpoint, cache_dir=cache, **options)


def test_words_that_mean_a_checkpoint_and_not_an_architecture(own, tmp_path):
    torch.save(own.state, tmp_path / "x")
    for word in ("timm:resnet18", "hf:a/b", "SUPERVISED", "net.pth", str(tmp_path / "x")):
        assert names_checkpoint(word)
    assert not names_checkpoint("resnet18") and not names_checkpoint("mobilenet_v2")


def test_shards_that_overlap_are_refused(own, tmp_path):
    for name in ("a.bin", "b.bin"):
        torch.save(own.state, tmp_path / name)
    with pytest.raises(InputError, match="b.bin repeats another shard's tensors"):
        Source("x", (tmp_path / "a.bin", tmp_path / "b.bin")).read()
