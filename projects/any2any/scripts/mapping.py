"""The YAML files of Any2Any Trainer as settings of align-anything: every key, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from align_anything.algorithms.base import find_algorithm, known_algorithms
from align_anything.configs.keys import KeyIndex, UnknownKey
from align_anything.configs.schema import build_run_schema
from align_anything.configs.yaml_text import parse_yaml
from align_anything.core.errors import SettingsError
from align_anything.core.lazy import LazyMapping
from align_anything.core.registry import nearest
from align_anything.core.types import MEDIA_KINDS

Modality = Literal['text', 'image', 'audio', 'video']
Form = Literal['continuous', 'discrete']
ALGORITHM = 'sft'
TOWERS = {'image': 'vision', 'video': 'vision', 'audio': 'audio'}
ENDS = {'start': 'opening', 'end': 'closing'}

DEFAULTS = {
    'train_cfgs.epochs': 3,
    'logger_cfgs.output_dir': './output',
    'logger_cfgs.save_total_limit': 3,
}
LORA_DEFAULTS = {'lora_cfgs.r': 64, 'lora_cfgs.lora_alpha': 128}
"""What Any2Any Trainer takes where a file does not say; all else has the default of align-anything."""

FUSED = {
    'gpt2': {'q_proj': 'c_attn', 'k_proj': 'c_attn', 'v_proj': 'c_attn', 'o_proj': 'attn.c_proj'},
}
"""By `model_type`, the layers of language models that call the usual projections something else."""

LEFT_OUT = {
    'use_accelerate': 'processes are started by accelerate launch, deepspeed or torchrun, or there is one',
    'use_deepspeed': 'runs are on DeepSpeed always',
    'remove_unused_columns': 'columns that the template does not read are left alone',
}
"""Keys without which a run here does the same, by why."""

REFUSED = {
    'generate_eval_examples': 'no examples are generated while training; scripts/generate.py does it afterwards',
    'warmup_steps': 'the warm-up is a share of the steps here; write warmup_ratio',
}
"""Keys that cannot be obeyed, by what to do. False, 0 and null ask for nothing, and are left out."""


class Part(BaseModel):
    """The encoder or decoder of a modality."""

    model_config = ConfigDict(extra='forbid', protected_namespaces=())

    model: str = Field(description='Checkpoint: an encoder, or for media that are discrete tokens a codec.')
    freeze: bool | None = Field(None, description='Whether its weights stay as they are.')
    tokenizer_type: Form | None = Field(None, description='The same as `tokenizers` of this modality.')


class Projection(BaseModel):
    """What lies between encoders and language model."""

    model_config = ConfigDict(extra='forbid')

    type: Literal['mlp', 'linear', 'transformer', 'expand'] | None = None
    hidden_size: PositiveInt | None = None
    num_layers: PositiveInt | None = None
    dropout: float | None = Field(None, ge=0, lt=1)


class Lora(BaseModel):
    """Low-rank adapters."""

    model_config = ConfigDict(extra='forbid')

    r: PositiveInt | None = None
    alpha: float | None = Field(None, gt=0)
    dropout: float | None = Field(None, ge=0, lt=1)
    target_modules: list[str] = []
    bias: Literal['none'] = 'none'


class Modalities(BaseModel):
    """What the model reads and writes."""

    model_config = ConfigDict(extra='forbid')

    input: list[Modality] = ['text']
    output: list[Modality] = ['text']


class Any2Any(BaseModel):
    """Options of media that are discrete tokens."""

    model_config = ConfigDict(extra='forbid')

    modality_loss_weights: dict[Modality, float] = {}
    modality_max_lengths: dict[Modality, PositiveInt] = {}
    use_modality_separators: bool = True


class File(BaseModel):
    """The keys of a file that are Any2Any Trainer's own. All others are settings of align-anything."""

    model_config = ConfigDict(extra='allow', protected_namespaces=())

    model_name_or_path: str = Field(description='Language model, or a checkpoint that reads the media itself.')
    model_type: Literal['standard', 'multimodal', 'any2any', 'unified', 'auto'] | None = None
    modalities: Modalities | None = None
    vision_encoder: str | None = Field(None, description='Encoder of images: clip, siglip, vit, dinov2.')
    encoders: dict[Modality, Part] = {}
    decoders: dict[Modality, Part] = {}
    projection_type: Literal['mlp', 'linear', 'transformer', 'expand'] | None = None
    projection: Projection = Projection()
    tokenizers: dict[Modality, Form] = {}
    special_tokens: dict[str, str] = {}
    any2any_config: Any2Any = Any2Any()
    dataset: str | list[str] = Field(description='Training data: hub names, files or folders; one or a list.')
    conversation_field: str | None = Field(None, description='Column with the turns of a conversation.')
    image_field: str | None = Field(None, description='Column with the images of a conversation.')
    eval_during_training: bool | None = Field(
        None, description='Whether to evaluate: on the held-out split of the data, else on their last tenth.'
    )
    freeze_vision_encoder: bool | None = None
    freeze_audio_encoder: bool | None = None
    freeze_llm: bool | None = Field(None, description='Whether the weights of the language model stay as they are.')
    train_projection_only: bool = Field(False, description='Trains what lies between encoders and language model.')
    unfreeze_layers_patterns: list[str] = []
    use_peft: bool = Field(False, description='Trains low-rank adapters in place of all weights.')
    lora: Lora = Lora()
    load_best_model_at_end: bool = False


