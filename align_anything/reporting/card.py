"""The card beside every exported model: what it is made of, how it was trained, and how to load it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
import yaml
from huggingface_hub import ModelCard, ModelCardData
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

import align_anything
from align_anything.algorithms.base import Algorithm
from align_anything.configs.redaction import without_secrets
from align_anything.configs.schema import RunCfgs
from align_anything.configs.yaml_text import dump_yaml
from align_anything.core.files import atomic_write_json, atomic_write_text
from align_anything.core.logging import get_logger
from align_anything.engines.checkpoint import CARD_FILE
from align_anything.models.acting.spec import ActionSpec
from align_anything.models.adapter import find_adapter
from align_anything.models.architecture import auto_class
from align_anything.models.diffusion.checkpoint import INDEX, LORA_FILE
from align_anything.models.diffusion.library import require_diffusers
from align_anything.models.diffusion.spec import DiffusionSpec
from align_anything.models.families import own_head
from align_anything.models.family import FamilySpec
from align_anything.models.spec import Spec
from align_anything.reporting.html import render
from align_anything.reporting.metrics import METRICS_FILE
from align_anything.reporting.panels import Curve, arrange, read_curves

logger = get_logger(__name__)

NUMBERS_FILE = 'scores.json'
TITLES = {'rm': 'Reward model', 'cost_model': 'Cost model'}
ROWS = 24
"""Metrics that the card tells, the most telling first."""
MARKER = '<!-- Written by align-anything ({digest}). A card that was edited is kept when the model is saved again. -->'
TRAINING = '\n## Training\n'
ALWAYS = ('learning_rate', 'epochs', 'per_device_train_batch_size', 'gradient_accumulation_steps', 'seed')
# What says where something lies, or has a place of its own on the card, and not how the model was trained.
NOT_TOLD = re.compile(
    r'(train|eval)_(datasets|template|size|split|name|data_files)|model_name_or_path|resume|.*(_dir|_folder|_urls?)'
)
RANGE = {'chosen_reward', 'rejected_reward', 'squared_score', 'reward_accuracy'}
HUB_NAME = re.compile(r'[\w.-]+(/[\w.-]+)?')


class Trained(NamedTuple):
    """A run at the moment when its model is saved, in its output folder."""

    cfgs: RunCfgs
    algorithm: Algorithm
    spec: Spec
    output_dir: Path
    step: int
    evaluation: Mapping[str, float]


def write_card(folder: Path, run: Trained, earlier: Path) -> None:
    """Writes `README.md` for the model in `folder`, and for one that scores `scores.json` with their range.

    `earlier` is the folder that takes its place: a card there that somebody edited is kept instead.
    """
    scores = run.algorithm.scores == 'responses'
    numbers = {'step': run.step, **_range(run.evaluation)} if scores and RANGE <= set(run.evaluation) else {}
    if numbers:
        atomic_write_json(folder / NUMBERS_FILE, numbers)
    source = run.cfgs.model_cfgs.model_name_or_path
    adapter = (folder / LORA_FILE).is_file() or find_adapter(folder) is not None
    base = hub_base(source)
    name = run.algorithm.name
    data = ModelCardData(
        base_model=base,
        datasets=[name for name in _names(run.cfgs.data_cfgs.train_datasets) if is_hub_name(name)] or None,
        tags=['align-anything', name, *(['reward-model'] if scores else []), *(['lora'] if adapter else [])],
        **_library(folder, base),
    )
    training = render(
        'training.md.jinja',
        ranges=_told_range(numbers) if scores else '',
        base=f'`{shown_name(source)}`' + (f', of `{base}`' if base and base != source else ''),
        algorithm=name,
        data=list(_data(run.cfgs)),
        step=run.step,
        versions=_versions(adapter, run.spec),
        ends=list(_ends(run)),
        settings=_fenced(dump_yaml(_settings(run.cfgs)), 'yaml'),
    )
    title = TITLES.get(name, f'{shown_name(base or source)}, trained with {name}')
    summary = f'Trained by align-anything (`{name}`) from `{shown_name(source)}`.'
    if scores:
        summary = f'Gives a conversation one number, read at the token that ends the last answer. {summary}'
    _write(folder, data, earlier, title=title, summary=summary, training=training, scores=scores, spec=run.spec)


def write_merged_card(folder: Path, adapter: Path, base: str, spec: Spec) -> None:
    """Writes the card of the model in `folder`, which is `base` with an adapter in it.

    The adapter's own card says how it was trained; without one only what was merged is told.
    """
    known = _read_card(adapter / CARD_FILE)
    hub = hub_base(base)
    told = {} if known is None else known.data.to_dict()
    told = {key: value for key, value in told.items() if key not in ('base_model_relation', 'library_name')}
    tags = [tag for tag in told.get('tags') or ['align-anything'] if tag != 'lora']
    data = ModelCardData(**told | {'base_model': hub, 'tags': tags} | _library(folder, hub))
    _, found, training = (known.text if known is not None else '').partition(TRAINING)
    title = f'{shown_name(base)}, with an adapter merged into it'
    summary = f'`{shown_name(base)}` with the low-rank adapter `{adapter.resolve().name}` in its weights.'
    training, scores = f'{found}{training}'.strip(), 'reward-model' in data.tags
    _write(folder, data, None, title=title, summary=summary, training=training, scores=scores, spec=spec)


def plain_card(folder: Path, base: str | None) -> str:
    """Returns a card for a model that has none: its library, and the hub's name of its base."""
    data = ModelCardData(base_model=base, tags=['align-anything'], **_library(folder, base))
    return str(ModelCard(f'---\n{data.to_yaml()}\n---\n\n# {folder.resolve().name}\n'))


