"""Makes a composed checkpoint out of one that OMEGA's own trainer wrote (meta_model_0.pt).

python convert_ckpt.py --ckpt meta_model_0.pt --language_model meta-llama/Meta-Llama-3-8B-Instruct --out output/omega
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig

from align_anything.configs.compose import read_compose
from align_anything.core.errors import AlignAnythingError, ModelError
from align_anything.core.files import new_folder
from align_anything.core.types import MEDIA_KINDS
from align_anything.models.composed.compose import compose

PROJECTOR = 'tok_embeddings.proj_to_llama.'
UNUSED = ('output.proj_from_llama.', 'rope.freqs')
"""A head for pictures that nothing trained, and positions that are computed."""
NAMES = {
    'tok_embeddings': 'model.language_model.embed_tokens',
    'norm': 'model.language_model.norm',
    'output': 'lm_head',
    'attention.wq': 'self_attn.q_proj',
    'attention.wk': 'self_attn.k_proj',
    'attention.wv': 'self_attn.v_proj',
    'attention.wo': 'self_attn.o_proj',
    'attention_norm': 'input_layernorm',
    'ffn_norm': 'post_attention_layernorm',
    'feed_forward.w1': 'mlp.gate_proj',
    'feed_forward.w2': 'mlp.down_proj',
    'feed_forward.w3': 'mlp.up_proj',
}
"""Modules in the names of Meta, those of layers without their number, and of a composed model."""
FIRST_SPECIAL, FIRST_TAG = '<|begin_of_text|>', 9
"""OMEGA's tokenizer puts its tags behind nine of the special tokens, so that what ends a turn comes behind them."""


def tags(kind: str) -> tuple[str, str]:
    """Returns the tokens around a medium."""
    return f'<|start_{kind}|>', f'<|end_{kind}|>'


MOVED = (*(tag for kind in ('image', 'video', 'audio') for tag in tags(kind)), '<|eot_id|>')


def converted(state: Mapping[str, Tensor], config: PreTrainedConfig, rows: Mapping[str, int]) -> dict[str, Tensor]:
    """Returns the weights under the names of a composed model, without rows for tokens that are new there.

    `rows` says which row each token of `MOVED` has in the composed model. Raises ModelError for unknown names.
    """
    text, found = config.text_config, {}
    heads = {'attention.wq': text.num_attention_heads, 'attention.wk': text.num_key_value_heads}
    for name, tensor in state.items():
        if name.startswith(UNUSED):
            continue
        if name.startswith(PROJECTOR):
            # One projector read the vectors of every kind.
            for kind in config.media:
                found[f'model.multi_modal_projector.{kind}.layers.{name.removeprefix(PROJECTOR)}'] = tensor.clone()
            continue
        parsed = re.fullmatch(r'(?:layers\.(\d+)\.)?(.+)\.weight', name)
        layer, module = parsed.groups() if parsed else (None, '')
        if module not in NAMES:
            raise ModelError(f'the checkpoint has the weight {name}, which is none of a Llama that OMEGA trained.')
        if module in heads:
            # Meta's rotary positions turn neighbouring pairs of values, those of transformers the two halves.
            pairs = tensor.view(heads[module], -1, 2, tensor.shape[-1])
            tensor = pairs.transpose(1, 2).reshape(tensor.shape)
        start = '' if layer is None else f'model.language_model.layers.{layer}.'
        found[f'{start}{NAMES[module]}.weight'] = tensor
    first = rows[FIRST_SPECIAL] + FIRST_TAG
    for name in ('model.language_model.embed_tokens.weight', 'lm_head.weight'):
        theirs = found[name]
        if len(theirs) < first + len(MOVED):
            raise ModelError(f'the checkpoint has {len(theirs)} tokens, too few for a Llama 3 with the tags of OMEGA.')
        # Placeholders are new there, and begin as compose begins them.
        longer = theirs.float().mean(0).to(theirs.dtype).repeat(text.vocab_size, 1)
        longer[: len(theirs)] = theirs
        for number, token in enumerate(MOVED):
            if token in rows:
                longer[rows[token]] = theirs[first + number]
        found[name] = longer
    return found


def convert(ckpt: Path, language_model: str, kinds: Sequence[str], out: Path) -> None:
    """Writes the composed checkpoint to the new folder `out`. Raises ModelError where `ckpt` is not OMEGA's."""
    try:
        state = torch.load(ckpt, map_location='cpu', weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f'{ckpt} cannot be read as weights: {error}') from error
    missing = [name for name in (f'{PROJECTOR}0.weight', f'{PROJECTOR}3.weight', 'norm.weight') if name not in state]
    if missing:
        raise ModelError(f"{ckpt} has no {missing[0]}, so OMEGA's trainer did not write it (meta_model_<epoch>.pt).")
    dim, size = state[f'{PROJECTOR}0.weight'].shape[1], state['norm.weight'].shape[0]
    vectors = {
        'precomputed_dim': dim,
        'projector': 'expand',
        'num_tokens': state[f'{PROJECTOR}3.weight'].shape[0] // size,
    }
    media = {kind: {**vectors, 'start_token': tags(kind)[0], 'end_token': tags(kind)[1]} for kind in kinds}
    with new_folder(out) as folder, tempfile.TemporaryDirectory(dir=folder.parent) as name:
        draft = compose(read_compose({'language_model': language_model, **media}, 'kinds'), Path(name) / 'composed')
        model = AutoModelForImageTextToText.from_pretrained(draft, dtype='auto')
        processor = AutoProcessor.from_pretrained(draft)
        vocabulary = processor.tokenizer.get_vocab()
        if FIRST_SPECIAL not in vocabulary or '<|eot_id|>' not in vocabulary:
            raise ModelError(f'{language_model} is no Llama 3: it has no {FIRST_SPECIAL} or no <|eot_id|>.')
        rows = {token: vocabulary[token] for token in (FIRST_SPECIAL, *MOVED) if token in vocabulary}
        try:
            model.load_state_dict(converted(state, model.config, rows))
        except RuntimeError as error:
            raise ModelError(f'{ckpt} does not fit {language_model}: {error}') from error
        model.to(state['norm.weight'].dtype).save_pretrained(folder)
        processor.save_pretrained(folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Converts the checkpoint that the options name."""
    parser = argparse.ArgumentParser(description="Converts a checkpoint of OMEGA's own trainer.")
    parser.add_argument('--ckpt', type=Path, required=True, help='meta_model_<epoch>.pt, with its LoRA merged')
    parser.add_argument('--language_model', required=True, help='the Llama 3 it was trained from, for its tokenizer')
    parser.add_argument('--kinds', nargs='+', choices=MEDIA_KINDS, default=list(MEDIA_KINDS), help='what it shall read')
    parser.add_argument('--out', type=Path, required=True, help='folder to make')
    given = parser.parse_args(argv)
    try:
        convert(given.ckpt, given.language_model, given.kinds, given.out)
    except AlignAnythingError as error:
        parser.exit(2, f'{error}\n')
    print(f'composed model: {given.out}')


if __name__ == '__main__':
    main(sys.argv[1:])
