"""Exported reward models score alike in classifiers of transformers, in our own loader and before they were saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoProcessor, AutoTokenizer

from align_anything.core.types import Conversation
from align_anything.models.any_model import AnyModelForScore
from align_anything.models.export import export_model
from align_anything.models.family import FamilySpec
from align_anything.models.pretrained_model import load_model, load_spec
from align_anything.policies.score import ScorePolicy
from align_anything.policies.token.collator import TokenCollator
from tests.models.common import stir
from tests.models.samples import END, multi_turn, several_images, single

Tiny = Callable[..., Path]
# Of the families here with images, transformers has such a class for Gemma 3 alone.
CLASSIFIERS = {'qwen2': 'Qwen2', 'opt': 'OPT', 'gemma3_text': 'Gemma3Text', 'gemma3': 'Gemma3'}


def rows(family: str) -> list[Conversation]:
    return [several_images(), single()] if family == 'gemma3' else [multi_turn(), single()]


def exported(family: str, tiny: Tiny, out: Path, **options: Any) -> tuple[FamilySpec, Tensor]:
    """Writes a reward model with weights of its own to `out`; returns its spec and what it says of the rows, `(2,)`."""
    spec = load_spec(tiny(family))
    model = load_model(tiny(family), spec.components, is_reward_model=True)
    stir(model)
    ends = {'end_of_turn_id': spec.renderer.end_of_turn_id, 'pad_token_id': spec.pad_token_id, **options}
    export_model(model, None, out, tokenizer=spec.tokenizer, processor=spec.processor, **ends)
    return spec, scores(model, spec, family)


@torch.no_grad()
def scores(model: nn.Module, spec: FamilySpec, family: str) -> Tensor:
    collate = TokenCollator(spec, 'padded')
    batch = collate([spec.encode(conversation) for conversation in rows(family)])
    return ScorePolicy(model.eval(), collate, dtype=torch.float32)(batch).values


def in_words(conversation: Conversation) -> Conversation:
    """With texts for content, which is what templates of text models take."""
    return [{**message, 'content': message['content'][0]['text']} for message in conversation]


def plain_inputs(folder: Path, family: str, conversations: list[Conversation]) -> dict[str, Any]:
    """What a user makes of conversations with the files in the folder alone, as the model's card tells."""
    multimodal = family == 'gemma3'
    reader = (AutoProcessor if multimodal else AutoTokenizer).from_pretrained(folder)
    texts = [
        reader.apply_chat_template(conversation if multimodal else in_words(conversation), tokenize=False)
        for conversation in conversations
    ]
    texts = [text[: text.rindex(END[family]) + len(END[family])] for text in texts]
    pictures = [
        [part['image'] for message in conversation for part in message['content'] if part['type'] == 'image']
        for conversation in conversations
    ]
    media = {'images': pictures} if any(pictures) else {}
    return reader(text=texts, padding=len(texts) > 1, add_special_tokens=False, return_tensors='pt', **media)


@pytest.mark.parametrize('family', CLASSIFIERS)
def test_a_classifier_of_transformers_scores_as_the_live_model(family: str, tiny: Tiny, tmp_path: Path) -> None:
    spec, expected = exported(family, tiny, tmp_path)
    assert float(expected.diff().abs()) > 1e-3
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(classifier).__name__ == f'{CLASSIFIERS[family]}ForSequenceClassification'
    with torch.no_grad():
        found = classifier(**plain_inputs(tmp_path, family, rows(family))).logits
    torch.testing.assert_close(found, expected[:, None], atol=2e-5, rtol=1e-4)
    again = AnyModelForScore.from_pretrained(tmp_path)
    torch.testing.assert_close(scores(again, load_spec(tmp_path), family), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize('family', CLASSIFIERS)
def test_where_padding_ends_answers_a_classifier_takes_one_text_at_a_time(
    family: str, tiny: Tiny, tmp_path: Path
) -> None:
    spec, expected = exported(family, tiny, tmp_path, pad_token_id=load_spec(tiny(family)).renderer.end_of_turn_id)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        for conversation, value in zip(rows(family), expected, strict=True):
            found = classifier(**plain_inputs(tmp_path, family, [conversation])).logits
            torch.testing.assert_close(found[0, 0], value, atol=2e-5, rtol=1e-4)
        with pytest.raises(ValueError, match='batch sizes > 1'):
            classifier(**plain_inputs(tmp_path, family, rows(family)))
