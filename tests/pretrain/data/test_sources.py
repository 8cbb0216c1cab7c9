"""Sources: three forms of one data set read alike; labels only when asked for; clear errors; a small shared index."""

import http.server
import io
import multiprocessing
import os
import tarfile
import threading
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from pretrain.data.pack import main as pack
from pretrain.data.sources import FORMATS, DataFormat, Names, Source, open_source
from sslight.core.errors import InputError
from tests.pretrain.data.photos import photos, write_folder

KINDS = tuple(FORMATS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The same images in every format."""
    roots = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    write_folder(roots["folder"], per_class=5)
    for kind in KINDS[1:]:
        pack([str(roots["folder"]), str(roots[kind]), "--to", kind, "--shard-images", "4"])
    return roots


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_holds_the_same(data, kind):
    source = open_source(data[kind], "train")
    assert source.kind == kind and len(source) == 10
    assert source.classes == ["cat", "dog"]
    assert source.labels.dtype == np.int64 and source.labels.tolist() == [0] * 5 + [1] * 5
    for i in (0, 4, 9):
        file = data["folder"] / "train" / source.name(i)
        assert source.read(i) == file.read_bytes() and source.size(i) == file.stat().st_size
    assert source.fingerprint() == open_source(data["folder"], "train").fingerprint()
    assert source.fingerprint() != open_source(data["folder"], "val").fingerprint()


NAMES = ("{}.jpg", "{}", "{}.jfif", "{}.JPE", "{}.mpo", "photo {}.2017")  # of JPEGs, in the wild


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_known_by_their_content(tmp_path, kind):
    """The same images under other names, in every form: classes, labels and bytes as of those called .jpg."""
    usual = open_source(write_folder(tmp_path / "usual", per_class=6, splits=("train",)), "train")
    odd = write_folder(tmp_path / "odd", per_class=6, splits=("train",))
    for file in sorted((odd / "train" / "dog").iterdir()):
        file.rename(file.with_name(NAMES[int(file.stem)].format(file.stem)))
    assert open_source(odd, "train").fingerprint() != usual.fingerprint()  # it is of names and sizes
    if kind != "folder":
        pack([str(odd), str(tmp_path / kind), "--to", kind])
    source = open_source(odd if kind == "folder" else tmp_path / kind, "train")
    assert source.labels.tolist() == usual.labels.tolist() and source.classes == usual.classes
    assert not source.note
    by_label = [sorted(one.read(i) for i in np.flatnonzero(one.labels == k)) for k in (0, 1) for one in (source, usual)]
    assert by_label[0] == by_label[1] and by_label[2] == by_label[3]


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {}),
        ("PNG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("WEBP", {}),
        ("TIFF", {}),
        ("PPM", {}),
        ("JPEG2000", {}),
        ("JPEG2000", {"no_jp2": True}),
        ("AVIF", {}),
        ("TIFF", {"big_tiff": True}),
        ("MPO", {}),
    ],
)
def test_every_kind_of_image_is_recognised(tmp_path, form, options):
    (tmp_path / "train").mkdir()
    photos()[0].save(tmp_path / "train" / "x", form, **options)
    assert len(open_source(tmp_path, "train", labels=False)) == 1


def test_what_is_no_image_is_counted_and_named(tmp_path, capsys):
    write_folder(tmp_path, per_class=1, splits=("train",))
    cat = tmp_path / "train" / "cat"
    (cat / "cat.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (cat / "notes.txt").write_text("BMW and P5 are no pictures, nor is this")
    (cat / "gone").symlink_to("nowhere")
    os.mkfifo(cat / "pipe")
    (cat / "._000.jpg").write_bytes(b"x")
    (tmp_path / "train" / "__MACOSX").mkdir()
    (tmp_path / "train" / "__MACOSX" / "000.jpg").write_bytes(b"x")
    (cat / "broken.jpg").write_bytes(b"no image, but called one: counted where it is read")
    source = open_source(tmp_path, "train")
    assert len(source) == 3 and source.classes == ["cat", "dog"]
    assert source.note == (
        f"passed over in {tmp_path}/train: 6 files that are no images: __MACOSX/, cat/._000.jpg, cat/cat.heic, ..."
    )
    assert pack([str(tmp_path), str(tmp_path / "packed"), "--to", "shards", "--splits", "train"]) == 0
    assert "6 files that are no images: __MACOSX/" in capsys.readouterr().out
    for file in (*cat.glob("*.jpg"), *(tmp_path / "train" / "dog").iterdir()):
        file.unlink()
    with pytest.raises(InputError, match="no images in .*, but 5 files that are no images"):
        open_source(tmp_path, "train")


def test_shards_choose_a_samples_image_by_name_then_by_content(tmp_path):
    png = b"\x89PNG\r\n\x1a\n" + bytes(30)
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for name, content in (
            ("0.depth", png),
            ("0.jpg", b"by name"),
            ("1.json", b"{}"),
            ("1.img", png),
            ("2", png),
            ("3.json", b"{}"),
            ("3.txt", b"no image"),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("4.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "0.jpg"
        tar.addfile(link)
    source = open_source(tmp_path, "train", labels=False)
    assert [source.name(i) for i in range(len(source))] == ["0.jpg", "1.img", "2"]
    assert source.note.endswith("train-*.tar: 2 files that are no images: 4.jpg, 3.json")


def test_an_image_of_unclear_range_is_refused_before_any_work(tmp_path):
    write_folder(tmp_path, per_class=3, splits=("train",))
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)).save(tmp_path / "train" / "dog" / "x.png")
    words = r"dog/x.png in .*/train has 16 bits a channel.*: set DATA.MAX_VALUE .* 4095 of 12 bits"
    with pytest.raises(InputError, match=words):
        open_source(tmp_path, "train", max_value=0.0)
    assert len(open_source(tmp_path, "train", max_value=4095.0)) == len(open_source(tmp_path, "train")) == 7


def test_fingerprint_sees_names_and_sizes(tmp_path):
    prints = set()
    write_folder(tmp_path, per_class=2, splits=("train",))
    prints.add(open_source(tmp_path, "train").fingerprint())
    file = tmp_path / "train" / "cat" / "000.jpg"
    file.write_bytes(file.read_bytes() + b"\0")
    prints.add(open_source(tmp_path, "train").fingerprint())
    file.rename(file.with_name("0.jpg"))
    prints.add(open_source(tmp_path, "train").fingerprint())
    assert len(prints) == 3


def test_without_labels_a_flat_folder_will_do(tmp_path):
    write_folder(tmp_path, per_class=3, splits=("all",))
    (tmp_path / "train").mkdir()
    for file in (tmp_path / "all").rglob("*.jpg"):
        file.rename(tmp_path / "train" / f"{file.parent.name}{file.name}")
    (tmp_path / "train" / "notes.txt").write_text("not an image")
    source = open_source(tmp_path, "train", labels=False)
    assert len(source) == 6 and source.name(0) == "cat000.jpg"
    with pytest.raises(RuntimeError, match="without labels"):
        _ = source.labels
    with pytest.raises(InputError, match="no class folders"):
        open_source(tmp_path, "train")


def test_without_labels_shards_need_none_and_never_read_them(tmp_path):
    with tarfile.open(tmp_path / "train-000.tar", "w") as tar:
        for name, content in (("a.jpg", b"A"), ("b.jpg", b"B"), ("b.cls", b"not a number")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    source = open_source(tmp_path, "train", labels=False)
    assert [source.read(i) for i in range(2)] == [b"A", b"B"]
    with pytest.raises(InputError, match="no label .*a.jpg"):
        open_source(tmp_path, "train")


def test_an_image_outside_the_classes_is_named(tmp_path):
    write_folder(tmp_path, per_class=1, splits=("train",))
    (tmp_path / "train" / "stray.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="stray.jpg"):
        _ = open_source(tmp_path, "train").labels


def test_errors_name_what_is_wrong(tmp_path, data):
    with pytest.raises(InputError, match="DATA.PATH_TO_DATA_DIR"):
        open_source("", "train")
    with pytest.raises(InputError, match="not found: .*nowhere"):
        open_source(tmp_path / "nowhere", "train")
    with pytest.raises(InputError, match="no split 'test' .* it holds train, val"):
        open_source(data["folder"], "test")
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="no images"):
        open_source(tmp_path, "train", labels=False)
    (tmp_path / "train.h5").write_bytes(b"not HDF5")
    with pytest.raises(InputError, match="more than once .*train/ and train.h5"):
        open_source(tmp_path, "train")
    (tmp_path / "train").rmdir()
    with pytest.raises(InputError, match="not a readable HDF5 file"):
        open_source(tmp_path, "train")


@pytest.mark.parametrize(
    "store",
    [lambda data: np.frombuffer(data, np.uint8), lambda data: np.void(data), lambda data: np.frombuffer(data, np.int8)],
    ids=["bytes", "opaque", "signed"],
)
def test_hdf5_datasets_of_any_byte_type(tmp_path, store):
    content = bytes(range(256)) + b"\0"
    with h5py.File(tmp_path / "val.h5", "w") as file:
        file.create_group("n01").create_dataset("x.JPEG", data=store(content))
        file.create_group("n02")
    source = open_source(tmp_path, "val")
    assert source.read(0) == content and source.size(0) == len(content) and source.name(0) == "n01/x.JPEG"
    assert source.classes == ["n01", "n02"]


def test_shards_of_others(tmp_path):
    """Long, unicode and sparse names, other members, numeric classes: what webdataset's writers produce."""
    long = "n" * 80 + "/" + "x" * 90
    for number, style in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        with tarfile.open(tmp_path / f"val-{number}.tar", "w", format=style) as tar:
            for name, content in (
                ("n/ü.png", b"1"),
                ("n/skip.json", b"{}"),
                (f"{long}.jpeg", b"22"),
                (f"{long}.cls", b" 7\n"),
                (f"{long}.mask.png", b"333"),
            ):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    source = open_source(tmp_path, "val", labels=False)
    assert [source.read(i) for i in range(len(source))] == [b"1", b"22"] * 3
    assert source.name(1) == source.name(3) == source.name(5) == f"{long}.jpeg" and source.name(2) == "n/ü.png"


def test_labels_of_shards_of_others_are_numbers(tmp_path):
    with tarfile.open(tmp_path / "val-0.tar", "w") as tar:
        for name, content in (("0.jpg", b"x"), ("0.cls", b"2"), ("1.cls", b"0"), ("1.jpg", b"y")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    source = open_source(tmp_path, "val")
    assert source.labels.tolist() == [2, 0] and source.classes == ["0", "1", "2"]


def test_damaged_shards_are_named(data, tmp_path):
    whole = (data["shards"] / "train-000000.tar").read_bytes()
    broken = tmp_path / "train-000000.tar"
    broken.write_bytes(whole[:2000])
    with pytest.raises(InputError, match="cut off: .*train-000000.tar"):
        open_source(tmp_path, "train")
    broken.write_bytes(b"<html>404</html>" + bytes(2000))
    with pytest.raises(InputError, match="not a tar file, or damaged"):
        open_source(tmp_path, "train")


@pytest.fixture
def server(data):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(data["shards"]))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


@pytest.mark.parametrize(
    "form",
    [
        "{url}",
        "{url}/{{split}}-{{000000..000002}}.tar",
        "file://{path}",
        "pipe:cat {path}/{{split}}-{{000000..000002}}.tar",
    ],
)
def test_shards_behind_a_url(data, server, form, tmp_path, monkeypatch):
    if form == "{url}":
        pytest.importorskip("aiohttp", reason="fsspec lists http servers with aiohttp")
    monkeypatch.setenv("SSLIGHT_CACHE", str(tmp_path))
    url, local = form.format(url=server, path=data["shards"]), open_source(data["shards"], "train")
    for _ in range(2):  # fetched, then from the cache
        source = open_source(url, "train")
        assert source.labels.tolist() == local.labels.tolist()
        assert [source.read(i) for i in range(10)] == [local.read(i) for i in range(10)]
    assert source.classes == (["0", "1"] if form.startswith("pipe:") else ["cat", "dog"])


def test_url_without_shards(tmp_path, monkeypatch):
    monkeypatch.setenv("SSLIGHT_CACHE", str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no split 'train' at file://"):
        open_source(f"file://{tmp_path}/empty", "train")
    with pytest.raises(InputError, match="cannot list nosuch://"):
        open_source("nosuch://place", "train")


def test_names_of_any_bytes():
    names = ["a", "", "ü/雪.jpg", os.fsdecode(b"\xff\xfe.jpg")]
    table = Names(iter(names))
    assert len(table) == 4 and [table[i] for i in range(4)] == names


def test_sending_a_source_to_a_worker_sends_no_index(tmp_path):
    """40,000 names take 1 MB; a spawned worker gets less than 20 KB, whatever the number."""
    (tmp_path / "train").mkdir()
    with h5py.File(tmp_path / "train.h5", "w", libver="latest") as file:
        for k in range(2000):
            file[f"class/{'n' * 100}{k:06d}.jpg"] = np.zeros(1, np.uint8)
    (tmp_path / "train").rmdir()
    source = open_source(tmp_path, "train", labels=False)
    source.read(0)
    assert sum(len(source.name(i)) for i in range(len(source))) > 200_000
    assert len(ForkingPickler.dumps(source)) < 20_000


def read_in_child(source, queue):
    queue.put([source.read(i) for i in range(len(source))])


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["h5", "shards"])
def test_workers_read_what_the_parent_reads(data, kind, method):
    source = open_source(data[kind], "val")
    expected = [source.read(i) for i in range(len(source))]  # leaves the parent's file open
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=read_in_child, args=(source, queue))
    child.start()
    assert queue.get(timeout=60) == expected
    child.join()
    assert expected == [source.read(i) for i in range(len(source))]