def is_hub_name(name: str) -> bool:
    """Whether `name` is one that the hub may have: no folder or file of this machine, and without a path."""
    return HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def shown_name(name: str) -> str:
    """The name of a model or a dataset without the folders of this machine."""
    if is_hub_name(name) or '://' in name:
        return name
    path = Path(name)
    # What a run trained is told by the folder of the run.
    return path.parent.name or path.name if path.name.startswith('slice_') else path.name


def hub_base(source: str) -> str | None:
    """Returns the hub's name of a base model; of a folder that of the base that its adapter or its card names."""
    if is_hub_name(source):
        return source
    adapter = find_adapter(source)
    if adapter is not None and adapter.base is not None:
        return hub_base(adapter.base)
    card = _read_card(Path(source) / CARD_FILE)
    named = None if card is None else card.data.base_model
    return named if isinstance(named, str) and is_hub_name(named) else None


def edited(card: Path) -> bool:
    """Whether a card holds something else than what was written here."""
    if not card.is_file():
        return False
    text = card.read_text(encoding='utf-8')
    return _marked(text) != text


def _write(folder: Path, data: ModelCardData, earlier: Path | None, *, scores: bool, spec: Spec, **texts: str) -> None:
    if earlier is not None and edited(earlier / CARD_FILE):
        atomic_write_text(folder / CARD_FILE, (earlier / CARD_FILE).read_text(encoding='utf-8'))
        logger.info('%s was edited since it was written, and is kept', earlier / CARD_FILE)
        return
    use = USES[spec.unit]
    text = render(
        'card.md.jinja',
        card_data=data.to_yaml(),
        marker=MARKER.format(digest=''),
        use=use(folder, spec, scores),
        **texts,
    )
    # ModelCard reads what the hub will read: metadata that it refuses are a fault of ours.
    atomic_write_text(folder / CARD_FILE, _marked(str(ModelCard(text))))


