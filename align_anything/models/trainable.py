"""Which parameters train, at which learning rate, and the table that shows it.

The order is fixed: freeze components, unfreeze by pattern, then add adapters (`models/lora.py`), which freeze the rest.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from align_anything.core.errors import ModelError
from align_anything.core.registry import nearest
from align_anything.core.types import MediaKind
from align_anything.models import structure
from align_anything.models.checkpointing import ALL_LAYERS, Checkpointing, choose_layers
from align_anything.models.score import SCORE_HEAD
from align_anything.models.structure import MEDIA_CODEC

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Components = Mapping[str, Sequence[str]]
"""Names of components to prefixes of the parameter names in it, as in `FamilySpec.components`."""

FREEZABLE_COMPONENTS = ('vision_tower', 'audio_tower', 'mm_proj', 'generation', 'language_model')
READ_BY: Mapping[MediaKind, tuple[str, ...]] = {
    'image': ('vision_tower', 'mm_proj'),
    'video': ('vision_tower', 'mm_proj'),
    'audio': ('audio_tower', 'mm_proj'),
}
"""The components that media of a kind reach besides the language model."""
_ADAPTER_PREFIX = 'base_model.model.'
_ADAPTER_LEVELS = re.compile(
    r'\.(?:base_layer|original_module|modules_to_save\.[^.]+'
    r'|lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)(?:\.[^.]+)?)(?=\.|$)'
)


def plain_name(name: str) -> str:
    """Returns the name that a parameter of an adapter-wrapped model has in the plain model.

    Adapter weights get the name of the weight they adapt: `….q_proj.lora_A.default.weight` is `….q_proj.weight`.
    """
    if not name.startswith(_ADAPTER_PREFIX):
        return name
    return _ADAPTER_LEVELS.sub('', name.removeprefix(_ADAPTER_PREFIX))


def component_of(name: str, components: Components) -> str:
    """Returns the component that a parameter belongs to, by the longest matching prefix. Raises ModelError for none."""
    plain = plain_name(name)
    return SCORE_HEAD if plain.startswith(f'{SCORE_HEAD}.') else structure.component_of(components, plain)


def freeze_components(
    model: nn.Module,
    components: Components,
    *,
    vision_tower: bool = False,
    audio_tower: bool = False,
    mm_proj: bool = False,
    generation: bool = False,
    language_model: bool = False,
    unfreeze_patterns: Sequence[str] = (),
) -> None:
    """Freezes the named components of `model`, then makes parameters trainable whose name a pattern is found in.

    A model without such a component (a text model has no tower) has nothing to freeze there, and the codec of media is
    frozen from the start. Raises ModelError for a pattern that is no regular expression, matches no parameter, or none
    but those of the codec.
    """
    asked = (vision_tower, audio_tower, mm_proj, generation, language_model)
    wanted = dict(zip(FREEZABLE_COMPONENTS, asked, strict=True))
    for name, parameter in model.named_parameters():
        if wanted.get(component_of(name, components), False):
            parameter.requires_grad_(False)
    for pattern in unfreeze_patterns:
        for parameter in _matching(model, pattern, 'unfreeze_patterns', components):
            if _is_quantised(parameter):
                raise ModelError(f"unfreeze_patterns '{pattern}' matches quantised weights, which cannot be trained.")
            parameter.requires_grad_(True)


def freeze_output_embedding(model: PreTrainedModel) -> None:
    """Freezes the output embedding of a model that is not asked for tokens, unless it is the input embedding too."""
    output = model.get_output_embeddings()
    if output is None:
        return
    if all(output.weight is not weight for weight in model.get_input_embeddings().parameters()):
        output.requires_grad_(False)


def require_trainable(model: nn.Module) -> None:
    """Raises ModelError when no parameter of `model` trains."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            'nothing trains: every parameter is frozen. Look at freeze_vision_tower, freeze_audio_tower, '
            'freeze_mm_proj, freeze_generation and freeze_language_model, or name what should train in '
            'unfreeze_patterns.'
        )


def require_still(model: nn.Module, components: Components, component: str, why: str) -> None:
    """Raises ModelError when a parameter of `component` trains, which `why` says it should not."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and component_of(name, components) == component:
            raise ModelError(
                f"{plain_name(name)} of the component '{component}' would train, but {why}: it would get no gradient. "
                'Take it out of unfreeze_patterns, lora_cfgs.target_modules and lora_cfgs.modules_to_save.'
            )


def require_reached(
    model: nn.Module,
    components: Components,
    kinds: Collection[MediaKind],
    pair: str,
    written: Collection[MediaKind] = (),
) -> None:
    """Raises ModelError when no parameter that trains is reached by text and media of these `kinds`.

    They are those that rows of the modality `pair` may hold in prompts; `written` are those in answers.
    """
    reached = {'language_model', SCORE_HEAD, *(component for kind in kinds for component in READ_BY[kind])}
    reached |= {'generation'} if written else set()
    training = {component_of(name, components) for name, item in model.named_parameters() if item.requires_grad}
    if not training & reached:
        raise ModelError(
            f'all that trains is {" and ".join(sorted(training))}, which rows of {pair} never reach: choose a pair '
            'with media that it reads, or train the language model too (freeze_language_model, '
            'lora_cfgs.target_modules).'
        )


def learning_rates(
    model: nn.Module, components: Components, learning_rate: float, lr_groups: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Returns the learning rate of every trainable parameter, by name.

    A key of `lr_groups` is a component's name or a regular expression that is found in parameter names; where several
    fit, an expression beats a component and the later key wins. Raises ModelError for a key that fits no parameter, or
    none that trains.
    """
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    rates = dict.fromkeys(trainable, learning_rate)
    groups = lr_groups or {}
    # Expressions last, so that they override the components.
    for key, rate in sorted(groups.items(), key=lambda entry: entry[0] not in components):
        if key in components:
            names = [name for name in trainable if component_of(name, components) == key]
        else:
            expression = compiled(key, 'lr_groups')
            names = [name for name in trainable if expression.search(plain_name(name)) or expression.search(name)]
        if not names and key in components:
            raise ModelError(
                f"lr_groups '{key}': nothing in that component trains, so a learning rate has no effect there."
            )
        if not names:
            raise ModelError(
                f"lr_groups '{key}' is neither a component nor found in the name of any parameter that trains."
                f'{nearest(key, list(components))} Components: {", ".join(components)}.'
            )
        rates.update(dict.fromkeys(names, rate))
    return rates


