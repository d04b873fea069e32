"""Which checkpoints act, told by the type that their configuration names."""

from __future__ import annotations

from pathlib import Path

from align_anything.core.files import read_json

ACTING = ('spoc', 'pi0')
"""Types of models that act: of a class of this package, and of transformers."""
OWN = ('spoc',)
ACTS = ('action', 'denoised action')
"""What a unit of theirs is, see `Spec.unit`."""
CONFIG, ADAPTER_CONFIG = 'config.json', 'adapter_config.json'


def register_acting(model_type: str) -> None:
    """Makes transformers know a type of models that act; others are left as they are."""
    if model_type in OWN:
        from align_anything.models.acting.spoc import register

        register()


def is_acting(source: str | Path) -> bool:
    """Whether a checkpoint is a model that acts, or an adapter of one; of the hub, what is here of it says so."""
    folder = Path(source)
    if (folder / CONFIG).is_file():
        return read_json(folder / CONFIG).get('model_type') in ACTING
    if (folder / ADAPTER_CONFIG).is_file():
        base = read_json(folder / ADAPTER_CONFIG).get('base_model_name_or_path')
        return bool(base) and base != str(source) and is_acting(base)
    return not folder.exists() and _named_so(str(source))


def _named_so(name: str) -> bool:
    from transformers import PreTrainedConfig

    try:
        return PreTrainedConfig.get_config_dict(name)[0].get('model_type') in ACTING
    except (OSError, ValueError):
        # What is wrong with it is told where it is opened.
        return False
