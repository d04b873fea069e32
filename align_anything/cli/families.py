"""The model families: what each reads, and the runs and layouts it supports, found out from the code itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table
from rich.text import Text

from align_anything.algorithms.base import find_algorithm
from align_anything.cli.checkpoints import listed_families
from align_anything.cli.leaves import runs
from align_anything.core.errors import SettingsError
from align_anything.core.plugins import usable
from align_anything.core.registry import nearest
from align_anything.core.types import MediaKind
from align_anything.models import structure
from align_anything.models.families import family_module, family_names, own_codes, own_head, own_reads, writes_text
from align_anything.models.family import FamilySpec
from align_anything.trainers.pairs import PAIRS

OTHERS = (
    'Every other causal or image-text-to-text class of transformers is served by the default rules. '
    'What writes no media here learns it with tokens for them: align-anything add-media-tokens.'
)
OWN_CODE = 'the class comes with the checkpoint, so set trust_remote_code; tested on stand-ins only'
OWN, DEFAULT, NONE = 'own file', 'default', 'none'


@dataclass(frozen=True)
class Family:
    """What is known of a family without one of its checkpoints.

    Attributes:
        model_type: that of the configuration.
        rules: `own file`, here or in an installed package; `default`, the rules for every class of transformers; or
            `none`: it cannot be trained.
        reads: kinds of media that its processor takes, text aside; None when only a checkpoint can tell.
        writes: kinds of media that its checkpoints have codes for; others can be given some.
        layouts: those that the model class can compute; None when only a checkpoint can tell.
        runs: algorithms by the modality pair whose media it reads and writes.
        ids: the names that lmms-finetune gave to checkpoints, with their hub names.
        checkpoints: other hub names.
        note: why something is unknown or missing.
        writes_text: whether answers may hold text; without it and without media it scores and writes nothing.
    """

    model_type: str
    rules: str
    reads: list[str] | None
    writes: list[str]
    layouts: list[str] | None
    runs: Mapping[str, list[str]]
    ids: Mapping[str, str]
    checkpoints: list[str]
    note: str = ''
    writes_text: bool = True


def families() -> list[Family]:
    """Returns every family that has a file of its own or checkpoints in the table, by `model_type`.

    A family of a broken package is left out, and the log says so once.
    """
    listed = listed_families()
    pairs = runs()
    modules = usable(sorted({*listed, *family_names()}), family_module)
    return [_family(name, module, listed.get(name, {}), pairs) for name, module in modules.items()]


def families_as_json(found: list[Family]) -> str:
    """Returns the families as JSON, with the rule for all others beside them."""
    content = {'families': [asdict(family) for family in found], 'others': OTHERS}
    return json.dumps(content, indent=2, ensure_ascii=False)


def families_table(found: list[Family]) -> Group:
    """Returns the families, a line for each."""
    table = Table('family', 'reads', 'writes', 'rules', box=SIMPLE)
    for family in found:
        table.add_row(*(Text(cell) for cell in (family.model_type, _reads(family), _writes(family), family.rules)))
    return Group(table, Text(OTHERS), Text('align-anything models FAMILY tells its runs, layouts and checkpoints.'))


def family_table(family: Family) -> Table:
    """Returns all that is known of one family."""
    table = Table(show_header=False, box=SIMPLE, title=family.model_type)
    rows = {
        'reads': _reads(family),
        'writes': _writes(family),
        'layouts': 'unknown' if family.layouts is None else ', '.join(family.layouts),
        'rules': f'{family.rules}: {family.note}' if family.note else family.rules,
        **{pair: ', '.join(algorithms) for pair, algorithms in family.runs.items()},
        'checkpoints': '\n'.join(family.checkpoints),
        'ids of lmms-finetune': '\n'.join(f'{name}: {checkpoint}' for name, checkpoint in family.ids.items()),
    }
    for name, cell in rows.items():
        if cell:
            table.add_row(Text(name), Text(cell, overflow='fold'))
    return table


def find_family(name: str) -> Family:
    """Returns the family of this `model_type`, or of this id of lmms-finetune. Raises SettingsError for another."""
    found = {key: family for family in families() for key in (family.model_type, *family.ids)}
    if name not in found:
        raise SettingsError([f"no family or id is called '{name}'.{nearest(name, list(found))} {OTHERS}"])
    return found[name]


def _reads(family: Family) -> str:
    return 'unknown' if family.reads is None else ', '.join(['text', *family.reads])


def _writes(family: Family) -> str:
    return ', '.join([*(['text'] if family.writes_text else []), *family.writes])


def _family(
    model_type: str, module: ModuleType | None, listed: Mapping[str, Any], pairs: Mapping[str, list[str]]
) -> Family:
    names = {'ids': dict(listed.get('ids', {})), 'checkpoints': list(listed.get('checkpoints', []))}
    if 'not_served' in listed:
        return Family(model_type, NONE, None, [], None, {}, **names, note=listed['not_served'])
    config, note = _default_config(model_type)
    if config is None:
        if module is None:
            return Family(model_type, NONE, None, [], None, {}, **names, note=note)
        kinds, layouts, note = frozenset(module.SPEC.placeholders), list(module.SPEC.layouts), OWN_CODE
    else:
        reads = own_reads(model_type)
        kinds = _media_kinds(listed.get('checkpoint_type', model_type)) if reads is None else reads
        layouts, note = _layouts(FamilySpec if module is None else module.SPEC, config)
    writes, text = own_codes(model_type), writes_text(model_type)
    if own_head(model_type) is not None:
        able = _judging(pairs, kinds)
    else:
        able = {
            name: algorithms
            for name, algorithms in pairs.items()
            if not PAIRS[name].missing_from(kinds)
            and not PAIRS[name].unwritten_by(writes)
            and (text or not PAIRS[name].writes_text)
        }
    rules = DEFAULT if module is None else OWN
    return Family(model_type, rules, sorted(kinds), sorted(writes), layouts, able, **names, note=note, writes_text=text)


def _judging(pairs: Mapping[str, list[str]], kinds: Set[MediaKind]) -> dict[str, list[str]]:
    """The runs of a family that only scores media of these kinds, by texts."""
    able = {
        name: [algorithm for algorithm in algorithms if find_algorithm(algorithm).scores == 'responses']
        for name, algorithms in pairs.items()
        if PAIRS[name].writes and not PAIRS[name].reads and PAIRS[name].writes <= kinds
    }
    return {name: algorithms for name, algorithms in able.items() if algorithms}


def _default_config(model_type: str) -> tuple[Any, str]:
    """Returns the configuration with the defaults of transformers, or None and why there is none."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return None, 'transformers has no such class; the checkpoints bring code of their own'
    config = CONFIG_MAPPING[model_type]()
    text = config.get_text_config()
    # Some default configurations have the padding id of a larger vocabulary than their own.
    if text.pad_token_id is not None and text.pad_token_id >= text.vocab_size:
        text.pad_token_id = None
    if 'vocabulary_map' in vars(config):
        # Classes look into it, but only checkpoints have one.
        config.vocabulary_map = {}
    return config, ''


def _media_kinds(model_type: str) -> frozenset[str]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    # transformers' mapping of configurations to processors is lazy and has no default.
    kind = CONFIG_MAPPING[model_type]
    return structure.media_kinds(PROCESSOR_MAPPING[kind]) if kind in PROCESSOR_MAPPING else frozenset()


def _layouts(kind: type[FamilySpec], config: Any) -> tuple[list[str] | None, str]:
    # A whole FamilySpec needs the tokenizer and the processor of a checkpoint, layouts only the configuration.
    spec = kind.__new__(kind)
    spec.config = config
    try:
        return list(spec.layouts), ''
    except ImportError as error:
        return None, str(error).strip().split('\n')[0]
