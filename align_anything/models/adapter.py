"""Saved low-rank adapters: finding the model under them, training them on, and putting them back onto it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from align_anything.core.errors import ModelError, SettingsError
from align_anything.core.files import read_json
from align_anything.models.checkpoint import ADAPTER_CONFIG, PROCESSOR_FILES, WEIGHT_FILES
from align_anything.models.lora import LINEAR
from align_anything.models.trainable import FREEZABLE_COMPONENTS, plain_name

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from align_anything.configs.schema import LoraCfgs

LISTED = 4
TARGETS_ADVICE = (
    'Set lora_cfgs.target_modules, vision_lora and modules_to_save as in the training of the adapter, or merge it.'
)
MUST_AGREE = ('r', 'lora_alpha', 'use_rslora', 'use_dora')
# What each of these would add to `W + scale * B @ A` is not computed here; the value is the one that adds nothing.
PLAIN_VALUES: Mapping[str, tuple[Any, ...]] = {
    'peft_type': ('LORA',),
    'bias': ('none',),
    'lora_bias': (False,),
    'trainable_token_indices': (None,),
    'target_parameters': (None, []),
    'layer_replication': (None,),
    'alora_invocation_tokens': (None,),
    'use_qalora': (False,),
}
# These take something out of the base weights when training starts, so the adapter alone does not say what was trained.
CHANGES_THE_BASE = ('pissa', 'olora', 'corda', 'loftq')


@dataclass(frozen=True)
class Adapter:
    """A folder with an adapter in the form of peft, and its configuration."""

    folder: Path
    settings: Mapping[str, Any]

    @property
    def base(self) -> str | None:
        """The checkpoint that it was trained on, as the training named it."""
        return self.settings.get('base_model_name_or_path') or None

    def require_base(self) -> str:
        """Returns the name of the base. Raises ModelError when the adapter does not record it, or it is not there."""
        base = self.base
        file = self.folder / ADAPTER_CONFIG
        if base is None:
            raise ModelError(f'{file} does not say which model the adapter was trained on (base_model_name_or_path).')
        if Path(base).is_absolute() and not Path(base).exists():
            raise ModelError(
                f'the adapter in {self.folder} was trained on {base}, which does not exist. Put the model there, or '
                f'change base_model_name_or_path in {file} to where it is.'
            )
        return base

    def holds_processor(self, multimodal: bool) -> bool:
        """Whether the tokenizer, and for multimodal models the processor, lie beside the adapter."""
        has_tokenizer = (self.folder / 'tokenizer_config.json').is_file()
        return has_tokenizer and (not multimodal or any((self.folder / name).is_file() for name in PROCESSOR_FILES))


def find_adapter(model_name_or_path: str | Path) -> Adapter | None:
    """Returns the adapter in a folder, None for anything else: a model, also one beside an adapter, or a hub name."""
    folder = Path(model_name_or_path)
    file = folder / ADAPTER_CONFIG
    weights = [folder / name for known in WEIGHT_FILES for name in (known, f'{known}.index.json')]
    if not file.is_file() or any(weight.is_file() for weight in weights):
        return None
    return Adapter(folder, read_json(file))


def bare_model(model: nn.Module) -> nn.Module:
    """Returns the transformers model inside an adapter wrapper, or the model itself."""
    # Where nothing has imported peft yet, which takes seconds, nothing can have wrapped the model.
    peft = sys.modules.get('peft')
    return model.get_base_model() if peft is not None and isinstance(model, peft.PeftModel) else model


def bare_layer(module: nn.Module) -> nn.Module:
    """Returns the layer under an adapter, or the module itself."""
    peft = sys.modules.get('peft')
    adapted = peft is not None and isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer)
    return module.get_base_layer() if adapted else module


def check_continuation(adapter: Adapter | None, cfgs: LoraCfgs | None) -> None:
    """Raises SettingsError when a run that is to start from `adapter` has settings that do not go on with it."""
    if adapter is None:
        return
    folder = adapter.folder
    if cfgs is None or not cfgs.use_lora:
        raise SettingsError(
            [
                f'model_cfgs.model_name_or_path: {folder} holds a LoRA adapter, and this run trains the full model. '
                f'Merge it first (align-anything merge {folder} MERGED) and train MERGED, or set lora_cfgs.use_lora '
                'to train the adapter on.'
            ]
        )
    check_plain(adapter)
    adapter.require_base()
    problems, saved = differences(adapter, cfgs), adapter.settings
    wanted = set(cfgs.modules_to_save or ())
    # What a component is made of only the model tells; its weights are missed when they are loaded.
    if not wanted & set(FREEZABLE_COMPONENTS) and wanted != set(saved.get('modules_to_save') or ()):
        problems.append(
            f'lora_cfgs.modules_to_save is {cfgs.modules_to_save}, but the adapter in {folder} has '
            f'{saved.get("modules_to_save")}: set the same.'
        )
    if problems:
        raise SettingsError(problems)


def differences(adapter: Adapter, cfgs: LoraCfgs) -> list[str]:
    """Returns what `cfgs` say otherwise than `adapter`, and what of it they cannot say, a sentence each."""
    saved, folder = adapter.settings, adapter.folder
    found = [
        f'lora_cfgs.{key} is {getattr(cfgs, key)}, but the adapter in {folder} has {saved.get(key)}: '
        f'set --{key} {saved.get(key)}.'
        for key in MUST_AGREE
        if saved.get(key) != getattr(cfgs, key)
    ]
    return found + [
        f'the adapter in {folder} has a {key}, which no setting can ask for: merge it and train a new one.'
        for key in ('rank_pattern', 'alpha_pattern')
        if saved.get(key)
    ]


def check_plain(adapter: Adapter) -> None:
    """Raises ModelError for an adapter of another kind than `W + scale * B @ A`, DoRA and full modules included."""
    for key, plain in PLAIN_VALUES.items():
        if adapter.settings.get(key, plain[0]) not in plain:
            raise ModelError(
                f'the adapter in {adapter.folder} has {key} {adapter.settings[key]!r}; only {plain[0]!r} is supported.'
            )
    start = adapter.settings.get('init_lora_weights')
    if isinstance(start, str) and start.lower().startswith(CHANGES_THE_BASE):
        raise ModelError(
            f'the adapter in {adapter.folder} was started with init_lora_weights {start!r}, which changes the base '
            'weights too: convert it with the tool that trained it.'
        )


def put_on(model: PreTrainedModel, adapter: Adapter) -> PeftModel:
    """Puts a saved adapter onto `model`, frozen. Raises ModelError when it was not trained on such a model."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    check_plain(adapter)
    advice = 'Name the model that it was trained on.'
    config = LoraConfig.from_pretrained(str(adapter.folder))
    config.inference_mode = True
    # It may lie elsewhere by now, about which peft would warn.
    config.base_model_name_or_path = model.name_or_path
    try:
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise ModelError(
            f'the adapter in {adapter.folder} does not fit {type(model).__name__}: {error} {advice}'
        ) from error
    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer) and not isinstance(module.get_base_layer(), LINEAR):
            raise ModelError(f'the adapter in {adapter.folder} adapts {name}, which is no linear layer.')
    load_weights(adapted, adapter, advice)
    return adapted


