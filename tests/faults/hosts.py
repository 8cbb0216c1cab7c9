"""Two network namespaces as two machines: pre-training and linear evaluation under `torchrun --nnodes 2`, undisturbed
and with the link between them cut in the middle."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults.kinds import difference, pretrain_end, pretrain_kept, trained_end, trained_kept
from tests.faults.processes import kill_group, torchrun, wait_until
from tests.faults.table import Row, Unavailable
from tests.faults.tiny_runs import linear, pretrain, write_images

HOSTS = ("sslight-a", "sslight-b")
ADDRESSES = ("10.231.7.1", "10.231.7.2")
TIMEOUT = 20  # seconds of SSLIGHT_TIMEOUT


def rows(size: str, place: Path) -> Iterator[Row]:
    if size == "short":
        raise Unavailable("in the long form only: every start takes seconds of importing torch in four processes")
    images = write_images(place / "images")
    runs = {"pretrain": (pretrain, pretrain_end, pretrain_kept), "linear": (linear, trained_end, trained_kept)}
    equal = Row("torchrun --nnodes 2 over a network: equal to two processes on one machine")
    cut = Row("the link is cut in the middle: both machines leave in time, restored they go on to the same end")
    with two_hosts():
        for name, (command, end, kept) in runs.items():
            settings = {"TRAIN.BATCH_SIZE": 8, "TRAIN.SAVE_SECONDS": 0, "SOLVER.TOTAL_EPOCHS": 4}
            one = place / f"{name}-one"
            log = one.with_suffix(".txt")
            assert torchrun(*command(images, one, **settings), log=log).wait() == 0, log.read_text()[-2000:]
            expected = end(one)
            out = place / f"{name}-two"
            codes = [agent.wait() for agent in on_both(command(images, out, **settings), out)]
            wrong = f"exits {codes}: {texts(out)}" if codes != [0, 0] else difference(end(out), expected)
            equal.attempt(not wrong, f"{name}: {wrong}")
            out = place / f"{name}-cut"
            cut.attempt(*cut_and_restore(command(images, out, **settings), out, end, kept, expected))
    yield equal
    yield cut


@contextlib.contextmanager
def two_hosts() -> Iterator[None]:
    """Two network namespaces, joined by one cable. Raises Unavailable without the right to make them."""
    remove()
    try:
        for host in HOSTS:
            ip("netns", "add", host)
            ip("-n", host, "link", "set", "lo", "up")
        ip("link", "add", "cable", "netns", HOSTS[0], "type", "veth", "peer", "name", "cable", "netns", HOSTS[1])
        for host, address in zip(HOSTS, ADDRESSES, strict=True):
            ip("-n", host, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", host, "link", "set", "cable", "up")
        yield
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or error
        raise Unavailable(f"network namespaces need root and iproute2: {said}") from None
    finally:
        remove()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def remove() -> None:
    for host in HOSTS:
        with contextlib.suppress(OSError):
            subprocess.run(["ip", "netns", "delete", host], capture_output=True)


def on_both(command: Sequence[object], out: Path) -> list[subprocess.Popen]:
    """One torchrun in each namespace, as a person or a scheduler starts it on each machine."""
    out.mkdir(exist_ok=True)
    return [
        torchrun(
            *command,
            processes=1,
            log=log_of(out, rank),
            prefix=("ip", "netns", "exec", host),
            options=["--nnodes", 2, "--node-rank", rank, "--master-addr", ADDRESSES[0], "--master-port", 29555],
            GLOO_SOCKET_IFNAME="cable",
            TP_SOCKET_IFNAME="cable",
            SSLIGHT_TIMEOUT=str(TIMEOUT),
        )
        for rank, host in enumerate(HOSTS)
    ]


def log_of(out: Path, rank: int) -> Path:
    return out.with_name(f"{out.name}-{HOSTS[rank]}.txt")


def texts(out: Path) -> list[str]:
    return [log_of(out, rank).read_text()[-500:] for rank in range(2)]


def cut_and_restore(command: Sequence[object], out: Path, end, kept, expected: dict) -> tuple[bool, str]:
    agents = on_both(command, out)
    if not wait_until(lambda: [*out.rglob("last.pth"), *out.rglob("state.pth")], process=agents[0]):
        return False, f"never began: {texts(out)}"
    ip("-n", HOSTS[1], "link", "set", "cable", "down")
    left = wait_until(lambda: all(agent.poll() is not None for agent in agents), seconds=TIMEOUT + 60)
    for agent in agents:
        kill_group(agent)
        agent.wait()
    said = ["lost contact with the others" in log_of(out, rank).read_text() for rank in range(2)]
    ip("-n", HOSTS[1], "link", "set", "cable", "up")
    if not left or not all(said) or kept(out):
        return False, f"left {left}, said why {said}, {kept(out)}: {texts(out)}"
    codes = [agent.wait() for agent in on_both(command, out)]
    wrong = f"exits {codes}: {texts(out)}" if codes != [0, 0] else difference(end(out), expected)
    return not wrong, wrong
