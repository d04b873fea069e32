"""Byte-level BPE tokenizers, trained on the spot."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

CORPUS = (
    'What is in the image? Describe the picture.',
    'A photo of a red square on a blue background, with a green circle to the left of it.',
    'The quick brown fox jumps over the lazy dog.',
    'You are a helpful assistant. Answer the question in one word.',
    'Which digit is this? zero one two three four five six seven eight nine 0123456789',
    'user assistant system User: Assistant: USER: ASSISTANT: yes no true false',
    'How many cats are there? There are two white cats and one black dog on the right.',
)
CHATML: dict[str, Any] = {'pad': '<|endoftext|>', 'eos': '<|im_end|>', 'extra': ['<|im_start|>']}
CHATML_STOPS = ['<|im_end|>', '<|endoftext|>']
GEMMA: dict[str, Any] = {'pad': '<pad>', 'eos': '<eos>', 'bos': '<bos>'}
GEMMA_TURNS: dict[str, Any] = {**GEMMA, 'add_bos': True, 'extra': ['<start_of_turn>', '<end_of_turn>']}
GEMMA_STOPS = ['<eos>', '<end_of_turn>']
LLAMA2: dict[str, Any] = {'pad': '<pad>', 'eos': '</s>', 'bos': '<s>', 'add_bos': True}


@functools.lru_cache(maxsize=8)
def _trained(vocab: int, corpus: tuple[str, ...]) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator((corpus or CORPUS) * 2, trainer)
    return tokenizer.to_str()


def make_tokenizer(
    vocab: int,
    corpus: tuple[str, ...],
    *,
    pad: str,
    eos: str,
    bos: str | None = None,
    extra: Sequence[str] = (),
    named: Mapping[str, str] | None = None,
    add_bos: bool = False,
    chat_template: str | None = None,
) -> Any:
    """Returns a tokenizer that knows every byte.

    Args:
        vocab: number of pieces; corpus: texts to learn them from, empty for the built-in ones.
        pad, eos, bos: special tokens; `pad` may equal `eos`.
        extra: further special tokens.
        named: special tokens that processors look up as attributes, such as `image_token`.
        add_bos: put the BOS before every text, as Llama's tokenizers do.
    """
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    base = Tokenizer.from_str(_trained(vocab, corpus))
    special = dict.fromkeys([token for token in (bos, eos, pad) if token] + list(extra) + list((named or {}).values()))
    base.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if add_bos and bos:
        base.post_processor = TemplateProcessing(single=f'{bos} $A', special_tokens=[(bos, base.token_to_id(bos))])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base, pad_token=pad, bos_token=bos, eos_token=eos, extra_special_tokens=dict(named or {})
    )
    tokenizer.add_tokens(list(extra), special_tokens=True)
    tokenizer.chat_template = chat_template
    return tokenizer
