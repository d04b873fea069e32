"""Answers the prompts of a data file with a trained model, and writes what it answers: text, and media as files.

python scripts/generate.py output data.jsonl --out output/generated [--begin image]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from rows import template_of_source

from align_anything.cli.tokens import grids_of
from align_anything.core.errors import AlignAnythingError, SettingsError
from align_anything.core.files import atomic_write_text, trained_model_in, writable_folder
from align_anything.core.logging import get_logger
from align_anything.core.types import MEDIA_KINDS, CodedMedia, Conversation, Example, Response, Skipped
from align_anything.datasets.dataset import ExampleDataset
from align_anything.datasets.prompts import PromptTask
from align_anything.datasets.source_loading import load_sources
from align_anything.models.adapter import find_adapter, put_on
from align_anything.models.codecs.base import Codec
from align_anything.models.codes import CODES
from align_anything.models.family import FamilySpec
from align_anything.models.pretrained_model import load_model, load_spec
from align_anything.reporting.completions import COMPLETIONS_FILE
from align_anything.reporting.completions_page import text_of
from align_anything.reporting.media_files import MediaFiles
from align_anything.rollouts.base import Sampling
from align_anything.rollouts.decoded import DecodedRollouts
from align_anything.rollouts.grammar import Emission
from align_anything.rollouts.hf import HFRollouts
from align_anything.trainers.launch import USER_ERROR, quieten_libraries

logger = get_logger('any2any')


def main(argv: Sequence[str] | None = None) -> None:
    """Writes `completions.jsonl` and the media in it. Ends with code 2 where something is the user's to mend."""
    given = _parser().parse_args(argv)
    quieten_libraries()
    try:
        _check(given)
        spec, answers = generated(given)
        file = written(spec, answers, writable_folder(given.out, '--out'))
    except AlignAnythingError as error:
        logger.error('%s:\n%s', type(error).__name__, error)
        sys.exit(USER_ERROR)
    logger.info('%d answers: %s', len(answers), file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description='Answers the prompts of a data file, media among the answers.')
    parser.add_argument('model', type=Path, help='output folder of a run, or a checkpoint')
    parser.add_argument('data', help='hub name, file or folder, as dataset of a configuration')
    parser.add_argument('--out', type=Path, default=Path('output/generated'), help='folder to write to')
    parser.add_argument('--template', help='template of the data; by default the one that its first row tells')
    parser.add_argument('--template_kwargs', type=_options, default={}, help='its options: {prompt: caption}')
    parser.add_argument('--rows', type=int, default=8, help='the first so many rows')
    parser.add_argument('--max_new_tokens', type=int, default=512, help='longest answer in tokens, media included')
    parser.add_argument('--temperature', type=float, default=1.0, help='0 takes the most likely token each time')
    parser.add_argument('--begin', choices=MEDIA_KINDS, help='the kind that answers consist of; else the model decides')
    parser.add_argument('--size', nargs='*', default=[], help='grid in codes, such as image=16x16, where none is fixed')
    parser.add_argument('--seed', type=int, default=0, help='of the sampling')
    return parser


def _options(text: str) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load(text))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f'{text!r} should look like {{prompt: caption}}') from error


def _check(given: argparse.Namespace) -> None:
    least = {'rows': 1, 'max_new_tokens': 1, 'temperature': 0}
    problems = [f'--{name} must be at least {low}.' for name, low in least.items() if vars(given)[name] < low]
    if given.template_kwargs and not given.template:
        problems.append('--template_kwargs are options of --template; name that too.')
    if problems:
        raise SettingsError(problems)