@dataclass
class Run:
    """A file, read: the run that it asks for.

    Attributes:
        pair: the modality pair of its trainer.
        settings: settings of align-anything by `group.key`.
        origins: the key of the file that each of them comes from.
        file: the keys of the file.
        compose: what `model_cfgs.compose` is made of beside the language model; empty where nothing is composed.
        codes: of each kind of media that stands as discrete tokens, its codec (None for that of the checkpoint, or the
            usual one), and the tokens before and behind it, `opening` and `closing`, where the file names them.
        longest: most tokens of a medium, by kind.
        notes: what to tell the user, a sentence each.
    """

    pair: str
    file: File
    settings: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    compose: dict[str, Any] = field(default_factory=dict)
    codes: dict[str, dict[str, str | None]] = field(default_factory=dict)
    longest: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def put(self, path: str, value: Any, origin: str) -> None:
        """Adds a setting; another value for it from elsewhere is a problem."""
        if path in self.settings and self.settings[path] != value:
            self.problems.append(
                f'{origin} asks for {path} {value!r}, and {self.origins[path]} for {self.settings[path]!r}: it is one '
                'setting here. Make them equal, or leave one of them out.'
            )
            return
        self.settings[path], self.origins[path] = value, origin

    def default(self, path: str, value: Any) -> None:
        """Adds a setting that the file does not give."""
        if path not in self.settings:
            self.settings[path], self.origins[path] = value, 'a default of Any2Any Trainer'

    def nested(self) -> dict[str, dict[str, Any]]:
        """Returns the settings as align-anything's files have them, by group."""
        groups: dict[str, dict[str, Any]] = {}
        for path, value in self.settings.items():
            group, key = path.split('.', 1)
            groups.setdefault(group, {})[key] = value
        return groups


def read_file(path: Path) -> Run:
    """Returns the run that a YAML file asks for. Raises SettingsError with all that is wrong in it."""
    try:
        values = parse_yaml(path.read_text(encoding='utf-8')) or {}
    except (OSError, ValueError) as error:
        raise SettingsError([f'{path}: {error}.']) from error
    if not isinstance(values, dict):
        raise SettingsError([f'{path} must hold keys and their values, such as model_name_or_path: FOLDER.'])
    return read_values(values, str(path))