class ListedSource(Source):
    def __init__(self, file, labels):
        self.paths = file.read_text().split()
        names = ["/".join(path.split("/")[-2:]) for path in self.paths]
        super().__init__(str(file), Names(names), labels, sorted({name.split("/")[0] for name in names}))

    def read(self, i):
        return Path(self.paths[i]).read_bytes()

    def size(self, i):
        return len(self.read(i))


class Listed(DataFormat):
    pattern = "{split}.list"

    def index(self, files, split, labels):
        return ListedSource(files[0], labels)


LISTED = Listed()


def test_a_new_format_is_a_file_and_a_line(data, tmp_path, monkeypatch):
    """Recognised, read, packed into another format, and named where nothing is recognised; by the registry alone."""
    monkeypatch.setitem(FORMATS.entries, "listed", ("a list of paths", f"{__name__}:LISTED"))
    folder = open_source(data["folder"], "train")
    paths = [f"{data['folder']}/train/{folder.name(i)}" for i in range(len(folder))]
    (tmp_path / "train.list").write_text("\n".join(paths))
    source = open_source(tmp_path, "train")
    assert source.kind == "listed" and source.fingerprint() == folder.fingerprint()
    assert (source.labels == folder.labels).all() and source.classes == folder.classes
    pack([str(tmp_path), str(tmp_path / "packed"), "--to", "shards", "--splits", "train"])
    assert open_source(tmp_path / "packed", "train").read(7) == folder.read(7)
    with pytest.raises(InputError, match=r"it needs val/, val.h5, val-\*.tar or val.list"):
        open_source(tmp_path, "val")


def test_a_shard_that_is_a_link_to_nothing_is_not_left_out(data, tmp_path):
    for shard in data["shards"].glob("train-*"):
        (tmp_path / shard.name).symlink_to(shard)
    last = max(tmp_path.glob("train-*.tar"))
    last.unlink()
    last.symlink_to(tmp_path / "gone.tar")
    with pytest.raises(InputError, match=rf"cannot read {last}"):
        open_source(tmp_path, "train")
