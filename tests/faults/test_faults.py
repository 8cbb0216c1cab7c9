"""Every fault module in its short form. `make faults` makes the faults in their full numbers."""

from __future__ import annotations

import pytest

from tests.faults.table import Unavailable, modules, rows


@pytest.mark.parametrize("module", modules())
def test_everything_survives(module, tmp_path):
    try:
        found = list(rows(module, "short", tmp_path))
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert found and all(row.tried for row in found)
    for row in found:
        assert not row.failures, f"{row.what}: {row.survived} of {row.tried} survived: {row.failures[:3]}"
