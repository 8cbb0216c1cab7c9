"""What the cases of transformers' networks share: how they are built, and how their own code saves them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.convert.peers.case import Case, Made, formula, image

PROJECT = "Hugging Face transformers 5.24"
Save = Callable[[Any, Path], Path]
VIT = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}  # ViT-Ti


def network(name: str, config: str, **options) -> Any:
    """A network of transformers by its class and the class of its settings."""
    import transformers

    return getattr(transformers, name)(getattr(transformers, config)(**options))


@torch.no_grad()
def fill(module: torch.nn.Module) -> Any:
    """By the formula, in eval mode; large tensors by torch's own generator, which is quicker, on one machine alike."""
    for name, value in module.state_dict().items():
        if value.is_floating_point() and value.numel() > 50_000:
            scale = (24 * len(value) / value.numel()) ** 0.5 if name.endswith("weight") else 0.2
            value.uniform_(-scale / 2, scale / 2, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        elif value.is_floating_point() or name.endswith("num_batches_tracked"):
            value.copy_(formula(name, value.shape))
    return module.eval()


def directory(model: Any, folder: Path) -> Path:
    """`save_pretrained`: config.json and model.safetensors."""
    model.save_pretrained(folder / "saved")
    return folder / "saved"


def sharded(model: Any, folder: Path) -> Path:
    """`save_pretrained` in several files with an index."""
    model.save_pretrained(folder / "saved", max_shard_size="8MB")
    assert (folder / "saved" / "model.safetensors.index.json").is_file()
    return folder / "saved"


def legacy(model: Any, folder: Path) -> Path:
    """As transformers saved before safetensors: the same names in pytorch_model.bin."""
    saved = directory(model, folder)
    weights = saved / "model.safetensors"
    torch.save(load_file(weights), saved / "pytorch_model.bin")
    weights.unlink()
    return saved


def tensors(model: Any, folder: Path) -> Path:
    """`save_pretrained`'s tensors alone, no settings."""
    return (directory(model, folder) / "model.safetensors").rename(folder / "model.safetensors")


def in_memory(model: Any, folder: Path) -> Path:
    """`torch.save` of the network's state dict, no settings."""
    torch.save(model.state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


def trained(model: Any, folder: Path) -> Path:
    """A checkpoint directory of transformers' Trainer after one step, as it was before that step's update (rate 0)."""
    from transformers import Trainer, TrainingArguments

    pictures = [{"pixel_values": image(model.config.image_size)[0], "labels": 1}] * 2
    arguments = TrainingArguments(
        str(folder / "run"), max_steps=1, per_device_train_batch_size=2, save_steps=1, learning_rate=0.0,
        report_to="none", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    state = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = Trainer(model, arguments, train_dataset=pictures)
    trainer._save_checkpoint = _with(trainer._save_checkpoint, model, state)
    trainer.train()
    saved = folder / "run" / "checkpoint-1"
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "trainer_state.json"} <= {
        file.name for file in saved.iterdir()
    }
    return saved


def _with(save: Callable, model: Any, state: dict) -> Callable:
    def restored(*arguments, **options):
        model.load_state_dict(state)  # a step changes the statistics of batch norms
        return save(*arguments, **options)

    return restored


def first_token(output: Any) -> torch.Tensor:
    """The class token after the last norm."""
    return output.last_hidden_state[:, 0]


def pooled(output: Any) -> torch.Tensor:
    """The network's own pooled feature."""
    return output.pooler_output.flatten(1)


def mean(output: Any) -> torch.Tensor:
    """The mean of all tokens after the last norm."""
    return output.last_hidden_state.mean(1)


def case(
    file: str,
    name: str,
    config: str,
    arch: str = "",
    *,
    size: int = 64,
    feature: Callable[[Any], torch.Tensor] = pooled,
    save: Save = directory,
    body: str = "",
    settings: dict | None = None,
    call: dict | None = None,
    **expected,
) -> Case:
    """A case of `name(config(**settings))` on an image of `size` pixels.

    feature: of what the network returns, or its member `body` where it returns something else. call: further arguments
    of that call. expected: the other fields of `Case`.
    """

    def make(folder: Path) -> Made:
        model = fill(network(name, config, **(settings or {})))
        images = image(size)
        with torch.no_grad():
            features = feature((getattr(model, body) if body else model)(images, **(call or {})))
        return Made(save(model, folder), images, features)

    package = "accelerate" if save is trained else "transformers"  # the Trainer's package needs the other
    return Case(PROJECT, file, make, arch, package=package, **expected)