def _use_of_tokens(folder: Path, spec: FamilySpec, scores: bool) -> str:
    """How a model that writes tokens is loaded."""
    own_code = bool(spec.config.to_dict().get('auto_map'))
    return render(
        'use_of_tokens.md.jinja',
        # What scores by itself is loaded as it is.
        scores=scores and own_head(spec.config.model_type) is None,
        scales=scores,
        adapter=find_adapter(folder) is not None,
        auto_model=auto_class(spec.config),
        auto_processor='AutoTokenizer' if spec.processor is None else 'AutoProcessor',
        trust=', trust_remote_code=True' if own_code else '',
        # Composed models are classes of this package, which transformers does not know by itself.
        registered=not own_code and spec.config.model_type not in CONFIG_MAPPING_NAMES,
        chat_template=_fenced(spec.renderer.template, 'jinja') if scores else '',
    )


def _use_of_pipeline(folder: Path, spec: DiffusionSpec, scores: bool) -> str:
    """How a pipeline, or an adapter of its denoiser, is loaded."""
    return render(
        'use_of_pipeline.md.jinja',
        adapter=(folder / LORA_FILE).is_file(),
        base=shown_name(str(spec.folder)),
        result={'image': 'images', 'video': 'frames', 'audio': 'audios'}[spec.kind],
    )


def _use_of_action(folder: Path, spec: ActionSpec, scores: bool) -> str:
    """How a model that acts, or an adapter of one, is loaded."""
    adapter = find_adapter(folder)
    base = '' if adapter is None else shown_name(str(adapter.base))
    return render('use_of_action.md.jinja', adapter=adapter is not None, base=base, scores=scores)


def _use_of_flow(folder: Path, spec: ActionSpec, scores: bool) -> str:
    """How a pi0, or an adapter of one, is loaded."""
    adapter = find_adapter(folder)
    base = '' if adapter is None else shown_name(str(adapter.base))
    return render('use_of_flow.md.jinja', adapter=adapter is not None, base=base, scores=scores)


USES: Mapping[str, Callable[[Path, Any, bool], str]] = {
    'token': _use_of_tokens,
    'denoising step': _use_of_pipeline,
    'action': _use_of_action,
    'denoised action': _use_of_flow,
}
"""How models are loaded, by what a unit of their responses is."""


def _marked(text: str) -> str:
    """The text with the digest of all else in its marker; unchanged where it has no marker."""
    head, tail = re.escape(MARKER).split(re.escape('{digest}'))
    bare = re.sub(f'{head}[0-9a-f]*{tail}', MARKER.format(digest=''), text)
    if MARKER.format(digest='') not in bare:
        return f'{bare}\0'
    digest = hashlib.sha256(bare.encode('utf-8', 'replace')).hexdigest()[:12]
    return bare.replace(MARKER.format(digest=''), MARKER.format(digest=digest))


def _read_card(file: Path) -> ModelCard | None:
    """The card in a file; None without one, or where its metadata cannot be read."""
    if not file.is_file():
        return None
    try:
        return ModelCard.load(file)
    except (ValueError, yaml.YAMLError) as error:
        logger.warning('%s cannot be read as a model card: %s', file, error)
        return None


def _library(folder: Path, base: str | None) -> dict[str, Any]:
    lora = (folder / LORA_FILE).is_file()
    adapter = lora or find_adapter(folder) is not None
    relation = {} if base is None else {'base_model_relation': 'adapter' if adapter else 'finetune'}
    name = 'diffusers' if lora or (folder / INDEX).is_file() else 'peft' if adapter else 'transformers'
    return {'library_name': name, **relation}


def _versions(adapter: bool, spec: Spec) -> str:
    used = [('align-anything', align_anything), ('transformers', transformers), ('torch', torch)]
    used += [('diffusers', require_diffusers())] if spec.unit == 'denoising step' else []
    if adapter:
        import peft

        used.append(('peft', peft))
    return ', '.join(f'{name} {package.__version__}' for name, package in used)


