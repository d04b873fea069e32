"""Conversations and tiny families that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, GenerationConfig

from align_anything.core.types import Conversation, Example, Message
from align_anything.models.checkpoint import is_multimodal
from align_anything.models.composed.register import register
from align_anything.models.families import spec_for
from align_anything.models.family import FamilySpec

register()

TEXT = ('llama', 'qwen2', 'qwen3', 'qwen3_moe', 'opt', 'gemma3_text', 'gemma2', 'granite', 'mistral', 'phi3')
IMAGE = ('llava', 'llava_next', 'qwen2_vl', 'qwen2_5_vl', 'qwen3_vl', 'gemma3', 'idefics3', 'internvl')
# Families whose media have tests of their own, with videos and audio among them (tests/models/mixed.py).
WIDER = (
    'gemma3n',
    'gemma4',
    'llava_next_video',
    'llava_onevision',
    'llava_interleave',
    'idefics2',
    'smolvlm',
    'mllama',
    'paligemma',
    'qwen2_audio',
    'qwen2_5_omni_thinker',
    'qwen3_omni_moe_thinker',
    'composed',
    'janus',
)
# Without a chat template, so that nothing ends a turn; tests of adapters and of composing have it.
UNTAUGHT = ('gpt2',)
FAMILIES = TEXT + IMAGE
# Families whose pictures are codes in prompts too (tests/models/test_emitting_families.py).
CODED = ('emu3', 'chameleon')
# Families that write frames of codes (tests/models/test_csm.py).
FRAMED = ('csm',)
WITHOUT_FILE = ('gemma2', 'granite', 'mistral', 'phi3', 'idefics3', 'internvl')

# What stands between the generation prompt and the answer, and the token that ends it, as the templates have them.
NO_THOUGHT = '<think>\n\n</think>\n\n'
LEAD = {
    'llava': ' ',
    'llava_next': ' ',
    'llava_next_video': ' ',
    'mistral': ' ',
    'smolvlm': ' ',
    'qwen3': NO_THOUGHT,
    'janus': ' ',
    'emu3': ' ',
}
END = {
    'llama': '<|eot_id|>',
    'opt': '</s>',
    'gemma2': '<end_of_turn>',
    'gemma3_text': '<end_of_turn>',
    'gemma3': '<end_of_turn>',
    'granite': '<|end_of_text|>',
    'mistral': '</s>',
    'phi3': '<|end|>',
    'llava': '</s>',
    'llava_next': '</s>',
    'llava_next_video': '</s>',
    **dict.fromkeys(('idefics2', 'idefics3', 'smolvlm'), '<end_of_utterance>'),
    **dict.fromkeys(('composed', 'mllama'), '<|eot_id|>'),
    'gemma3n': '<end_of_turn>',
    'gemma4': '<turn|>',
    'janus': '<|end_of_sentence|>',
    'emu3': '<|extra_204|>',
    'chameleon': '</s>',
    'paligemma': '<eos>',
    **dict.fromkeys(('qwen2', 'qwen3', 'qwen3_moe', 'qwen2_vl', 'qwen2_5_vl', 'qwen3_vl', 'internvl'), '<|im_end|>'),
    **dict.fromkeys(('llava_onevision', 'llava_interleave', 'qwen2_audio'), '<|im_end|>'),
    **dict.fromkeys(('qwen2_5_omni_thinker', 'qwen3_omni_moe_thinker'), '<|im_end|>'),
}


def load(
    folder: Path, *, max_length: int = 2048, chat_template: str | None = None, pad_is_eos: bool = False
) -> FamilySpec:
    """Returns the spec of a tiny checkpoint without the loader of the library, which has tests of its own."""
    config = AutoConfig.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder) if is_multimodal(config) else None
    tokenizer = AutoTokenizer.from_pretrained(folder) if processor is None else processor.tokenizer
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    if chat_template is not None:
        (processor or tokenizer).chat_template = chat_template
    stops = GenerationConfig.from_pretrained(folder)
    return spec_for(config, tokenizer, processor, max_length=max_length, generation_config=stops)


def text(words: str) -> dict[str, str]:
    return {'type': 'text', 'text': words}


def picture(width: int, height: int, color: str = 'red') -> dict[str, Any]:
    return {'type': 'image', 'image': Image.new('RGB', (width, height), color)}


def user(*parts: dict[str, Any] | str) -> Message:
    return {'role': 'user', 'content': [text(part) if isinstance(part, str) else part for part in parts]}


def assistant(words: str) -> Message:
    return {'role': 'assistant', 'content': [text(words)]}


def single() -> Conversation:
    return [user('What is 1 + 1?'), assistant('It is two.')]


def multi_turn() -> Conversation:
    return [*single(), user('And 2 + 2?'), assistant('Four, I think.'), user('Sure?'), assistant('Yes!')]


def several_images() -> Conversation:
    return [user(picture(60, 40), picture(30, 90, 'blue'), 'What are these?'), assistant('Red and blue.')]


def later_image() -> Conversation:
    return [*single(), user(picture(90, 50, 'green'), 'What is this?'), assistant('Green.')]


def answers(conversation: Conversation) -> list[str]:
    return [message['content'][0]['text'] for message in conversation if message['role'] == 'assistant']


def learnt(family: str, replies: Sequence[str]) -> str:
    """The text that the labelled tokens of these replies must decode to."""
    return ''.join(LEAD.get(family, '') + reply + END[family] for reply in replies)


def ids_of(example: Example) -> Tensor:
    import torch

    return torch.cat([example.prompt.ids, example.responses[0].ids])


def labelled(spec: FamilySpec, example: Example) -> str:
    return ''.join(spec.tokenizer.decode(piece.ids[piece.weights > 0]) for piece in example.responses[0].sequences)
