"""`python -m tests.faults [--short] [MODULE ...]`: make every fault, print one table, exit 1 if any did not survive."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.faults.table import Row, Unavailable, modules, rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--short", action="store_true", help="the form that `make test` runs")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(modules())}; default: all")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # attempts are forks, which threads do not survive
    found: list[tuple[str, Row]] = []
    for module in args.modules or modules():
        started = time.monotonic()
        print(f"{module} ...", file=sys.stderr, flush=True)
        place = Path(tempfile.mkdtemp(prefix=f"faults-{module}-"))
        try:
            for row in rows(module, "short" if args.short else "long", place):
                found.append((module, row))
                print("  " + line(module, row), file=sys.stderr, flush=True)
        except Unavailable as reason:
            found.append((module, Row("not tried", note=str(reason))))
        except Exception:
            traceback.print_exc()
            found.append((module, Row("the harness itself broke", 1, ["see the traceback"])))
        finally:
            shutil.rmtree(place, ignore_errors=True)
        print(f"{module}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    print(f"{'':<13}{'what was tried':<76}{'tried':>6}{'survived':>10}  figures")
    for module, row in found:
        print(line(module, row))
        for failure in row.failures[:10]:
            print(f"{'':<15}did not survive: {failure}")
    return 1 if any(row.failures for _, row in found) else 0


def line(module: str, row: Row) -> str:
    return f"{module:<13}{row.what:<76}{row.tried:>6}{row.survived:>10}  {row.note}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
