"""Whether a tokenizer and the embedding of its model belong together."""

from __future__ import annotations

import sys
from typing import Any

from align_anything.core.errors import ModelError
from align_anything.core.types import MEDIA_KINDS

LISTED = 5


def check_vocabulary(text_config: Any, tokenizer: Any, further: int = 0) -> int:
    """Returns the number of token ids that a model has an embedding for: its vocabulary, and so many `further` rows.

    Raises ModelError when the tokenizer has tokens beyond them. Let pass are placeholders of media, which tokenizers of
    text models may share with larger models of their family (Gemma 3), and the token for what is unknown, which a
    tokenizer's class may add to a vocabulary of bytes that knows everything (Qwen2): no text of a chat holds them.
    """
    rows = text_config.to_dict().get('vocab_size')
    if rows is None:
        # Configurations of own code may call it otherwise; their models are read as they are.
        return sys.maxsize
    named = tokenizer.special_tokens_map
    silent = {str(named[f'{kind}_token']) for kind in (*MEDIA_KINDS, 'unk') if f'{kind}_token' in named}
    rows += further
    # Vocabularies may have gaps, so their length tells less than their numbers.
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    lost = sorted(beyond.keys() - silent, key=beyond.__getitem__)
    if lost:
        more = f' and {len(lost) - LISTED} more' if len(lost) > LISTED else ''
        raise ModelError(
            f'the tokenizer has {len(lost)} token(s) that the model has no embedding for ({", ".join(lost[:LISTED])}'
            f'{more}): its embedding has {rows} rows. Enlarge it once and save both: '
            'model.resize_token_embeddings(len(tokenizer)); model.save_pretrained(folder); '
            'tokenizer.save_pretrained(folder). Under LoRA, name the embedding in lora_cfgs.modules_to_save, so that '
            'the new rows are trained.'
        )
    return rows
