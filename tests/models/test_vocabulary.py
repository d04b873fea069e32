"""A tokenizer with more tokens than its model has embeddings for is refused before any weight is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from align_anything.core.errors import ModelError, SampleError
from align_anything.models.pretrained_model import load_spec
from tests.models.samples import assistant, user

Tiny = Callable[[str], Path]


def enlarged(tiny: Tiny, tmp_path: Path, family: str, tokens: list[str]) -> Path:
    """A checkpoint whose tokenizer got tokens that its model knows nothing of."""
    folder = shutil.copytree(tiny(family), tmp_path / family)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / 'config.json').read_text())
    rows = config.get('text_config', config)
    filling = [f'<filling{number}>' for number in range(len(tokenizer), rows['vocab_size'])]
    tokenizer.add_tokens([*filling, *tokens], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize('family', ['qwen2', 'llama'])
def test_tokens_without_an_embedding_are_refused_by_name(tiny: Tiny, tmp_path: Path, family: str) -> None:
    folder = enlarged(tiny, tmp_path, family, ['<tool>', '</tool>'])
    with pytest.raises(
        ModelError, match=r'2 token\(s\) that the model has no embedding for \(<tool>, </tool>\)'
    ) as caught:
        load_spec(folder)
    assert 'resize_token_embeddings' in str(caught.value) and 'modules_to_save' in str(caught.value)


def test_what_the_error_says_to_do_helps(tiny: Tiny, tmp_path: Path) -> None:
    folder = enlarged(tiny, tmp_path, 'qwen2', ['<tool>'])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    spec = load_spec(folder)
    example = spec.encode([user('Hi'), assistant('<tool>')])
    assert tokenizer.convert_tokens_to_ids('<tool>') in example.responses[0].ids.tolist()


def test_placeholders_of_media_that_a_text_model_never_sees_are_let_pass(tiny: Tiny, tmp_path: Path) -> None:
    """Gemma 3 of one billion has one token more than embeddings, that of an image; a text with it costs its row."""
    folder = enlarged(tiny, tmp_path, 'qwen2', ['<soft_image>'])
    settings = json.loads((folder / 'tokenizer_config.json').read_text())
    settings['image_token'] = '<soft_image>'
    settings['extra_special_tokens'] = {'image_token': '<soft_image>'}
    (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
    spec = load_spec(folder)
    assert spec.encode([user('Hi'), assistant('Yes.')]).responses
    with pytest.raises(SampleError, match="token '<soft_image>', for which the model has no embedding"):
        spec.encode([user('Hi'), assistant('<soft_image>')])
