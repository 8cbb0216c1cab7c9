"""Which device a process takes: GPUs that cannot be used, too few of them, one shown to each; FP32 stays FP32."""

import functools
import os
import threading

import pytest
import torch

from benchmarks.deployment import cost
from benchmarks.evaluation import EVALUATIONS, main
from pretrain import train
from sslight.core import devices, distributed
from sslight.core.errors import InputError

TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver by "
    "downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
NO_DRIVER = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver"
NO_GPU = "No CUDA GPUs are available"
COMMANDS = {
    "pretrain": train.main,
    **{name: functools.partial(main, EVALUATIONS[name]) for name in ("knn", "linear", "semisup", "coco", "cost")},
}


@pytest.fixture
def gpus(monkeypatch):
    """`gpus(count)`: a machine of so many GPUs. `gpus(0, MESSAGE)`: torch finds none, and says why."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", *devices.LAUNCHERS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # so that it is restored after the test, whoever sets it
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    chosen = []

    def make(count: int, fault: str = "", files: bool = False):
        def init():
            raise RuntimeError(fault)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(count))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "init", init)
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA Tesla")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90", "compute_120"])
        monkeypatch.setattr(devices.glob, "glob", lambda pattern: [os.devnull] if files else [])
        return chosen

    return make


def command_line(name, data, out):
    """The arguments of a command, right but for the machine."""
    if name == "cost":
        return ["resnet18", "-o", str(out)]
    words = ["DATA.PATH_TO_DATA_DIR", str(data), "OUTPUT_DIR", str(out)]
    if name == "coco":
        return ["--framework", "mmdet", "--task", "seg", "--weights", "random", "--arch", "resnet18", *words]
    return words if name == "pretrain" else ["WEIGHTS", "random", "MODEL.BACKBONE_ARCH", "resnet18", *words]


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_computes_on_the_cpu_where_the_driver_is_too_old(name, gpus, image_folder, tmp_path):
    gpus(0, TOO_OLD)
    with pytest.raises(InputError, match=r"driver on your system is too old \(found version 12040\).*DEVICE cpu"):
        COMMANDS[name](command_line(name, image_folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "fault, files, refused",
    [
        (NO_DRIVER, False, False),  # a machine without NVIDIA's hardware
        (NO_GPU, False, False),  # a driver, and no GPU that this process may use
        (NO_DRIVER, True, True),
        (NO_GPU, True, True),
        ("CUDA unknown error - this may be due to an incorrectly set up environment", False, True),
    ],
)
def test_gpus_that_are_there_and_unusable_are_told_from_none(gpus, monkeypatch, fault, files, refused):
    gpus(0, fault, files)
    if refused:
        with pytest.raises(InputError, match=f"GPUs cannot be used: {fault.split('. ')[0]}"):
            distributed.start()
    else:
        assert distributed.start() == torch.device("cpu")
    for hidden in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert distributed.start() == torch.device("cpu")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert distributed.start("cpu") == torch.device("cpu") and os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_another_device_is_refused(gpus):
    gpus(0, NO_DRIVER)
    with pytest.raises(InputError, match="DEVICE 'gpu': use auto or cpu"):
        distributed.start("gpu")


def test_each_process_takes_the_gpu_of_its_local_rank(gpus, monkeypatch):
    chosen = gpus(4)
    assert devices.own_device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert devices.own_device() == torch.device("cuda", 3) == chosen[-1]


def test_more_processes_than_gpus(gpus, monkeypatch):
    gpus(4)
    devices.check(processes=4)
    with pytest.raises(InputError, match="8 processes for 4 GPU"):
        devices.check(processes=8)
    devices.check("cpu", processes=8)
    monkeypatch.setenv("LOCAL_RANK", "4")
    for name in (None, *devices.LAUNCHERS):  # 4 GPUs are a machine's, not one process's
        if name:
            monkeypatch.setenv(name, "8")
        with pytest.raises(InputError, match="one process per GPU, e.g. torchrun --nproc_per_node 4"):
            distributed.start()


def test_a_single_gpu_is_a_process_own_where_a_launcher_may_have_shown_it(gpus, monkeypatch):
    chosen = gpus(1)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(InputError, match="process 3 .* finds no GPU of its own"):
        devices.own_device()
    for name in devices.LAUNCHERS:
        with monkeypatch.context() as patch:
            patch.setenv(name, "4")
            assert devices.own_device() == torch.device("cuda", 0) == chosen.pop()


def compare(*gpu_of_rank):
    """What each rank of a group says to GPUs of these UUIDs; an empty string where it goes on."""
    store, said = torch.distributed.HashStore(), [""] * len(gpu_of_rank)

    def one(rank):
        try:
            devices.check_not_shared(store, rank, len(gpu_of_rank), gpu_of_rank[rank])
        except InputError as error:
            said[rank] = str(error)

    threads = [threading.Thread(target=one, args=[rank]) for rank in range(len(gpu_of_rank))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return said


def test_processes_that_share_a_gpu_find_each_other():
    """Each of three sees a GPU number 0; only two of them the same one."""
    first, second, unknown = (
        "3f2c0b8a-1111-2222-3333-444455556666",
        "90aa0b8a-1111-2222-3333-444455556666",
        "00000000-0000-0000-0000-000000000000",
    )
    assert compare(first, second) == ["", ""]
    told = compare(first, second, first)
    assert told[1] == "" and told[0] == told[2] and told[0].startswith("ranks 0, 2 see one and the same GPU (3f2c")
    assert compare(unknown, unknown) == ["", ""]


def test_a_gpu_older_than_torch_is_refused(gpus, monkeypatch):
    gpus(1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 0))
    with pytest.raises(InputError, match=r"NVIDIA Tesla has compute capability 7.0, and this torch needs 7.5"):
        distributed.start()


@pytest.mark.parametrize("how", ["start", "cost", "estimate"])
def test_fp32_is_never_rounded_to_tf32(how, gpus, tmp_path):
    """torch's default lets cuDNN; a script may have let cuBLAS, too."""
    from benchmarks.suite import estimate as suite_cost

    gpus(0, NO_DRIVER)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if how == "start":
        distributed.start()
    elif how == "cost":
        main(
            cost.EVALUATION, ["resnet18", "-o", str(tmp_path), "--size", "32", "--batch-size", "1", "--seconds", "0.01"]
        )
    else:
        suite_cost.seconds_per_image("resnet18", 31, 0.01)
    assert torch.backends.cuda.matmul.allow_tf32 is False and torch.backends.cudnn.allow_tf32 is False


def test_a_forked_process_of_a_machine_without_gpus_takes_the_cpu(run):
    """torch refuses to look again in a process that was forked after a look."""
    run(
        "-c",
        """
import os, sys
from sslight.core import devices
devices.check()
child = os.fork()
if not child:
    devices.check()
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""",
        CUDA_VISIBLE_DEVICES="0",
    )
