"""Tiny checkpoints with random weights, real tokenizers, processors and chat templates, built without any download.

`python -m align_anything.testing.tiny <family> --out DIR` writes one; `build` does it from Python.
"""

from __future__ import annotations

import importlib
from dataclasses import fields
from pathlib import Path

from align_anything.core.errors import ModelError
from align_anything.core.registry import nearest
from align_anything.testing.tiny.options import TinyOptions
from align_anything.testing.tiny.pipeline_parts import PipelineOptions

KINDS = {
    **dict.fromkeys('llama qwen2 qwen3 qwen3_moe opt gpt2 gemma2 gemma3_text granite mistral phi3'.split(), 'text'),
    **dict.fromkeys(('llava', 'llava_next', 'llava_next_video'), 'llava'),
    **dict.fromkeys(('qwen2_vl', 'qwen2_5_vl', 'qwen3_vl'), 'qwen_vl'),
    **dict.fromkeys(('llava_onevision', 'llava_interleave'), 'llava_qwen'),
    **dict.fromkeys(('idefics3', 'smolvlm'), 'idefics3'),
    **dict.fromkeys(('qwen2_5_omni_thinker', 'qwen3_omni_moe_thinker'), 'omni'),
    **{
        name: name
        for name in (
            'chameleon composed csm emu3 gemma3 gemma3n gemma4 idefics2 internvl janus mllama paligemma '
            'qwen2_audio'.split()
        )
    },
}
"""Families and the file in this package that builds them."""
PIPELINES = {
    **dict.fromkeys('sd15 sd2 sdxl sd3 sd3_clip flux flux_schnell flux2_klein'.split(), 'pipelines_image'),
    **dict.fromkeys('flux_kontext flux_fill qwen_image_edit qwen_image_edit_plus'.split(), 'pipelines_image'),
    **dict.fromkeys('z_image sana pixart pixart_sigma qwen_image'.split(), 'pipelines_image'),
    **dict.fromkeys('wan wan22 wan22_5b ltx cogvideox cogvideox_5b hunyuan_video'.split(), 'pipelines_video'),
    'text_to_video_sd': 'pipelines_video',
    **dict.fromkeys(('stable_audio', 'ace_step', 'audioldm', 'audioldm2'), 'pipelines_audio'),
}
"""Pipelines of diffusers, likewise."""


ACTING = {'pi0': 'pi0'}
"""Models that act without tokens, likewise."""


def build(
    family: str, out: str | Path, *, corpus: list[str] | None = None, template: str | None = None, **sizes: int | None
) -> Path:
    """Writes a checkpoint of `family` into `out` and returns that folder; the same arguments give the same files.

    Args:
        family: one of `KINDS`, `PIPELINES` or `ACTING`.
        out: folder to make; it may exist when it is empty.
        corpus: texts to train the tokenizer on; a small built-in one by default.
        template: of a text family, the published checkpoint in whose manner it chats, such as `deepseek_r1`.
        sizes: the other attributes of `TinyOptions`, such as `hidden` and `layers`; of a pipeline of
            `PipelineOptions`.

    Raises:
        ModelError: unknown family or template, a folder that is not empty, or sizes that do not fit each other.
    """
    files = KINDS | PIPELINES | ACTING
    if family not in files:
        hint = nearest(family, list(files))
        raise ModelError(f"no tiny model of the family '{family}'.{hint} Known: {', '.join(sorted(files))}.")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f'{out} exists and is not an empty folder; name another one.')
    kind = PipelineOptions if family in PIPELINES else TinyOptions
    known = [field.name for field in fields(kind)]
    strange = sorted({*sizes} - {*known})
    if strange:
        raise ModelError(f"a tiny {family} has no '{strange[0]}'.{nearest(strange[0], known)} It has: {known}.")
    options = kind(family, corpus=tuple(corpus or ()), template=template, **sizes)
    options.check()
    if template is not None:
        known = importlib.import_module(f'{__name__}.text').MANNERS
        if template not in known or files[family] != 'text':
            raise ModelError(
                f"no template '{template}' for a tiny model of the family '{family}'. Families without media take: "
                f'{", ".join(sorted(known))}.'
            )
    importlib.import_module(f'{__name__}.{files[family]}').build(options, out)
    return out
