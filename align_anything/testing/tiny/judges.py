"""Tiny models that reward functions ask: of pictures or sounds and text, and those that write down speech."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers.processors import TemplateProcessing

from align_anything.core.errors import ModelError
from align_anything.core.registry import nearest
from align_anything.testing.tiny.encoders import ENCODERS, SHAPE, SQUARE, WAVE, WIDTH
from align_anything.testing.tiny.tokenizers import make_tokenizer

WORDS = 16
"""Tokens of the longest text that they read or write."""
VOCAB = 300
LETTERS = ('<pad>', '<s>', '</s>', '<unk>', '|', *"abcdefghijklmnopqrstuvwxyz'")


def _clip() -> tuple[Any, Any, Any]:
    tokenizer = _tokenizer()
    # What it makes of a text is read at the token that ends it.
    marks = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (tokenizer.bos_token, tokenizer.eos_token)]
    begin, end = (token for token, _ in marks)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f'{begin} $A {end}', special_tokens=marks)
    config = transformers.CLIPConfig(vision_config=SQUARE, text_config=_text(tokenizer), projection_dim=WIDTH)
    return transformers.CLIPModel, config, transformers.CLIPProcessor(ENCODERS['clip'][1](), tokenizer)


def _siglip() -> tuple[Any, Any, Any]:
    tokenizer = _tokenizer()
    text = {**_text(tokenizer), 'projection_size': WIDTH}
    config = transformers.SiglipConfig(vision_config=SQUARE, text_config=text)
    return transformers.SiglipModel, config, transformers.SiglipProcessor(ENCODERS['siglip'][1](), tokenizer)


def _clap(name: str = 'clap') -> tuple[Any, Any, Any]:
    tokenizer, (make_config, make_extractor) = _tokenizer(), ENCODERS[name]
    kind, config = make_config()
    # Its positions are counted from the number of the padding token.
    positions = tokenizer.pad_token_id + 1 + WORDS
    text = {**_text(tokenizer), 'max_position_embeddings': positions}
    config = transformers.ClapConfig(
        audio_config=config.audio_config.to_dict(), text_config=text, projection_dim=config.projection_dim
    )
    return kind, config, transformers.ClapProcessor(make_extractor(), tokenizer)


def _clap_fused() -> tuple[Any, Any, Any]:
    return _clap('clap_fused')


def _whisper() -> tuple[Any, Any, Any]:
    tokenizer, (make_config, make_extractor) = _tokenizer(), ENCODERS['whisper']
    _, config = make_config()
    for name, value in {**_ids(tokenizer), 'decoder_start_token_id': tokenizer.bos_token_id}.items():
        setattr(config, name, value)
    config.vocab_size, config.max_target_positions = len(tokenizer), WORDS
    processor = transformers.WhisperProcessor(make_extractor(), tokenizer)
    return transformers.WhisperForConditionalGeneration, config, processor


def _wav2vec2() -> tuple[Any, Any, Any]:
    with tempfile.TemporaryDirectory(prefix='letters-') as folder:
        file = Path(folder) / 'vocab.json'
        file.write_text(json.dumps({letter: number for number, letter in enumerate(LETTERS)}))
        tokenizer = transformers.Wav2Vec2CTCTokenizer(str(file))
    config = transformers.Wav2Vec2Config(**WAVE, vocab_size=len(LETTERS), pad_token_id=0)
    return transformers.Wav2Vec2ForCTC, config, transformers.Wav2Vec2Processor(ENCODERS['wav2vec2'][1](), tokenizer)


def _tokenizer() -> Any:
    tokenizer = make_tokenizer(VOCAB, (), pad='<pad>', eos='</s>', bos='<s>')
    tokenizer.model_max_length = WORDS
    return tokenizer


def _ids(tokenizer: Any) -> dict[str, int]:
    return {
        'pad_token_id': tokenizer.pad_token_id,
        'bos_token_id': tokenizer.bos_token_id,
        'eos_token_id': tokenizer.eos_token_id,
    }


def _text(tokenizer: Any) -> dict[str, Any]:
    return {**SHAPE, **_ids(tokenizer), 'vocab_size': len(tokenizer), 'max_position_embeddings': WORDS}


JUDGES = {
    'clip': _clip,
    'siglip': _siglip,
    'clap': _clap,
    'clap_fused': _clap_fused,
    'whisper': _whisper,
    'wav2vec2': _wav2vec2,
}
"""The class, the configuration and the processor of each."""


def build_judge(name: str, out: str | Path, seed: int = 0) -> Path:
    """Writes a tiny model with its processor into `out` and returns that folder. Raises ModelError for no such one."""
    if name not in JUDGES:
        raise ModelError(f"no tiny judge '{name}'.{nearest(name, list(JUDGES))} Known: {', '.join(JUDGES)}.")
    kind, config, processor = JUDGES[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
    if name == 'whisper':
        # Without training it would write its first token again and again.
        model.generation_config.suppress_tokens = [config.bos_token_id, config.pad_token_id]
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return Path(out)