def generated(given: argparse.Namespace) -> tuple[FamilySpec, list[tuple[Example, Response]]]:
    """Returns the rules of the model, and each usable prompt with its answer."""
    checkpoint = trained_model_in(given.model) or given.model
    spec, adapter = load_spec(checkpoint), find_adapter(checkpoint)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    codecs = {} if spec.codes is None else {kind: rules.open(device) for kind, rules in spec.codes.rules.items()}
    emit = _emission(given, spec)
    examples = _prompts(given, spec, codecs)
    dtype = torch.bfloat16 if device.type == 'cuda' else torch.float32
    model = load_model(checkpoint, spec.components, dtype=dtype)
    if adapter is not None:
        model = put_on(model, adapter)
    engine = DecodedRollouts(HFRollouts(model.to(device), spec, dtype=dtype, batch_size=len(examples)), codecs)
    sampling = Sampling(max_new_tokens=given.max_new_tokens, temperature=given.temperature, seed=given.seed, emit=emit)
    found = engine.generate(examples, sampling)
    return spec, [(example, response) for example, (response,) in zip(examples, found, strict=True)]


def _emission(given: argparse.Namespace, spec: FamilySpec) -> Emission | None:
    """What answers may hold: the kinds whose size the checkpoint or `--size` says, and audio, which ends by itself."""
    grids = grids_of(given.size)
    kinds = {} if spec.codes is None else spec.codes.kinds
    able = sorted(kind for kind, own in kinds.items() if kind == 'audio' or own.size or own.row_end or kind in grids)
    for kind in sorted({*grids, *filter(None, [given.begin])} - {*able}):
        advice = ' Give its --size.' if kind in kinds else ''
        raise SettingsError([f'{given.model} writes no {kind}; it writes {", ".join(["text", *able])}.{advice}'])
    for kind in sorted(kinds.keys() - {*able}):
        logger.warning('answers will hold no %s: say by --size %s=… how many codes one has.', kind, kind)
    return Emission({kind: grids.get(kind) for kind in able}, given.begin) if able else None


def _prompts(given: argparse.Namespace, spec: FamilySpec, codecs: Mapping[str, Codec]) -> list[Example]:
    name, options = (given.template, given.template_kwargs) if given.template else template_of_source(given.data)
    sources = load_sources(given.data, name, template_kwargs=options, size=given.rows)

    def encode(conversation: Conversation) -> Any:
        return spec.encode_prompt(_with_codes(conversation, spec, codecs))

    longest = spec.max_length - given.max_new_tokens
    task = PromptTask(encode, longest)
    options = {kind: {'rate': spec.audio_rate} for kind in ('audio', 'video')}
    dataset = ExampleDataset(sources, task, 'any_to_any', frozenset(MEDIA_KINDS), options)
    rows = [dataset[number] for number in range(len(dataset))]
    for row in rows:
        if isinstance(row, Skipped):
            logger.warning('left out %s: %s', row.source, row.reason)
    found = [row for row in rows if isinstance(row, Example)]
    if not found:
        raise SettingsError([f'{given.data}: none of the first {given.rows} rows can be used.'])
    return found


def _with_codes(conversation: Conversation, spec: FamilySpec, codecs: Mapping[str, Codec]) -> Conversation:
    """Returns the conversation with the codes beside the media that the model reads as such."""
    if spec.codes is None:
        return conversation
    coded = {
        id(medium): CodedMedia(kind, codecs[kind].encode([medium])[0], spec.codes.rules[kind].fingerprint)
        for kind, medium in spec.codes.missing([conversation])
    }

    def part_of(part: dict[str, Any]) -> dict[str, Any]:
        codes = coded.get(id(part.get(part['type'])))
        return part if codes is None else {**part, CODES: codes}

    return [{**message, 'content': [part_of(part) for part in message['content']]} for message in conversation]


def written(spec: FamilySpec, answers: Sequence[tuple[Example, Response]], folder: Path) -> Path:
    """Writes a record for each answer, and its media beside it; returns the file of the records."""
    files, records = MediaFiles(folder, None), []
    for number, (example, response) in enumerate(answers):
        record = {
            'source': example.source,
            'prompt': text_of(spec.decode(example.prompt)),
            'response': text_of(response.parts),
            'media': files.write(0, str(number), response.parts),
            'finished': response.finished,
        }
        records.append(json.dumps(record, ensure_ascii=False))
    atomic_write_text(folder / COMPLETIONS_FILE, ''.join(f'{record}\n' for record in records))
    return folder / COMPLETIONS_FILE


if __name__ == '__main__':
    main()
