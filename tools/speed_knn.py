"""Exact k-NN of the benchmark against a plain chunked matmul + topk and against faiss's exact index, side by side.

All three answer blocks of queries over the whole bank with the same number of threads and must find the same
neighbours. By default the bank has its full size and the queries are a part of the 50,000, which all three scale with
linearly; --queries 50000 runs all of them.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.neighbours import nearest_neighbours

CHUNK = 1024  # queries of one plain matmul


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--queries", type=int, default=2048, help="queries per run (default: %(default)s)")
    parser.add_argument("--bank", type=int, default=200_000, help="rows of the bank (default: %(default)s)")
    parser.add_argument("--width", type=int, default=512, help="feature width (default: %(default)s)")
    parser.add_argument("--k", type=int, default=200, help="neighbours (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=3, help="timed rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (%(default)s)")


def run(args: argparse.Namespace) -> dict[str, float]:
    """Print times and the memory that each side takes beside the bank; return `vs_matmul` and `vs_faiss`."""
    import faiss

    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    draw = torch.Generator().manual_seed(0)
    bank = F.normalize(torch.randn(args.bank, args.width, generator=draw), dim=1)
    queries = F.normalize(torch.randn(args.queries, args.width, generator=draw), dim=1)
    index = faiss.IndexFlatIP(args.width)
    index.add(bank.numpy())
    sides: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: nearest_neighbours(queries, bank, args.k, normalise=False)[1],
        "matmul + topk": lambda: plain(queries, bank, args.k),
        "faiss exact": lambda: torch.from_numpy(index.search(queries.numpy(), args.k)[1]),
    }
    memory, neighbours = zip(*(peak(side) for side in sides.values()), strict=True)
    check(*neighbours)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(args.pairs):
        names = list(sides)[::-1] if turn % 2 else list(sides)
        for name in names:
            started = time.perf_counter()
            sides[name]()
            times[name].append(time.perf_counter() - started)
    print(f"{args.queries} x {args.bank} x {args.width}, k {args.k}, {args.threads} thread(s), median of {args.pairs}")
    for (name, taken), extra in zip(times.items(), memory, strict=True):
        print(f"  {name:14} {statistics.median(taken):8.2f} s {extra / 2**20:8.0f} MiB")
    return {
        key: round(statistics.median(b / a for a, b in zip(times["ours"], times[name], strict=True)), 3)
        for key, name in (("vs_matmul", "matmul + topk"), ("vs_faiss", "faiss exact"))
    }


def peak(side: Callable[[], Tensor]) -> tuple[int, Tensor]:
    """Bytes that the process grew by at the most while `side` ran (looked at every 5 ms), and what it returned."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    sizes, done = [resident()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            sizes.append(resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = side()
    finally:
        done.set()
        watcher.join()
    return max(sizes) - sizes[0], result


def plain(queries: Tensor, bank: Tensor, k: int) -> Tensor:
    """The usual loop: a block of queries times the whole bank, then topk."""
    return torch.cat([(part @ bank.T).topk(k, dim=1).indices for part in queries.split(CHUNK)])


def check(ours: Tensor, *others: Tensor) -> None:
    """Raise unless the neighbours agree but for the rounding of nearly equal similarities."""
    for other in others:
        agreement = (ours.sort(1).values == other.sort(1).values).float().mean()
        if agreement < 0.99:
            raise RuntimeError(f"the sides found different neighbours ({agreement:.1%} equal)")
