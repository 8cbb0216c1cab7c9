"""`sslight pack`: byte for byte, proven, resumable, and never over something else."""

import hashlib
import os
import shutil
import subprocess

import pytest

from pretrain.data import pack as pack_module
from pretrain.data.folder import FolderSource
from pretrain.data.pack import main
from pretrain.data.sources import FORMATS, Source, open_source
from sslight.core.errors import InputError
from tests.pretrain.data.photos import write_folder

KINDS = tuple(FORMATS)


@pytest.fixture
def src(tmp_path):
    return write_folder(tmp_path / "src", per_class=5)


def pack(src, dst, to: str) -> None:
    assert main([str(src), str(dst), "--to", to, "--shard-images", "4"]) == 0


def files(root) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("to", KINDS)
def test_there_and_back(src, tmp_path, to):
    (src / "train" / "empty class").mkdir()
    (src / "train" / "cat" / "000.jpg").rename(src / "train" / "cat" / os.fsdecode("☃ latin ".encode() + b"\xe9.jpg"))
    pack(src, tmp_path / "there", to)
    pack(tmp_path / "there", tmp_path / "back", "folder")
    back = files(tmp_path / "back")
    sums = {name: back.pop(name).decode(errors="surrogateescape") for name in ("train.sha256", "val.sha256")}
    assert back == files(src)
    for split, text in sums.items():
        for line in text.splitlines():
            digest, name = line.split("  ", 1)
            assert digest == hashlib.sha256(back[f"{split.removesuffix('.sha256')}/{name}"]).hexdigest()
        assert (tmp_path / "there" / split).read_text(errors="surrogateescape") == text
    assert open_source(tmp_path / "there", "train").classes == ["cat", "dog", "empty class"]
    assert not list(tmp_path.glob("*/.*"))  # no working directory is left


def test_checksums_are_sha256sums(src, tmp_path):
    pack(src, tmp_path / "out", "folder")
    subprocess.run(["sha256sum", "--check", "--quiet", "../train.sha256"], cwd=tmp_path / "out" / "train", check=True)


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("at", [1, 6])
def test_an_interrupted_run_goes_on(src, tmp_path, to, at, monkeypatch):
    pack(src, tmp_path / "whole", to)
    reads, original = [], FolderSource.read

    def read(self, i):
        if "train" in str(self.root):
            reads.append(i)
            if len(reads) == at + 1:
                raise KeyboardInterrupt
        return original(self, i)

    monkeypatch.setattr(FolderSource, "read", read)
    monkeypatch.setattr("pretrain.data.pack.Packer.flush_every", 2)
    with pytest.raises(KeyboardInterrupt):
        pack(src, tmp_path / "out", to)
    assert not (tmp_path / "out" / "train.sha256").exists()
    with pytest.raises(InputError, match="no split"):
        open_source(tmp_path / "out", "train")
    del reads[:]
    reads.extend([-1] * 100)
    pack(src, tmp_path / "out", to)
    again = reads[100:]
    assert again[0] == {"folder": at // 2 * 2, "h5": at // 2 * 2, "shards": at // 4 * 4}[to] and again[-1] == 9
    if to == "h5":  # the file's inner layout may differ
        whole, out = (open_source(tmp_path / name, "train") for name in ("whole", "out"))
        assert [out.read(i) for i in range(10)] == [whole.read(i) for i in range(10)]
        assert out.fingerprint() == whole.fingerprint()
    else:
        assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_finished_conversion_is_left_alone(src, tmp_path, capsys):
    pack(src, tmp_path / "out", "shards")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    pack(src, tmp_path / "out", "shards")
    assert "already packed" in capsys.readouterr().out
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}


def test_another_conversion_is_never_overwritten(src, tmp_path):
    pack(src, tmp_path / "out", "h5")
    for file in (src / "train").rglob("*.jpg"):
        file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(InputError, match="other images"):
        pack(src, tmp_path / "out", "h5")
    with pytest.raises(InputError, match="another form"):
        pack(src, tmp_path / "out", "shards")
    shutil.copytree(src, tmp_path / "foreign")
    with pytest.raises(InputError, match="already, not written by this command"):
        pack(src, tmp_path / "foreign", "folder")
    with pytest.raises(InputError, match="SRC and DST are both"):
        pack(src, src, "h5")


def test_a_working_directory_of_other_images_is_refused(src, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_module, "_verify", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pack(src, tmp_path / "out", "h5")
    monkeypatch.undo()
    with pytest.raises(InputError, match="other images or to another form"):
        pack(src, tmp_path / "out", "folder")


@pytest.mark.parametrize("to", KINDS)
def test_damage_before_the_proof_is_found(src, tmp_path, to, monkeypatch):
    original = pack_module._verify

    def damage_then_verify(packer, journal, images, split):
        victim = next(f for f in sorted(packer.work.rglob("*")) if f.suffix in (".jpg", ".h5", ".tar"))
        content = bytearray(victim.read_bytes())
        image = (src / "train" / "cat" / "000.jpg").read_bytes()
        content[bytes(content).index(image) + len(image) // 2] ^= 1
        victim.write_bytes(content)
        original(packer, journal, images, split)

    monkeypatch.setattr(pack_module, "_verify", damage_then_verify)
    with pytest.raises(InputError, match="cat/000.jpg .* is not what was read"):
        pack(src, tmp_path / "out", to)
    assert not (tmp_path / "out" / "train.sha256").exists()


def test_names_with_dots_and_without_extension(src, tmp_path):
    (src / "train" / "cat" / "000.jpg").rename(src / "train" / "cat" / "a.b.c.jpg")
    pack(src, tmp_path / "shards", "shards")
    source = open_source(tmp_path / "shards", "train")
    assert {source.name(i) for i in range(10)} >= {"cat/a%2Eb%2Ec.jpg", "dog/000.jpg"}
    import h5py

    (tmp_path / "bare").mkdir()
    with h5py.File(tmp_path / "bare" / "train.h5", "w") as file:
        file["cat/1"] = list((src / "train" / "cat" / "001.jpg").read_bytes())
    pack(tmp_path / "bare", tmp_path / "named", "folder")
    assert (tmp_path / "named" / "train" / "cat" / "1.jpg").is_file()


def test_unlabelled_images_stay_unlabelled(tmp_path, src):
    (tmp_path / "flat" / "train").mkdir(parents=True)
    for file in (src / "train" / "cat").iterdir():
        file.rename(tmp_path / "flat" / "train" / file.name)
    for to in KINDS:
        pack(tmp_path / "flat", tmp_path / to, to)
        source = open_source(tmp_path / to, "train", labels=False)
        assert len(source) == 5 and not source.has_labels and source.name(0) == "000.jpg"


def test_nothing_to_pack(tmp_path):
    with pytest.raises(InputError, match="not found"):
        pack(tmp_path / "nowhere", tmp_path / "out", "h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no split 'train'"):
        pack(tmp_path / "empty", tmp_path / "out", "h5")
    assert not (tmp_path / "out").exists()


def test_too_little_space_is_said_before_the_work(src, tmp_path, monkeypatch):
    monkeypatch.setattr(Source, "size", lambda self, i: 10**18, raising=False)
    monkeypatch.setattr(FolderSource, "size", lambda self, i: 10**18)
    with pytest.raises(InputError, match="GB free"):
        pack(src, tmp_path / "out", "h5")
