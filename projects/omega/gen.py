"""Answers a prompt with a trained checkpoint.

python gen.py --model output_checkpoints/experiment_1/slice_end --prompt "Caption the previous video." --video v.npy
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import yaml

from align_anything.core.errors import AlignAnythingError
from align_anything.core.types import MEDIA_KINDS, Conversation, Example
from align_anything.datasets.chat_template import BoundTemplate
from align_anything.datasets.conversation import bind_media
from align_anything.datasets.formatters.base import BaseFormatter, make_formatter
from align_anything.datasets.media import decode_conversations
from align_anything.datasets.sources import load_rows, source_folder
from align_anything.models.any_model import AnyModel
from align_anything.models.family import FamilySpec
from align_anything.models.pretrained_model import load_spec
from align_anything.rollouts.base import Sampling
from align_anything.rollouts.hf import HFRollouts

Options = Mapping[str, Mapping[str, Any]]


def answers(folder: str, spec: FamilySpec, prompts: Sequence[Conversation], sampling: Sampling) -> list[str]:
    """Returns what the model in `folder` answers to prompts, written as in training, media not decoded.

    Raises AlignAnythingError for a checkpoint or media that cannot be used.
    """
    examples = [Example(spec.encode_prompt(prompt), []) for prompt in decode_conversations(prompts)]
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    dtype = torch.bfloat16 if device == 'cuda' else torch.float32
    model = AnyModel.from_pretrained(folder, dtype=dtype).to(device)
    rollouts = HFRollouts(model, spec, dtype=dtype, batch_size=len(examples))
    return [
        ''.join(part['text'] for part in response.parts)
        for responses in rollouts.generate(examples, sampling)
        for response in responses
    ]


def of_rows(source: str, formatter: BaseFormatter, options: Options, number: int) -> list[tuple[Conversation, str]]:
    """Returns the prompts of the first rows of a source, and the answers that they have."""
    bound = BoundTemplate(formatter, dict.fromkeys(MEDIA_KINDS, str(source_folder(source) or '')), options)
    rows = load_rows(source, size=number)
    found = [bound.format_prompt_only_sample(rows[index]) for index in range(len(rows))]
    return [(prompt, str(meta.get('ground_truth', ''))) for prompt, meta in found]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the answer to a prompt, or those to the prompts of rows, each above the answer of its row."""
    parser = argparse.ArgumentParser(description='Answers a prompt with a trained checkpoint.')
    parser.add_argument('--model', required=True, help='the checkpoint, a folder such as slice_end')
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument('--prompt', help='{image} or <image> in it is where the image stands')
    asked.add_argument('--rows', help='takes prompts from here: a file, a folder or a hub name')
    for kind in MEDIA_KINDS:
        parser.add_argument(f'--{kind}', action='append', default=[], metavar='FILE', help=f'{kind}, or .npy of one')
    parser.add_argument('--template', default='Captioning', help='of --rows, as train_template')
    parser.add_argument('--template_kwargs', default='{}', help='of --rows, as train_template_kwargs')
    parser.add_argument('--number', type=int, default=3, help='of --rows')
    parser.add_argument('--max_new_tokens', type=int, default=300)
    parser.add_argument('--temperature', type=float, default=0.6, help='0 decodes greedily')
    parser.add_argument('--top_k', type=int, default=300)
    parser.add_argument('--seed', type=int, default=1234)
    given = parser.parse_args(argv)
    media = {kind: getattr(given, kind) for kind in MEDIA_KINDS if getattr(given, kind)}
    if given.rows and media:
        parser.error('rows bring their media themselves')
    names = ('max_new_tokens', 'temperature', 'top_k', 'seed')
    sampling = Sampling(**{name: getattr(given, name) for name in names})
    try:
        spec = load_spec(given.model, model_max_length=None)
        options = {kind: {'rate': spec.audio_rate} for kind in ('audio', 'video')}
        if given.rows:
            formatter = make_formatter(given.template, yaml.safe_load(given.template_kwargs))
            asked = of_rows(given.rows, formatter, options, given.number)
        else:
            prompt = given.prompt
            for kind in media:
                prompt = prompt.replace(f'{{{kind}}}', f'<{kind}>')
            turns = [{'role': 'user', 'content': prompt}]
            asked = [(bind_media(turns, media, options=options, needs_reply=False), '')]
        said = answers(given.model, spec, [prompt for prompt, _ in asked], sampling)
    except AlignAnythingError as error:
        parser.exit(2, f'{error}\n')
    for answer, (_, wanted) in zip(said, asked, strict=True):
        print(f'{answer}\n  in the row: {wanted}' if wanted else answer)


if __name__ == '__main__':
    main(sys.argv[1:])