def _names(value: str | Sequence[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _data(cfgs: RunCfgs) -> Iterator[dict[str, str]]:
    """A row for each dataset: what it was used for, its name, its split, size and template."""
    for use, prefix in (('trained on', 'train'), ('evaluated on', 'eval')):
        own = cfgs.data_cfgs.model_dump(
            include={f'{prefix}_{key}' for key in ('datasets', 'split', 'size', 'template')}
        )
        names = _names(own[f'{prefix}_datasets'])
        for number, name in enumerate(names):
            split, size, template = (
                value[number] if isinstance(value := own[f'{prefix}_{key}'], list) else value
                for key in ('split', 'size', 'template')
            )
            told = [
                f'split `{split}`' if split else '',
                f'the first {size} rows' if size else '',
                f'template `{Path(template).name}`' if template else '',
            ]
            yield {'use': use, 'name': f'`{shown_name(name)}`', 'more': ''.join(f', {each}' for each in told if each)}


def _settings(cfgs: RunCfgs) -> dict[str, Any]:
    """The settings that are not the defaults, and those that everyone asks for; no secrets, folders and addresses."""
    given = without_secrets(cfgs.model_dump(mode='json', exclude_defaults=True))
    always = cfgs.train_cfgs.model_dump(mode='json', include=set(ALWAYS))
    given['train_cfgs'] = always | given.get('train_cfgs', {})
    told = {
        group: {key: portable(value) for key, value in own.items() if not NOT_TOLD.fullmatch(key)}
        for group, own in given.items()
        if group != 'logger_cfgs'
    }
    return {group: own for group, own in told.items() if own}


def portable(value: Any) -> Any:
    """The value with paths of this machine shortened to their last part."""
    if isinstance(value, str):
        # A setting may be a path, `file.py:name`, or a text of any length, of which `Path.exists` would complain.
        local = value.startswith('/') or any(map(os.path.exists, (value, value.rpartition(':')[0])))
        return Path(value).name if local and '/' in value and '\n' not in value else value
    if isinstance(value, list):
        return [portable(item) for item in value]
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    return value


def _ends(run: Trained) -> Iterator[tuple[str, str, str, str]]:
    """Of the metrics that move, the first value, the last up to this step, and that of the last evaluation."""
    curves = {
        name: {label: kept for label, curve in own.items() if (kept := [one for one in curve if one[0] <= run.step])}
        for name, own in read_curves(run.output_dir, files=(METRICS_FILE,)).items()
    }
    panels = arrange({name: own for name, own in curves.items() if own})
    told = [(name, own) for panel in panels for name, own in panel.curves.items()]
    for name, own in told[:ROWS]:
        train, evaluated = own.get('train', []), own.get('eval', [])
        yield name.replace('|', r'\|'), _number(train[:1]), _number(train[-1:]), _number(evaluated[-1:])


def _number(points: Curve) -> str:
    return f'{points[0][1]:.4g}' if points else ''


def _fenced(text: str, language: str) -> str:
    """The text as a block of code, fenced by more marks than stand in it."""
    longest = max((len(run) for run in re.findall('`{3,}', text)), default=2)
    fence = '`' * (longest + 1)
    return f'{fence}{language}\n{text.strip()}\n{fence}'


def _told_range(numbers: Mapping[str, float]) -> str:
    if not numbers:
        return 'The range of its scores is unknown: no evaluation measured it.'
    return (
        f'On the evaluation data its scores have the mean {numbers["mean"]:.3f} and the standard deviation '
        f'{numbers["std"]:.3f}; the chosen ones have the mean {numbers["chosen_mean"]:.3f}, the rejected ones '
        f'{numbers["rejected_mean"]:.3f}, and {numbers["accuracy"]:.1%} of the pairs are in the right order.'
    )


def _range(evaluation: Mapping[str, float]) -> dict[str, float]:
    chosen, rejected = evaluation['chosen_reward'], evaluation['rejected_reward']
    mean = (chosen + rejected) / 2
    return {
        'mean': mean,
        'std': max(evaluation['squared_score'] - mean**2, 0.0) ** 0.5,
        'chosen_mean': chosen,
        'rejected_mean': rejected,
        'accuracy': evaluation['reward_accuracy'],
    }
