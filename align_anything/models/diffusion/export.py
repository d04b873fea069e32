"""Pipelines that `DiffusionPipeline.from_pretrained` loads: a trained denoiser among the components it came with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from align_anything.core.errors import ModelError
from align_anything.core.files import atomic_write_json
from align_anything.models.adapter import bare_model
from align_anything.models.diffusion.checkpoint import INDEX, denoiser_parts, denoiser_skeleton
from align_anything.models.diffusion.library import quiet
from align_anything.models.diffusion.lora import export_lora
from align_anything.models.export import MAX_SHARD_SIZE, merged_state
from align_anything.models.trainable import count

if TYPE_CHECKING:
    from align_anything.models.diffusion.spec import DiffusionSpec


def export_denoiser(
    denoiser: nn.Module,
    state_dict: Mapping[str, Tensor] | None,
    out_dir: str | Path,
    *,
    spec: DiffusionSpec,
    merge_adapter: bool = False,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> None:
    """Writes a denoiser to `out_dir`. Call it on one rank. The live model is not changed.

    A full denoiser, or with `merge_adapter` one that the adapter is added to in float32, is written with all else of
    the pipeline that it came from: the other components are hard links to the source's files where the disk allows,
    else copies. Under LoRA alone it is the file that `load_lora_weights` reads.

    Args:
        denoiser: wrapped by peft under LoRA.
        state_dict: what `denoiser.state_dict()` would be if it were gathered; needed where it is partitioned (ZeRO-3).
        max_shard_size: size of a weight file before another one is begun.

    Raises ModelError for weights that are missing or partitioned, and for an adapter that no pipeline would load.
    """
    folder = Path(out_dir)
    if state_dict is None and any(count(parameter) > parameter.numel() == 0 for parameter in denoiser.parameters()):
        raise ModelError('the parameters are partitioned (ZeRO-3): hand over the gathered state to save the denoiser.')
    adapted = bare_model(denoiser) is not denoiser
    if adapted and not merge_adapter:
        export_lora(denoiser, spec, folder, state_dict)
        return
    state = dict(denoiser.state_dict() if state_dict is None else state_dict)
    if adapted:
        state = merged_state(denoiser, state)
    _save_denoiser(spec, state, folder, max_shard_size)
    for name in spec.index:
        if name not in spec.denoisers and (spec.folder / name).is_dir():
            _link(spec.folder / name, folder / name)
    atomic_write_json(folder / INDEX, spec.index)


def _save_denoiser(spec: DiffusionSpec, state: Mapping[str, Tensor], folder: Path, max_shard_size: str) -> None:
    skeleton = denoiser_skeleton(spec)
    weights = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    try:
        skeleton.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ModelError(f'the state to save is not that of {type(skeleton).__name__}: {error}') from error
    with quiet():
        for name, (_, part) in denoiser_parts(spec, skeleton).items():
            part.save_pretrained(str(folder / name), max_shard_size=max_shard_size)


def _link(source: Path, target: Path) -> None:
    """Makes `target` a folder of the same files as `source`."""
    for file in sorted(source.rglob('*')):
        copy = target / file.relative_to(source)
        if file.is_dir():
            copy.mkdir(parents=True, exist_ok=True)
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            # The files of the hub's cache are links themselves.
            os.link(file.resolve(), copy)
        except OSError:
            shutil.copy2(file, copy)
