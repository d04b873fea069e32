"""Checkpoints that plain transformers loads, with the names the source checkpoint had, adapters apart or merged."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from align_anything.core.errors import ModelError
from align_anything.core.files import atomic_write_json
from align_anything.models.adapter import bare_model
from align_anything.models.architecture import CODEC_NAMES, skeleton_of
from align_anything.models.checkpoint import stored_module
from align_anything.models.frames import WritesFrames
from align_anything.models.quantization import dequantised, is_quantised
from align_anything.models.score import SCORE_HEAD
from align_anything.models.trainable import count

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

ADAPTER = 'default'
MAX_SHARD_SIZE = '5GB'


def export_model(
    model: nn.Module,
    state_dict: Mapping[str, Tensor] | None,
    out_dir: str | Path,
    *,
    tokenizer: Any,
    processor: Any = None,
    merge_adapter: bool = False,
    end_of_turn_id: int | None = None,
    pad_token_id: int | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> None:
    """Writes `model` to `out_dir` as a checkpoint that plain `from_pretrained` loads. Call it on one rank.

    The live model is not changed. Full models have config, generation config and safetensors with the names of the
    checkpoint they were loaded from; one with a score head is also what `AutoModelForSequenceClassification` loads,
    where transformers has such a class for the architecture. Under LoRA the adapter is written, or with
    `merge_adapter` the full model with the adapter added in float32; quantised weights are then written in full
    precision.

    Args:
        model: the model, wrapped by peft under LoRA.
        state_dict: what `model.state_dict()` would be if it were gathered; needed where it is partitioned (ZeRO-3).
        tokenizer, processor: saved beside the weights; the processor is None for text families.
        end_of_turn_id: token that was trained to end an answer; added to what stops generation.
        pad_token_id: what batches are padded with, from which classifiers of transformers tell where a text ends.
        max_shard_size: size of a weight file before another one is begun.

    Raises:
        ModelError: weights are missing or partitioned.
    """
    folder = Path(out_dir)
    if state_dict is None and any(count(parameter) > parameter.numel() == 0 for parameter in model.parameters()):
        raise ModelError('the parameters are partitioned (ZeRO-3): hand over the gathered state to save the model.')
    state = dict(model.state_dict() if state_dict is None else state_dict)
    plain = bare_model(model)
    adapted = plain is not model
    if adapted and not merge_adapter:
        # 'auto' would ask the hub whether the vocabulary was resized; a module to save holds the embeddings if it was.
        model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
    else:
        if is_quantised(model):
            state = dequantised(model, state)
        if adapted:
            state = merged_state(model, state)
        _save_full(plain, state, folder, max_shard_size)
        if f'{SCORE_HEAD}.weight' in state:
            _make_classifier(plain.config, folder, None if pad_token_id == end_of_turn_id else pad_token_id)
    if plain.can_generate():
        settings = plain.generation_settings() if isinstance(plain, WritesFrames) else {}
        _save_generation_config(plain.generation_config, folder, end_of_turn_id, settings)
    forget_last_call(tokenizer)
    (processor or tokenizer).save_pretrained(folder)


def merged_state(model: PeftModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state of the plain model with the adapter in it, under the plain model's names.

    `state` has the names of `model.state_dict()`, already dequantised. Sums are taken in float32 and returned in the
    type of the weight; neither `model` nor `state` is changed.
    """
    from peft.tuners.lora import LoraLayer

    result: dict[str, Tensor] = {}
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    owners = sorted(layers, key=len, reverse=True)
    for name, tensor in state.items():
        owner = next((layer for layer in owners if name.startswith(f'{layer}.')), None)
        plain = name.removeprefix('base_model.model.')
        if owner is None:
            if '.original_module.' not in name:
                result[plain.replace(f'.modules_to_save.{ADAPTER}', '')] = tensor
        elif name.startswith(f'{owner}.base_layer.'):
            is_weight = name == f'{owner}.base_layer.weight'
            value = _merged_weight(layers[owner], owner, state) if is_weight else tensor
            result[plain.replace('.base_layer.', '.')] = value
    return result


def _merged_weight(layer: LoraLayer, name: str, state: Mapping[str, Tensor]) -> Tensor:
    stored = state[f'{name}.base_layer.weight']
    # GPT-2 keeps `(in, out)`, everything else `(out, in)`.
    weight = stored.T if layer.fan_in_fan_out else stored
    down = state[f'{name}.lora_A.{ADAPTER}.weight'].to(weight.device, torch.float32)
    up = state[f'{name}.lora_B.{ADAPTER}.weight'].to(weight.device, torch.float32)
    merged = weight.float() + layer.scaling[ADAPTER] * (up @ down)
    if ADAPTER in layer.lora_magnitude_vector:
        magnitude = state[f'{name}.lora_magnitude_vector.{ADAPTER}.weight'].to(weight.device, torch.float32)
        merged = merged * (magnitude / torch.linalg.norm(merged, dim=1))[:, None]
    return (merged.T if layer.fan_in_fan_out else merged).to(weight.dtype).contiguous()


