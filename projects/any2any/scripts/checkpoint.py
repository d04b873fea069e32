"""The checkpoint that a file of Any2Any Trainer trains, made of what the file names."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from mapping import FUSED, Run

from align_anything.configs.compose import read_compose
from align_anything.core.errors import ModelError
from align_anything.core.files import atomic_write_json
from align_anything.core.store import digest
from align_anything.models.architecture import skeleton
from align_anything.models.checkpoint import read_config
from align_anything.models.codecs.base import CONFIG, codec_rules
from align_anything.models.composed.compose import compose
from align_anything.models.media_tokens import add_media_tokens, only_size
from align_anything.models.pretrained_model import load_spec
from align_anything.trainers.runs.composing import made_once

USUAL_CODECS = {'image': 'deepseek-community/Janus-Pro-1B', 'audio': 'facebook/encodec_24khz'}
"""The codecs of media that are discrete tokens where a file names none; videos have that of images, frame by frame."""
FRAMES_PER_SECOND = 1
PICTURES = 'pictures'
TARGETS, SAVED = 'lora_cfgs.target_modules', 'lora_cfgs.modules_to_save'


def add_checkpoint(run: Run, output_dir: Path) -> None:
    """Adds the settings of the checkpoint, and of adapters what hangs on it. Every rank calls it.

    A model that writes media gets the tokens of their codecs here, in a folder of `output_dir`. Raises ModelError
    for a part that cannot be read, and SettingsError on all ranks for one that cannot be made.
    """
    name = run.file.model_name_or_path
    codes = _new_codes(run, name)
    if codes:
        run.put('model_cfgs.model_name_or_path', str(_with_tokens(run, name, codes, output_dir)), 'model_name_or_path')
    elif run.compose:
        run.put('model_cfgs.compose', {'language_model': name, **run.compose}, 'model_name_or_path')
    else:
        run.put('model_cfgs.model_name_or_path', name, 'model_name_or_path')
    if run.file.use_peft:
        _adapters(run, name, bool(codes))


def _new_codes(run: Run, name: str) -> dict[str, dict[str, str]]:
    """Returns the codes that the model has to be given: what it has of its own it keeps."""
    own = load_spec(name).emits if any(given['codec'] is None for given in run.codes.values()) else frozenset()
    found = {}
    for kind, given in run.codes.items():
        if given['codec'] is None and kind in own:
            run.notes.append(f'{kind} has the tokens of {name}.')
            continue
        usual = USUAL_CODECS.get(kind) or run.codes.get('image', {}).get('codec') or USUAL_CODECS['image']
        found[kind] = {**given, 'codec': given['codec'] or usual}
        run.notes.append(f'{kind} stands as codes of {found[kind]["codec"]}.')
    return found


def _with_tokens(run: Run, name: str, codes: Mapping[str, Mapping[str, str]], output_dir: Path) -> Path:
    if run.compose:
        wanted = read_compose({'language_model': name, **run.compose}, 'encoders')
        folder = output_dir / f'composed-{digest(wanted.model_dump(mode="json"))[:8]}'
        name = str(made_once(folder, partial(compose, wanted), 'encoders'))
    folder = output_dir / f'with-tokens-{digest({"source": name, "codes": codes, "longest": run.longest})[:8]}'
    return made_once(folder, partial(_make, name, codes, run.longest), 'decoders')


def _make(name: str, codes: Mapping[str, Mapping[str, str]], longest: Mapping[str, int], folder: Path) -> None:
    with TemporaryDirectory() as work:
        codecs = {kind: _folder(given['codec']) for kind, given in codes.items()}
        if 'video' in codecs and codec_rules(codecs['video']).kind == 'image':
            codecs['video'] = _frame_by_frame(codecs['video'], Path(work) / 'video')
        around = {kind: (given['opening'], given['closing']) for kind, given in codes.items() if 'opening' in given}
        sizes = {kind: size for kind, codec in codecs.items() if (size := only_size(codec_rules(codec)))}
        for kind, size in sizes.items():
            if math.prod(size) > longest.get(kind, math.prod(size)):
                raise ModelError(
                    f'modality_max_lengths.{kind}: {codes[kind]["codec"]} makes {math.prod(size)} codes of each.'
                )
        lengths = {kind: longest[kind] for kind in longest if kind not in sizes}
        add_media_tokens(name, codecs, folder, max_lengths=lengths, around=around)


def _frame_by_frame(pictures: Path, folder: Path) -> Path:
    """Makes a codec of videos out of one of images."""
    shutil.copytree(pictures, folder / PICTURES)
    config = {'model_type': 'framewise', 'codec': PICTURES, 'fps': FRAMES_PER_SECOND}
    atomic_write_json(folder / CONFIG, config)
    return folder


def _folder(name: str) -> Path:
    """Returns the folder of a codec, loaded from the hub where it is none. Raises ModelError where it cannot be."""
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=['*.json', '*.safetensors']))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ModelError(f'{name} is no folder, and no codec that can be loaded from the hub: {error}') from error


def _adapters(run: Run, name: str, new_codes: bool) -> None:
    config = read_config(name)
    given, fused = run.settings.get(TARGETS, []), FUSED.get(config.model_type, {})
    if isinstance(given, list) and any(target in fused for target in given):
        run.settings[TARGETS] = list(dict.fromkeys(fused.get(target, target) for target in given))
        run.notes.append(
            f'{run.origins[TARGETS]}: {", ".join(given)} are {", ".join(run.settings[TARGETS])} in a '
            f"'{config.model_type}'."
        )
    started = any('start_token' in part for part in run.compose.values() if isinstance(part, dict))
    if (new_codes or started) and SAVED not in run.settings:
        # Rows of new tokens are trained with the embedding that they are in, or not at all.
        saved = ['mm_proj'] if run.compose else []
        run.default(SAVED, [*saved, *_rows(config, head=new_codes)])
        run.notes.append(f'{", ".join(run.settings[SAVED])} are trained in full beside the adapters: tokens are new.')


def _rows(config: Any, head: bool) -> list[str]:
    """The modules of a language model that hold rows of tokens; the head too where new tokens are written."""
    model = skeleton(config)
    wanted = [model.get_input_embeddings()]
    if head and not config.tie_word_embeddings:
        wanted.append(model.get_output_embeddings())
    return [name.rpartition('.')[2] for module in wanted for name, own in model.named_modules() if own is module]