def parameter_table(model: nn.Module, components: Components, rates: Mapping[str, float]) -> list[ComponentRow]:
    """Returns one row per component that holds parameters, in the order of `components`, the score head last.

    `rates` is what `learning_rates` returned. Partitioned (ZeRO-3) and quantised parameters count in full.
    """
    rows = []
    members: dict[str, list[tuple[str, nn.Parameter]]] = {component: [] for component in (*components, SCORE_HEAD)}
    for name, parameter in model.named_parameters():
        members[component_of(name, components)].append((name, parameter))
    for component, entries in members.items():
        if not entries:
            continue
        sizes: dict[str, int] = {}
        for _, parameter in entries:
            dtype = 'quantised' if _is_quantised(parameter) else str(parameter.dtype).removeprefix('torch.')
            sizes[dtype] = sizes.get(dtype, 0) + count(parameter)
        rows.append(
            ComponentRow(
                component=component,
                parameters=sum(sizes.values()),
                trainable=sum(count(parameter) for _, parameter in entries if parameter.requires_grad),
                dtypes=tuple(sorted(sizes, key=sizes.__getitem__, reverse=True)),
                rates=tuple(sorted({rates[name] for name, parameter in entries if parameter.requires_grad})),
            )
        )
    return rows


def render_table(rows: Iterable[ComponentRow]) -> Any:
    """Returns the table as a `rich.table.Table`, with a row of totals."""
    from rich.table import Table

    rows = list(rows)
    table = Table(title='What trains')
    table.add_column('component')
    for column in ('parameters', 'trainable', '%', 'dtype', 'learning rate'):
        table.add_column(column, justify='right')
    for row in rows:
        rates = ', '.join(f'{rate:g}' for rate in row.rates) or '-'
        table.add_row(row.component, *_figures(row.parameters, row.trainable), ', '.join(row.dtypes), rates)
    table.add_section()
    table.add_row('total', *_figures(sum(row.parameters for row in rows), sum(row.trainable for row in rows)), '', '')
    return table


def count(parameter: nn.Parameter) -> int:
    """Returns the number of weights that a parameter stands for, also when partitioned (ZeRO-3) or quantised."""
    attributes = vars(parameter)
    if 'ds_numel' in attributes:
        return attributes['ds_numel']
    if _is_quantised(parameter) and attributes.get('quant_state') is not None:
        return attributes['quant_state'].shape.numel()
    return parameter.numel()


def _is_quantised(parameter: nn.Parameter) -> bool:
    # By name, so that bitsandbytes need not be installed.
    return type(parameter).__name__ in ('Params4bit', 'Int8Params')


def _figures(parameters: int, trainable: int) -> tuple[str, str, str]:
    return f'{parameters:,}', f'{trainable:,}', f'{100 * trainable / max(parameters, 1):.1f}'


def _matching(model: nn.Module, pattern: str, setting: str, components: Components) -> list[nn.Parameter]:
    expression = compiled(pattern, setting)
    named = list(model.named_parameters())
    matches = [(name, parameter) for name, parameter in named if expression.search(plain_name(name))]
    found = [parameter for name, parameter in matches if component_of(name, components) != MEDIA_CODEC]
    if matches and not found:
        raise ModelError(
            f"{setting} '{pattern}' finds nothing but the codec of media, which never trains: the codes that it has "
            'made would mean something else.'
        )
    if not found:
        raise ModelError(
            f"{setting} '{pattern}' is found in no parameter name.{nearest(pattern, [name for name, _ in named])}"
        )
    return found


def compiled(pattern: str, setting: str) -> re.Pattern[str]:
    """Returns the regular expression that a setting gives. Raises ModelError when it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ModelError(f"{setting} '{pattern}' is not a regular expression: {error}.") from error


def enable_gradient_checkpointing(model: nn.Module, how: Checkpointing = ALL_LAYERS) -> None:
    """Recomputes activations in the backward pass, with adapters and frozen components too.

    Raises ModelError when the architecture cannot.
    """
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': False})
    except ValueError as error:
        raise ModelError(f'gradient_checkpointing: {error}') from error
    if how != ALL_LAYERS:
        choose_layers(model, how)


@dataclass(frozen=True)
class ComponentRow:
    """One row of the table: what a component of the model holds and what of it trains.

    Attributes:
        component: name of the component.
        parameters: number of parameters.
        trainable: number of parameters that train.
        dtypes: types of the parameters, most frequent first.
        rates: learning rates of the parameters that train, ascending.
    """

    component: str
    parameters: int
    trainable: int
    dtypes: tuple[str, ...]
    rates: tuple[float, ...]