def _save_full(model: PreTrainedModel, state: dict[str, Tensor], folder: Path, max_shard_size: str) -> None:
    skeleton = skeleton_of(model)
    # Numbers have a dimension while they train.
    scalars = [name for name, tensor in skeleton.state_dict().items() if not tensor.dim() and name in state]
    state |= {name: state[name].reshape(()) for name in scalars if state[name].numel() == 1}
    _check_complete(skeleton, state)
    # Gathered tensors no longer share storage, by which transformers would know that they are tied.
    twice = {name: state[name].clone() for name in model.stored_tied} if isinstance(model, WritesFrames) else {}
    for name in (*skeleton.all_tied_weights_keys, *second_names(skeleton)):
        state.pop(name, None)
    state |= twice
    # A skeleton writes the files: saving the live model would write the name of an Accustomed class, and adapters
    # and quantisation change what it writes.
    skeleton.to(_common_dtype(state))
    state |= _stored_codec(model, state)
    renames = vars(model).get('_weight_conversions')
    if renames is not None:
        skeleton._weight_conversions = [copy.deepcopy(rename) for rename in renames]
    skeleton.generation_config = GenerationConfig()
    skeleton.save_pretrained(folder, state_dict=state, max_shard_size=max_shard_size)


def _stored_codec(model: PreTrainedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a codec of media as they were loaded from: the model holds them in the type that it trains in.

    A codec that is rounded makes other codes than those that the model was trained on.
    """
    found: dict[str, Tensor] = {}
    for codec in sorted(CODEC_NAMES):
        names = [name for name in state if f'.{codec}.' in f'.{name}']
        source = Path(model.config.name_or_path)
        if names and source.is_dir():
            stored = stored_module(source, codec)
            found |= {name: stored[f'.{name}'.partition(f'.{codec}.')[2]] for name in names}
    return found


def _make_classifier(config: PreTrainedConfig, folder: Path, pad_token_id: int | None) -> None:
    """Rewrites the saved configuration as that of a classifier with one label.

    Where padding is the token that ends an answer, `pad_token_id` is None: classifiers of transformers then take one
    text at a time, instead of reading the score one token early.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as CLASSIFIERS

    file = folder / 'config.json'
    saved = json.loads(file.read_text(encoding='utf-8'))
    saved |= {'id2label': {'0': 'score'}, 'label2id': {'score': 0}}
    # Classifiers of multimodal models read that of the text model.
    text = config.get_text_config()
    for settings in (saved, *(saved[name] for name in config.sub_configs if vars(config)[name] is text)):
        settings['pad_token_id'] = pad_token_id
    if type(config) in CLASSIFIERS:
        saved['architectures'] = [CLASSIFIERS[type(config)].__name__]
    atomic_write_json(file, saved)


def forget_last_call(tokenizer: Any) -> None:
    """Drops the padding and truncation of the last call, which a fast tokenizer would write down as its own.

    Every call sets them anew. Written down, they become defaults of the processor's other components: Gemma 4's then
    refuses audio clips.
    """
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()


def second_names(model: PreTrainedModel) -> list[str]:
    """Returns the further names of parameters that have several without the class calling them tied."""
    first: dict[int, str] = {}
    names = [
        (name, parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name not in model.all_tied_weights_keys
    ]
    return [name for name, parameter in names if first.setdefault(id(parameter), name) != name]


def _check_complete(skeleton: PreTrainedModel, state: Mapping[str, Tensor]) -> None:
    tied = set(skeleton.all_tied_weights_keys)
    expected = skeleton.state_dict()
    missing = sorted(set(expected) - tied - set(state))
    other = [name for name in expected if name in state and state[name].shape != expected[name].shape]
    if missing or other:
        raise ModelError(
            f'the state to save is not that of {type(skeleton).__name__}: missing {missing[:5]}, other shapes '
            f'{[(name, tuple(state[name].shape)) for name in other[:5]]}.'
        )
    strange = sorted(set(state) - set(expected) - {f'{SCORE_HEAD}.weight'})
    if strange:
        raise ModelError(f'the state to save has names that {type(skeleton).__name__} does not have: {strange[:5]}.')


def _common_dtype(state: Mapping[str, Tensor]) -> torch.dtype:
    sizes: Counter[torch.dtype] = Counter()
    for tensor in state.values():
        if tensor.is_floating_point():
            sizes[tensor.dtype] += tensor.numel()
    return sizes.most_common(1)[0][0]


def _save_generation_config(
    config: GenerationConfig, folder: Path, end_of_turn_id: int | None, more: Mapping[str, Any]
) -> None:
    config = copy.deepcopy(config)
    vars(config).update(more)
    if end_of_turn_id is not None:
        stops = config.eos_token_id
        stops = [] if stops is None else [stops] if isinstance(stops, int) else list(stops)
        if end_of_turn_id not in stops:
            stops.append(end_of_turn_id)
        config.eos_token_id = stops
    # Not `save_pretrained`: it refuses combinations that checkpoints of the hub come with.
    config.to_json_file(folder / 'generation_config.json', use_diff=True)
