"""Adapters of pipelines by the names of other programs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from align_anything.core.errors import ModelError, SettingsError
from align_anything.core.registry import nearest
from align_anything.engines.checkpoint import CARD_FILE
from align_anything.models.diffusion.checkpoint import LORA_FILE, denoiser_skeleton
from align_anything.models.diffusion.lora import PEFT_PREFIX, UNET, comfyui_state, kohya_state
from align_anything.models.diffusion.merging import adapted_denoiser, adapted_spec
from align_anything.models.diffusion.saved_lora import stored_lora
from align_anything.models.diffusion.spec import DiffusionSpec
from align_anything.models.export import ADAPTER

NAMES = ('diffusers', 'peft', 'kohya', 'comfyui')
WITH_NAMES_OF_COMFYUI = ('QwenImage', 'ZImage', 'LTX')
"""Beginnings of the pipelines whose denoisers ComfyUI knows by the names that diffusers gives their layers."""


def export_pipeline_adapter(folder: Path, out: Path, names: str, base: str | None) -> None:
    """Writes the adapter of a pipeline in `folder` to `out` with the names of a program.

    `diffusers` is the file of `load_lora_weights`, `peft` a folder of `PeftModel` for the denoiser, `kohya` and
    `comfyui` one file of theirs. No weights of the pipeline are read, and for `diffusers` nothing of it.

    Raises SettingsError for other names, ModelError for a pipeline that the program does not know by such names.
    """
    if names not in NAMES:
        raise SettingsError([f"--names: there is no '{names}'.{nearest(names, list(NAMES))} There are: {NAMES}."])
    if (folder / CARD_FILE).is_file():
        shutil.copy2(folder / CARD_FILE, out / CARD_FILE)
    if names == 'diffusers':
        for file in sorted(folder.glob(f'{Path(LORA_FILE).stem}*.safetensors')):
            shutil.copy2(file, out / file.name)
        return
    spec = adapted_spec(folder, base)
    _check(names, spec, folder)
    adapted, state = adapted_denoiser(folder, spec, denoiser_skeleton(spec)), _state(folder, spec)
    if names == 'peft':
        adapted.peft_config[ADAPTER].base_model_name_or_path = spec.source
        adapted.save_pretrained(str(out), state_dict=state, save_embedding_layers=False)
        (out / CARD_FILE).unlink(missing_ok=True)
        return
    from safetensors.torch import save_file

    named = kohya_state(adapted, state) if names == 'kohya' else comfyui_state(adapted, state)
    save_file({name: tensor.contiguous() for name, tensor in named.items()}, out / f'{names}.safetensors')


def _check(names: str, spec: DiffusionSpec, folder: Path) -> None:
    if len(spec.denoisers) > 1:
        raise ModelError(f'{folder} is an adapter of {" and ".join(spec.denoisers)}: only diffusers has names for it.')
    if names == 'kohya' and spec.denoiser != UNET:
        raise ModelError(f"kohya's scripts have names of their own for UNets, and {spec.model_type} has none.")
    if names == 'comfyui' and not spec.model_type.startswith(WITH_NAMES_OF_COMFYUI):
        raise ModelError(
            f'ComfyUI has names of its own for the layers of a {spec.model_type}, which are not known here: '
            f'its loader reads the file of --names {"kohya" if spec.denoiser == UNET else "diffusers"} where it can.'
        )


def _state(folder: Path, spec: DiffusionSpec) -> Mapping[str, Tensor]:
    """The weights of an adapter by the names of the adapted denoiser's state."""
    found: dict[str, Any] = {}
    for key, tensor in stored_lora(folder, spec, spec.denoiser)[1].items():
        module, _, end = key.rpartition('.lora_')
        found[f'{PEFT_PREFIX}{module}.lora_{end.replace(".", f".{ADAPTER}.", 1)}'] = tensor
    return found
