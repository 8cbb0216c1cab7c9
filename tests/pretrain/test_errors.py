"""What one-line errors suggest: names of files that lie beside the one that is not there."""

from __future__ import annotations

import pytest

from pretrain.checkpoint import check_archive
from pretrain.errors import InputError, nearest_file


def test_the_nearest_file_is_named_with_its_folder(tmp_path, monkeypatch):
    for name in ("last.pth", "epoch_0020.pth"):
        (tmp_path / name).touch()
    assert nearest_file(tmp_path / "lsat.pth") == f" (did you mean '{tmp_path / 'last.pth'}'?)"
    assert nearest_file(f"{tmp_path}/lsat.pth/") == f" (did you mean '{tmp_path / 'last.pth'}'?)"
    assert nearest_file(tmp_path / "knn.yaml") == nearest_file(tmp_path / "nowhere" / "last.pth") == ""
    monkeypatch.chdir(tmp_path)
    assert nearest_file("last.pht") == " (did you mean 'last.pth'?)"


def test_a_run_directory_for_a_checkpoint_is_answered_with_its_last_one(tmp_path):
    with pytest.raises(InputError, match="is a directory; name the file in it$"):
        check_archive(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pth").touch()
    with pytest.raises(InputError, match="is a directory; name the file, e.g. .*checkpoints/last.pth$"):
        check_archive(tmp_path)