def read_values(values: Mapping[str, Any], origin: str) -> Run:
    """Returns the run that the keys and values of a file ask for; messages begin with `origin`."""
    try:
        # A null says nothing, whatever its key.
        file = File.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        raise SettingsError([_said(item, origin) for item in error.errors()]) from error
    inputs, outputs = _modalities(file)
    run = Run(_pair(inputs, outputs), file)
    run.problems += [f'{origin}: {problem}' for problem in _contradictions(file, inputs, outputs)]
    _media(run, file, inputs, outputs)
    _training(run, file)
    _others(run, file.model_extra or {}, origin)
    if run.settings.get('train_cfgs.fp16'):
        run.default('train_cfgs.bf16', False)
    for path, value in {**DEFAULTS, **(LORA_DEFAULTS if file.use_peft else {})}.items():
        run.default(path, value)
    if run.problems:
        raise SettingsError(run.problems)
    return run


def _said(item: Mapping[str, Any], origin: str) -> str:
    path = [str(part) for part in item['loc'] if part not in ('str', 'list[str]', '[key]')]
    where = f'{origin}: {".".join(path)}'
    if item['type'] == 'extra_forbidden':
        inner = File.model_fields[path[0]].annotation
        found = [kind for kind in (inner, *get_args(inner)) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        known = list(found[0].model_fields)
        return f'{where} is no key of it.{nearest(path[-1], known)} There are: {", ".join(known)}.'
    if item['type'] == 'missing':
        return f'{where} is required.'
    return f'{where}: {item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")}.'


def _modalities(file: File) -> tuple[set[str], set[str]]:
    """What is read and written. Where the file does not say, an encoder is there to be used."""
    if file.modalities is not None:
        return set(file.modalities.input), set(file.modalities.output)
    read = {'text', *file.encoders, *(['image'] if file.vision_encoder else [])}
    return read, {'text', *file.decoders}


def _pair(inputs: set[str], outputs: set[str]) -> str:
    read, written = inputs - {'text'}, outputs - {'text'}
    if not written:
        return f'text_{[*read][0]}_to_text' if len(read) == 1 else 'any_to_text' if read else 'text_to_text'
    if len(outputs) == 1 and not read:
        return f'text_to_{[*written][0]}'
    if outputs == read == {'image'}:
        return 'text_image_to_image'
    return 'text_image_to_text_image' if read | written == {'image'} else 'any_to_any'


def _contradictions(file: File, inputs: set[str], outputs: set[str]) -> Iterator[str]:
    used = (inputs | outputs) - {'text'}
    if file.model_type not in (None, 'auto'):
        implied = 'any2any' if outputs != {'text'} else 'multimodal' if used else 'standard'
        if file.model_type != implied and (file.model_type, implied) != ('unified', 'any2any'):
            yield f'model_type {file.model_type}: the modalities make it {implied}. Change one of them.'
    text = file.encoders.get('text')
    if text is not None and text.model != file.model_name_or_path:
        yield (
            f'encoders.text.model is {text.model}, and model_name_or_path {file.model_name_or_path}: text goes through '
            'the language model alone. Make them equal.'
        )
    if file.decoders.get('text') is not None:
        yield 'decoders.text: text is written by the language model; leave it out.'
    if file.tokenizers.get('text', 'continuous') != 'continuous':
        yield 'tokenizers.text: text has the tokenizer of the language model; leave it out.'
    named = {*file.encoders, *file.decoders, *file.tokenizers, *(['image'] if file.vision_encoder else [])}
    for kind in sorted(named - {'text'} - used):
        yield f'{kind} is named, but modalities neither reads nor writes it. Add it there, or leave it out.'
    for kind in sorted(kind for kind in file.decoders.keys() - outputs if _form(file, kind) != 'discrete'):
        yield f'decoders.{kind}: {kind} is not among the outputs of modalities, nor does it go in as discrete tokens.'
    for kind in sorted({*file.encoders, *(['image'] if file.vision_encoder else [])} & used - inputs):
        yield f'the encoder of {kind}: {kind} is not among the inputs of modalities. Add it, or leave the encoder out.'
    for token in file.special_tokens:
        kind, _, end = token.partition('_')
        if kind not in MEDIA_KINDS or end not in ENDS:
            known = [f'{each}_{one}' for each in sorted(used) for one in ENDS]
            yield f'special_tokens.{token} is no key of it.{nearest(token, known)} There are: {", ".join(known)}.'
        elif kind not in used:
            yield f'special_tokens.{token}: {kind} is neither read nor written; leave it out.'
    if file.vision_encoder and 'image' in file.encoders and file.encoders['image'].model != file.vision_encoder:
        yield 'vision_encoder and encoders.image.model are two names of one thing. Leave one of them out.'
    if file.projection_type and file.projection.type not in (None, file.projection_type):
        yield 'projection_type and projection.type are two names of one thing. Leave one of them out.'
    for kind, part in {**file.encoders, **file.decoders}.items():
        if part.tokenizer_type is not None and file.tokenizers.get(kind, part.tokenizer_type) != part.tokenizer_type:
            yield f'tokenizers.{kind} and tokenizer_type of its encoder or decoder differ. Leave one of them out.'
    if not file.any2any_config.use_modality_separators and file.special_tokens:
        yield 'any2any_config.use_modality_separators is false, but special_tokens names some. Change one of them.'


def _media(run: Run, file: File, inputs: set[str], outputs: set[str]) -> None:
    """Says how each kind of media gets in and out: through an encoder and a projector, or as codes of a codec."""
    encoders = {kind: part.model for kind, part in file.encoders.items() if kind != 'text'}
    if file.vision_encoder:
        encoders['image'] = file.vision_encoder
    for kind in (kind for kind in MEDIA_KINDS if kind in inputs | outputs):
        encoder = encoders.get(kind)
        form = _form(file, kind) or ('continuous' if encoder else 'discrete' if kind in outputs else None)
        tokens = {
            end: file.special_tokens[f'{kind}_{name}']
            for name, end in ENDS.items()
            if f'{kind}_{name}' in file.special_tokens
        }
        if len(tokens) == 1:
            run.problems.append(f'special_tokens: {kind} has one of {kind}_start and {kind}_end. Name both, or none.')
        if kind in outputs or form == 'discrete':
            _discrete(run, file, kind, tokens)
        if form == 'continuous' and encoder and kind in inputs:
            ends = {f'{name}_token': tokens[end] for name, end in ENDS.items() if end in tokens}
            run.compose[kind] = {'encoder': encoder, **_projector(file), **ends}
            frozen = file.encoders[kind].freeze if kind in file.encoders else None
            if frozen is not None:
                run.put(f'train_cfgs.freeze_{TOWERS[kind]}_tower', frozen, f'encoders.{kind}.freeze')
        elif encoder:
            _unused(run, file, kind, encoder)
        elif tokens and kind not in run.codes:
            run.problems.append(f'special_tokens of {kind}: no encoder of {kind} is named, nor is it discrete.')
    if run.compose:
        run.compose['projector'] = file.projection_type or file.projection.type or 'mlp'
    elif {'projection_type', 'projection'} & file.model_fields_set:
        run.problems.append('projection: nothing is composed, for no encoder of media that go in continuously is named')


def _form(file: File, kind: str) -> Form | None:
    """How a kind goes in, by what the file says."""
    given = (file.encoders.get(kind), file.decoders.get(kind))
    return file.tokenizers.get(kind) or next((part.tokenizer_type for part in given if part is not None), None)


def _projector(file: File) -> dict[str, Any]:
    given = file.projection.model_dump(exclude_none=True)
    return {key: value for key, value in given.items() if key != 'type'}


def _discrete(run: Run, file: File, kind: str, tokens: dict[str, str]) -> None:
    decoder = file.decoders.get(kind)
    run.codes[kind] = {'codec': decoder.model if decoder is not None else None, **tokens}
    if decoder is not None and decoder.freeze is False:
        run.problems.append(f'decoders.{kind}.freeze: a codec is never trained; leave it out.')


def _unused(run: Run, file: File, kind: str, encoder: str) -> None:
    if kind in file.encoders and file.encoders[kind].freeze is False:
        run.problems.append(f'encoders.{kind}.freeze: {kind} is discrete, so that its encoder is not even used.')
    run.notes.append(f'{kind} goes in as discrete tokens, so that its encoder {encoder} is not used.')


def _training(run: Run, file: File) -> None:
    """Puts what is trained, and how."""
    frozen = {
        'freeze_vision_encoder': (file.freeze_vision_encoder, 'train_cfgs.freeze_vision_tower'),
        'freeze_audio_encoder': (file.freeze_audio_encoder, 'train_cfgs.freeze_audio_tower'),
        'freeze_llm': (file.freeze_llm, 'train_cfgs.freeze_language_model'),
    }
    text = file.encoders.get('text')
    if text is not None and text.freeze is not None:
        run.put('train_cfgs.freeze_language_model', text.freeze, 'encoders.text.freeze')
    for key, (value, path) in frozen.items():
        if value is not None:
            run.put(path, value, key)
    if file.train_projection_only:
        run.put('train_cfgs.stage', 'projection', 'train_projection_only')
    elif run.compose:
        run.default('train_cfgs.stage', 'joint')
    if file.unfreeze_layers_patterns:
        run.put('train_cfgs.unfreeze_patterns', file.unfreeze_layers_patterns, 'unfreeze_layers_patterns')
    if file.use_peft:
        run.put('lora_cfgs.use_lora', True, 'use_peft')
    renamed = {'alpha': 'lora_alpha', 'dropout': 'lora_dropout'}
    for key, value in file.lora.model_dump(exclude_unset=True).items():
        if key != 'bias' and value != []:
            run.put(f'lora_cfgs.{renamed.get(key, key)}', value, f'lora.{key}')
    weights = dict(file.any2any_config.modality_loss_weights)
    for kind in sorted(weights.keys() - run.codes.keys() - {'text'}):
        run.problems.append(f'any2any_config.modality_loss_weights.{kind}: {kind} is not written; leave it out.')
    if weights.pop('text', 1.0) != 1.0:
        run.problems.append('any2any_config.modality_loss_weights.text: that of text is 1; divide the others by it.')
    if weights:
        run.put('data_cfgs.emitted_loss_weights', weights, 'any2any_config.modality_loss_weights')
    lengths = dict(file.any2any_config.modality_max_lengths)
    if 'text' in lengths:
        run.put('model_cfgs.model_max_length', lengths.pop('text'), 'any2any_config.modality_max_lengths.text')
    for kind in sorted(lengths.keys() - run.codes.keys()):
        run.problems.append(f'any2any_config.modality_max_lengths.{kind}: {kind} is not discrete; leave it out.')
    run.longest = lengths


def _others(run: Run, given: Mapping[str, Any], origin: str) -> None:
    """Puts the keys that are settings of align-anything, under its names or those of the Hugging Face trainer."""
    algorithm = find_algorithm(ALGORITHM)
    index = KeyIndex(build_run_schema(algorithm), f'{run.pair} {ALGORITHM}', LazyMapping(known_algorithms))
    flat: dict[str, Any] = {}
    for key, held in given.items():
        grouped = key in index.fields and isinstance(held, Mapping)
        flat |= {f'{key}.{inner}': value for inner, value in held.items()} if grouped else {key: held}
    for name, value in flat.items():
        if value is None:
            continue
        if name in LEFT_OUT:
            run.notes.append(f'{name} is left out: {LEFT_OUT[name]}.')
        elif name in REFUSED:
            if value:
                run.problems.append(f'{origin}: {name}: {REFUSED[name]}.')
        else:
            _put_ours(run, index, name, value, origin)
    if run.file.load_best_model_at_end and 'train_cfgs.save_best' not in run.settings:
        run.put('train_cfgs.save_best', 'loss', 'load_best_model_at_end')
    if 'train_cfgs.eval_interval' in run.settings:
        run.default('train_cfgs.eval_strategy', 'steps')


def _put_ours(run: Run, index: KeyIndex, name: str, value: Any, origin: str) -> None:
    try:
        location = index.locate(name)
    except UnknownKey as error:
        hint = nearest(name, [*File.model_fields, *LEFT_OUT, *REFUSED], cutoff=0.75)
        run.problems.append(f"{origin}: there is no key '{name}'.{hint}" if hint else f'{origin}: {error}.')
        return
    run.put(location.path, location.convert(value) if location.convert else value, name)