def load_weights(adapted: PeftModel, adapter: Adapter, advice: str) -> None:
    """Gives the adapters of `adapted` the saved weights; on a skeleton it only checks that they fit.

    Raises ModelError, with `advice` at its end, when names or shapes differ.
    """
    put_weights(adapted, _stored(adapter), adapter.folder, advice)


def put_weights(adapted: PeftModel, stored: Mapping[str, Tensor], folder: Path, advice: str) -> None:
    """Gives the adapters of `adapted` the weights `stored`, which are from `folder`; raises as `load_weights` does."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    expected = get_peft_model_state_dict(adapted, state_dict=adapted.state_dict(), save_embedding_layers=False)
    lacking, strange = _modules(set(expected) - set(stored)), _modules(set(stored) - set(expected))
    other = [
        f'{name} {tuple(stored[name].shape)} for {tuple(expected[name].shape)}'
        for name in expected
        if name in stored and stored[name].shape != expected[name].shape
    ]
    if lacking or strange or other:
        found = {
            'missing are those for': lacking,
            'unexpected are those for': strange,
            'of another shape are': other,
        }
        differences = '; '.join(f'{what}: {_listed(names)}' for what, names in found.items() if names)
        raise ModelError(
            f'the weights of the adapter in {folder} do not fit {type(adapted.get_base_model()).__name__} as '
            f'it is adapted here: {differences}. {advice}'
        )
    if not any(parameter.is_meta for parameter in adapted.parameters()):
        set_peft_model_state_dict(adapted, dict(stored))


def _stored(adapter: Adapter) -> dict[str, Tensor]:
    from peft.utils import load_peft_weights
    from safetensors import SafetensorError

    try:
        return load_peft_weights(str(adapter.folder), device='cpu')
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f'the weights of the adapter in {adapter.folder} cannot be read: {error}') from error


def _modules(names: Iterable[str]) -> list[str]:
    return sorted({plain_name(name) for name in names})


def _listed(names: list[str]) -> str:
    rest = len(names) - LISTED
    return ', '.join(names[:LISTED]) + (f' and {rest} more' if rest > 0 else '')
