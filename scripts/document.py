"""Writes the pages of docs/ that are made from code: `python -m scripts.document [--check]`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from align_anything.algorithms.evaluate import Evaluate
from align_anything.algorithms.generate import Generate
from align_anything.configs.aliases import ALIASES
from align_anything.configs.annotations import describe_type
from align_anything.configs.deepspeed_files import deepspeed_file_names, load_deepspeed_config
from align_anything.configs.generation import GenerationRunCfgs
from align_anything.configs.layers import TRAIN_FOLDER
from align_anything.configs.online import OnlineRunCfgs, PolicyRunCfgs
from align_anything.configs.schema import Cfgs, RunCfgs, groups_of
from align_anything.configs.yaml_text import parse_lines
from align_anything.serve.settings import Chat, Serve
from align_anything.trainers.pairs import PAIRS
from scripts.pages import reference_pages
from scripts.tables import code, listed, table

DOCS = Path(__file__).parents[1] / 'docs'

GENERATED = ('algorithms', 'pairs')
"""Folders of docs/ in which every page is made."""
_OPENING = """# Settings

<!-- Written by `python -m scripts.document` from align_anything/configs. Do not edit by hand. -->

Every run has the groups below. `python -m align_anything.trainers.<pair>.<algorithm> --help` lists the keys of one run,
the algorithm's own among them, with the value in force and where it comes from.

## Layers

Each layer goes over the one before it. Mappings are joined key by key, an empty mapping empties, all else replaces.

1. the schema: the defaults in the tables below;
2. `align_anything/configs/train/<algorithm>.yaml`;
3. the defaults of the pair in `align_anything/trainers/pairs.py`, for every algorithm that trains;
4. `align_anything/configs/train/<pair>/<algorithm>.yaml`, which holds differences only, where there are any;
5. each `--config FILE`, in the order of the command line;
6. the environment: `ALIGN_ANYTHING__GROUP__KEY=VALUE`, for instance `ALIGN_ANYTHING__TRAIN_CFGS__SEED=1`, and
   `ZERO_STAGE_FILE` for `train_cfgs.ds_cfgs`;
7. the command line.

## Writing keys and values

```bash
--learning_rate 1e-5                       # works while one group has the key
--train_cfgs.learning_rate 1e-5            # always works; also --train_cfgs:learning_rate and --learning-rate=1e-5
--lr_groups.vision_tower 1e-6              # one entry of a mapping
--train_template_kwargs.prompt question
--train_datasets a.jsonl b.jsonl           # several values after a key that takes a list; also '[a.jsonl, b.jsonl]'
--max_steps null                           # None means the same
```

Values are YAML, with `1e-5` a number and `no` a word. Keys that take text take it as it stands. An unknown key, a value
of the wrong type, a repeated key, a stray or an empty value stops the run before a model loads. All such problems are
reported at once, each with the place it came from.

The resolved settings are saved in the output folder. The file works as `--config` again; entries whose name contains
`token`, `key`, `secret` or `password` and credentials in URLs are left out of it.
"""


def render_document() -> str:
    """Returns the page."""
    sections = [_OPENING]
    for group, model in groups_of(RunCfgs).items():
        sections.append(f'## {group}\n\n{model.__doc__}\n\n{_fields(model)}')
    common = groups_of(RunCfgs)
    for group, model in groups_of(PolicyRunCfgs).items():
        below = common.get(group, Cfgs)
        if model is not below:
            sections.append(f'## {group} of online algorithms\n\n{model.__doc__}\n\n{_fields(model, below)}')
    online = groups_of(OnlineRunCfgs)
    for group, model in groups_of(GenerationRunCfgs).items():
        if model is not online[group]:
            sections.append(f'## {group} of generate\n\n{model.__doc__}\n\n{_fields(model, online[group])}')
    sections.append(f'## train_cfgs of generate\n\n{Generate.__doc__}\n\n{_fields(Generate)}')
    for own in (Evaluate, Serve, Chat):
        sections.append(f'## train_cfgs of {own.name}\n\n{own.__doc__}\n\n{_fields(own)}')
    older = [(f'`{name}`', f'`{alias.group}.{alias.key}`', f'{alias.meaning}.') for name, alias in ALIASES.items()]
    sections.append(f'## Other names\n\n{table(("name", "here", "meaning"), older)}')
    sections.append(_pairs())
    sections.append(_shipped_settings())
    sections.append(_deepspeed_files())
    return '\n'.join(sections)


def pages() -> dict[Path, str]:
    """Returns every page that is made from code, by its file."""
    found = {'configuration.md': render_document(), **reference_pages()}
    return {DOCS / name: text for name, text in found.items()}


def main(arguments: Sequence[str]) -> int:
    """Writes the pages. With `--check` compares only, and returns 1 when one is out of date, or is of nothing."""
    made = pages()
    kept = {path for name in GENERATED for path in (DOCS / name).glob('*.md')}
    if '--check' not in arguments:
        for path in kept - made.keys():
            path.unlink()
        for path, text in made.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding='utf-8')
        return 0
    stale = [path for path, text in made.items() if not path.is_file() or path.read_text(encoding='utf-8') != text]
    for path in sorted({*stale, *(kept - made.keys())}):
        sys.stderr.write(f'{path} is out of date. Run: python -m scripts.document\n')
    return int(bool(stale) or bool(kept - made.keys()))


def _fields(model: type[Cfgs], below: type[Cfgs] = Cfgs) -> str:
    rows = [
        (f'`{key}`', describe_type(field.annotation), code(field.default), field.description)
        for key, field in model.model_fields.items()
        if key not in below.model_fields or field.default != below.model_fields[key].default
    ]
    return table(('key', 'type', 'default', 'meaning'), rows)


def _pairs() -> str:
    rows = [
        (f'`{name}`', listed(pair.reads), listed(pair.writes), f'`{key}`', code(value))
        for name, pair in PAIRS.items()
        for key, value in pair.defaults.items()
    ]
    return f'## Defaults of the pairs\n\n{table(("pair", "reads", "writes", "key", "value"), rows)}'


def _shipped_settings() -> str:
    rows = [
        (f'`{path.relative_to(TRAIN_FOLDER)}`', f'`{".".join(parts)}`', code(value))
        for path in sorted(TRAIN_FOLDER.rglob('*.yaml'), key=lambda path: (len(path.parts), path))
        for parts, value, _ in parse_lines(path.read_text(encoding='utf-8'))
    ]
    return f'## Files that ship\n\n{table(("file", "key", "value"), rows)}'


def _deepspeed_files() -> str:
    rows = []
    for name in deepspeed_file_names():
        zero = load_deepspeed_config(name)['zero_optimization']
        offloaded = [part for part in ('optimizer', 'param') if f'offload_{part}' in zero]
        rows.append((f'`{name}`', str(zero['stage']), ' and '.join(offloaded) or 'nothing'))
    return (
        '## DeepSpeed files\n\n'
        'They hold the ZeRO stage, offload and communication sizes. Batch sizes, precision, optimizer, schedule and '
        'clipping come\nfrom `train_cfgs`; a file of your own may have those keys only as `"auto"`, and `bf16` and '
        '`fp16` switched off where\n`train_cfgs` has them off too. Stage and devices of offload must be in it.\n\n'
        + table(('file', 'ZeRO stage', 'moved to the CPU'), rows)
    )


if __name__ == '__main__':
    raise SystemExit(main(sys.argv[1:]))
