"""The checkpoint that a file of Any2Any Trainer trains, made of what the file names."""

from __future__ import annotations

from mapping import FUSED, Run

from align_anything.models.architecture import skeleton
from align_anything.models.checkpoint import read_config

TARGETS, SAVED = 'lora_cfgs.target_modules', 'lora_cfgs.modules_to_save'


def add_checkpoint(run: Run) -> None:
    """Adds the settings of the checkpoint, and of adapters what hangs on it.

    Raises ModelError for a language model that cannot be read.
    """
    name = run.file.model_name_or_path
    if run.compose:
        run.put('model_cfgs.compose', {'language_model': name, **run.compose}, 'model_name_or_path')
    else:
        run.put('model_cfgs.model_name_or_path', name, 'model_name_or_path')
    if run.file.use_peft:
        _adapters(run, name)


def _adapters(run: Run, name: str) -> None:
    config = read_config(name)
    given, fused = run.settings.get(TARGETS, []), FUSED.get(config.model_type, {})
    if isinstance(given, list) and any(target in fused for target in given):
        run.settings[TARGETS] = list(dict.fromkeys(fused.get(target, target) for target in given))
        run.notes.append(
            f'{run.origins[TARGETS]}: {", ".join(given)} are {", ".join(run.settings[TARGETS])} in a '
            f"'{config.model_type}'."
        )
    tokens = bool(run.codes) or any('start_token' in part for part in run.compose.values() if isinstance(part, dict))
    if tokens and SAVED not in run.settings:
        # Rows of new tokens are trained with the embedding that they are in, or not at all.
        saved = ['mm_proj'] if run.compose else []
        run.default(SAVED, [*saved, *_rows(config, head=bool(run.codes))])
        run.notes.append(f'{", ".join(run.settings[SAVED])} are trained in full beside the adapters: tokens are new.')


def _rows(config, head: bool) -> list[str]:
    """The modules of a language model that hold rows of tokens; the head too where new tokens are written."""
    model = skeleton(config)
    wanted = [model.get_input_embeddings()]
    if head and not config.tie_word_embeddings:
        wanted.append(model.get_output_embeddings())
    return [name.rpartition('.')[2] for module in wanted for name, own in model.named_modules() if own is module]
