"""Datasets and chat templates by the paths of align-anything's documents: the same rows, tokens and scores as runs."""

from __future__ import annotations

import importlib
import json
import logging
import pickle
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from align_anything.configs.template import ChatTemplate
from align_anything.core.errors import DataError, ModelError
from align_anything.core.types import Skipped
from align_anything.models.pretrained_model import load_pretrained_models

DOCUMENT = Path(__file__).resolve().parents[2] / 'docs' / 'align_anything.md'
QUESTIONS = ('what is one and one', 'say hello', 'name a colour that is not red')
ANSWERS = ('two', 'hello to you and to all the others', 'blue')


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text('\n'.join(json.dumps(row) for row in rows))
    return str(path)


def alpaca(folder: Path) -> str:
    rows = [{'instruction': q, 'input': '', 'output': a} for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    return write(folder / 'alpaca.jsonl', rows)


def safe(folder: Path, **changes: Any) -> str:
    rows = [
        {'prompt': q, 'response_0': a, 'response_1': f'no {a} at all', 'better_response_id': number % 2}
        for number, (q, a) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
    ]
    return write(folder / 'safe.jsonl', [{**rows[0], **changes}, *rows[1:]])


def pictures(folder: Path) -> str:
    rng = np.random.default_rng(0)
    rows = []
    for number, question in enumerate(QUESTIONS):
        shape = (24 + 16 * number, 40, 3)
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(folder / f'{number}.png')
        answers = {f'response_{n}': f'{ANSWERS[number]} {n}' for n in (1, 2)}
        rows.append({'question': question, 'image': f'{number}.png', **answers, 'overall_response': 1 + number % 2,
                     'prompt': question, 'response': ANSWERS[number]})  # fmt: skip
    return write(folder / 'pictures.jsonl', rows)


SOURCES = {'text_to_text': (alpaca, 'Alpaca'), 'text_image_to_text': (pictures, 'AA_TI2T')}
PREFERENCES = {'text_to_text': (safe, 'PKUSafeRLHF'), 'text_image_to_text': (pictures, 'AA_TI2T')}
MODELS = {'text_to_text': ('llama', 'opt', 'qwen2'), 'text_image_to_text': ('llava', 'qwen2_vl', 'gemma3')}
CASES = [(pair, family) for pair, families in MODELS.items() for family in families]


def loaded(checkpoint: Path, **options: Any) -> tuple[Any, Any, Any]:
    model, tokenizer, processor = load_pretrained_models(checkpoint, model_max_length=256, **options)
    return model.eval(), tokenizer, processor


def class_of(pair: str, file: str, name: str) -> Any:
    return getattr(importlib.import_module(f'align_anything.datasets.{pair}.{file}'), name)


def answer_scores(model: Any, example: Any, number: int, spec: Any) -> Tensor:
    """Log-probabilities of an answer's tokens, from the logits of its row alone."""
    response = example.responses[number]
    inputs = spec.generation_inputs([example.prompt])
    ids = torch.cat([example.prompt.ids, response.ids])[None]
    extra = {
        name: torch.cat([inputs[name], torch.zeros_like(response.ids)[None]], 1) for name in spec.token_tensor_names
    }
    with torch.no_grad():
        given = {**inputs, **extra, 'input_ids': ids, 'attention_mask': torch.ones_like(ids)}
        logits = model(**given).logits[0].double()
    scores = logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
    return scores[len(example.prompt) - 1 :]


@pytest.mark.parametrize(('pair', 'family'), CASES)
def test_a_batch_of_conversations_is_what_the_model_takes(
    tiny: Callable[..., Path], tmp_path: Path, pair: str, family: str
) -> None:
    model, tokenizer, processor = loaded(tiny(family))
    write_rows, template = SOURCES[pair]
    kind = class_of(pair, 'supervised', 'SupervisedDataset')
    source = write_rows(tmp_path)
    dataset = kind(path=source, template=ChatTemplate(processor or tokenizer, template), tokenizer=tokenizer,
                   processor=processor, size=3, split='train', data_files=None, optional_args=[])  # fmt: skip
    assert len(dataset) == 3 and len(pickle.loads(pickle.dumps(dataset))) == 3
    [batch] = DataLoader(dataset, batch_size=3, collate_fn=dataset.get_collator())
    with torch.no_grad():
        loss = model(**batch).loss.double()
    samples = [dataset[number] for number in range(3)]
    scores = torch.cat([answer_scores(model, sample.example, 0, dataset.spec) for sample in samples])
    torch.testing.assert_close(loss, -scores.mean(), atol=1e-5, rtol=1e-5)
    for sample, row, answer in zip(samples, batch['labels'], ANSWERS, strict=True):
        said = tokenizer.decode(row[row >= 0], skip_special_tokens=True)
        assert said.strip() == answer
        assert sample['input_ids'].shape == sample['labels'].shape


@pytest.mark.parametrize('side', ['left', 'right'])
@pytest.mark.parametrize(('pair', 'family'), CASES)
def test_a_batch_of_preferences_has_the_better_rows_first(
    tiny: Callable[..., Path], tmp_path: Path, pair: str, family: str, side: str
) -> None:
    model, tokenizer, processor = loaded(tiny(family), padding_side=side)
    write_rows, template = PREFERENCES[pair]
    kind = class_of(pair, 'preference', 'PreferenceDataset')
    dataset = kind(write_rows(tmp_path), template, tokenizer, processor)
    [batch] = DataLoader(dataset, batch_size=3, collate_fn=dataset.get_collator())
    lengths = batch.pop('meta_info')['response_lens']
    with torch.no_grad():
        logits = model(**batch).logits.double()
    samples = [dataset[number] for number in range(3)]
    expected = [(sample, number) for number in range(2) for sample in samples]
    assert len(lengths) == len(logits) == 6
    for row, (sample, number) in enumerate(expected):
        length, mask = lengths[row], batch['attention_mask'][row].bool()
        assert bool(mask[0]) is (side == 'right') or mask.all()
        ids, own = batch['input_ids'][row][mask], logits[row][mask]
        assert ids.tolist() == sample[('better_input_ids', 'worse_input_ids')[number]].tolist()
        scores = own[:-1].log_softmax(-1).gather(1, ids[1:, None])[-length:, 0]
        wanted = answer_scores(model, sample.example, number, dataset.spec)
        torch.testing.assert_close(scores, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(('pair', 'family'), CASES)
def test_a_batch_of_prompts_is_what_generate_takes(
    tiny: Callable[..., Path], tmp_path: Path, pair: str, family: str
) -> None:
    model, tokenizer, processor = loaded(tiny(family))
    write_rows, template = SOURCES[pair]
    kind = class_of(pair, 'prompt_only', 'PromptOnlyDataset')
    texts = ChatTemplate(processor or tokenizer, template)
    dataset = kind(write_rows(tmp_path), texts, tokenizer, processor)
    [batch] = DataLoader(dataset, batch_size=3, collate_fn=dataset.get_collator())
    assert batch['attention_mask'][:, -1].all() and not batch['attention_mask'].all()
    assert batch['input_ids'][0][batch['attention_mask'][0].bool()].tolist() == dataset[0]['input_ids'].tolist()
    made = model.generate(**batch, max_new_tokens=2, do_sample=False)
    assert made.shape[0] == 3 and made.shape[1] > batch['input_ids'].shape[1]


def test_answers_of_other_rows(tiny: Callable[..., Path], tmp_path: Path) -> None:
    _, tokenizer, _ = loaded(tiny('llama'))
    kind = class_of('text_to_text', 'supervised', 'UnmatchedSupervisedDataset')
    dataset = kind(safe(tmp_path), ChatTemplate(tokenizer, 'PKUSafeRLHF'), tokenizer)
    batch = dataset.get_collator()([dataset[number] for number in range(3)])
    assert batch['labels'] is None
    for row, length in enumerate(batch['meta_info']['response_lens']):
        ids = batch['input_ids'][row][batch['attention_mask'][row].bool()]
        assert ANSWERS[(row + 1) % 3] in tokenizer.decode(ids[-length:])
        assert QUESTIONS[row] in tokenizer.decode(ids[:-length])


def test_the_safety_of_answers_goes_along(tiny: Callable[..., Path], tmp_path: Path) -> None:
    _, tokenizer, _ = loaded(tiny('llama'))
    rows = [
        {'prompt': q, 'response_0': a, 'response_1': f'no {a}', 'better_response_id': 0, 'safer_response_id': 1,
         'is_response_0_safe': number == 0, 'is_response_1_safe': True}
        for number, (q, a) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
    ]  # fmt: skip
    kind = class_of('text_to_text', 'preference', 'SafetyPreferenceDataset')
    dataset = kind(write(tmp_path / 'safety.jsonl', rows), 'PKUSafeRLHF_Cost', tokenizer)
    batch = dataset.get_collator()([dataset[number] for number in range(3)])
    assert batch['meta_info']['is_better_safe'] == [True, False, False]
    assert batch['meta_info']['is_worse_safe'] == [True] * 3 and len(batch['meta_info']['response_lens']) == 6
    with pytest.raises(DataError, match='does not tell is_better_safe'):
        kind(safe(tmp_path), 'PKUSafeRLHF', tokenizer)


@pytest.mark.parametrize('family', ['llama', 'qwen2', 'opt'])
def test_texts_are_what_the_datasets_tokenise(tiny: Callable[..., Path], tmp_path: Path, family: str) -> None:
    _, tokenizer, _ = loaded(tiny(family))
    template = ChatTemplate(formatter=tokenizer, template='PKUSafeRLHF', custom_formatter=None)
    source = safe(tmp_path)
    rows = [json.loads(line) for line in Path(source).read_text().splitlines()]
    pairs = class_of('text_to_text', 'preference', 'PreferenceDataset')(source, template, tokenizer)
    prompts = class_of('text_to_text', 'prompt_only', 'PromptOnlyDataset')(source, template, tokenizer)
    better, worse, _ = template.format_preference_sample(rows[1])
    as_written = {'clean_up_tokenization_spaces': False}
    begin = tokenizer.bos_token or ''
    for text, ids in ((better, pairs[1]['better_input_ids']), (worse, pairs[1]['worse_input_ids'])):
        assert tokenizer.decode(ids, **as_written).removeprefix(begin) == text.removeprefix(begin)
    prompt, _ = template.format_prompt_only_sample(rows[1])
    assert tokenizer.decode(prompts[1]['input_ids'], **as_written).removeprefix(begin) == prompt.removeprefix(begin)
    asked, whole, _ = template.format_supervised_sample(rows[1])
    assert asked == prompt and whole == better
    other, answered, _ = template.format_unmatched_supervised_sample(rows[0], rows[1])
    assert QUESTIONS[0] in other and answered.startswith(other) and 'no hello' in answered.removeprefix(other)
    assert QUESTIONS[0] in template.format_chat_sample([{'role': 'user', 'content': QUESTIONS[0]}])
    assert template.check_validation(rows[0]) and not template.check_equal(rows[0])


def test_texts_with_pictures_keep_them_in_meta(tiny: Callable[..., Path]) -> None:
    _, _, processor = loaded(tiny('llava'))
    picture = Image.new('RGB', (8, 8))
    row = {'prompt': QUESTIONS[0], 'response': ANSWERS[0], 'image': picture}
    prompt, whole, meta = ChatTemplate(processor, 'AA_TI2T').format_supervised_sample(row)
    assert '<image>' in prompt and whole.startswith(prompt) and ANSWERS[0] in whole and meta['image'] is not None


def test_rows_that_cannot_be_used_are_left_out_and_told(
    tiny: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, tokenizer, _ = loaded(tiny('llama'))
    kind = class_of('text_to_text', 'preference', 'PreferenceDataset')
    with caplog.at_level(logging.WARNING):
        dataset = kind(safe(tmp_path, response_1=ANSWERS[0]), 'PKUSafeRLHF', tokenizer)
    assert len(dataset) == 2 and '1 of the 3 rows' in caplog.text and 'both answers are the same' in caplog.text
    with pytest.raises(DataError, match="has no column 'better_response_id'"):
        kind(alpaca(tmp_path), 'PKUSafeRLHF', tokenizer)
    with pytest.raises(DataError, match='none of the 1 rows of .* can be used:(?s:.*)rejects the row'):
        kind(safe(tmp_path, better_response_id=-1), 'PKUSafeRLHF', tokenizer, size=1)


def test_a_template_has_its_options(tiny: Callable[..., Path], tmp_path: Path) -> None:
    _, tokenizer, _ = loaded(tiny('llama'))
    template = ChatTemplate(tokenizer, 'Instruction', template_kwargs={'prompt': 'ask', 'response': 'say'})
    kind = class_of('text_to_text', 'supervised', 'SupervisedDataset')
    source = write(tmp_path / 'mapped.jsonl', [{'ask': QUESTIONS[0], 'say': ANSWERS[0]}])
    sample = kind(source, template, tokenizer)[0]
    assert QUESTIONS[0] in tokenizer.decode(sample['input_ids'])
    assert template.format_supervised_sample({'ask': QUESTIONS[0], 'say': ANSWERS[0]})[1].count(ANSWERS[0]) == 1


def test_rows_that_cannot_be_encoded_are_left_out_of_their_batch(
    tiny: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, tokenizer, _ = loaded(tiny('llama'))
    rows = [{'instruction': text, 'input': '', 'output': 'yes'} for text in ('short', 'long ' * 400)]
    kind = class_of('text_to_text', 'supervised', 'SupervisedDataset')
    dataset = kind(write(tmp_path / 'long.jsonl', rows), 'Alpaca', tokenizer)
    assert isinstance(dataset[1], Skipped)
    with caplog.at_level(logging.WARNING):
        batch = dataset.get_collator()([dataset[0], dataset[1]])
    assert len(batch['input_ids']) == 1 and '1 rows of a batch are left out' in caplog.text
    with pytest.raises(DataError, match='no row of this batch can be used'):
        dataset.get_collator()([dataset[1]])


def test_media_that_nobody_reads_and_media_that_the_model_takes_not(tiny: Callable[..., Path], tmp_path: Path) -> None:
    kind = class_of('text_image_to_text', 'supervised', 'SupervisedDataset')
    rows = [{'instruction': QUESTIONS[0], 'input': '', 'output': ANSWERS[0], 'photo': '0.png'}] * 2
    source = pictures(tmp_path)
    _, tokenizer, processor = loaded(tiny('llava'))
    with pytest.raises(DataError, match="column 'photo', which nobody reads"):
        kind(write(tmp_path / 'photos.jsonl', rows), 'Alpaca', tokenizer, processor)
    _, tokenizer, _ = loaded(tiny('llama'))
    with pytest.raises(DataError, match='holds image media'):
        kind(source, 'AA_TI2T', tokenizer)


def test_a_weight_that_labels_cannot_say(tiny: Callable[..., Path], tmp_path: Path) -> None:
    _, tokenizer, _ = loaded(tiny('llama'))
    turns = [{'role': 'user', 'content': 'x'}, {'role': 'assistant', 'content': 'y', 'weight': 0.5}]
    kind = class_of('text_to_text', 'supervised', 'SupervisedDataset')
    dataset = kind(write(tmp_path / 'weighted.jsonl', [{'messages': turns}]), 'Messages', tokenizer)
    assert 'weight' in dataset[0].reason


def test_the_loop_of_the_document_runs(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [block] = re.findall(r'```python\n(.*?)```', DOCUMENT.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path('checkpoint').symlink_to(tiny('llama'))
    alpaca(tmp_path)
    (tmp_path / 'loop.py').write_text(block)
    assert runpy.run_path(str(tmp_path / 'loop.py'))['loss'].requires_grad


def test_what_cannot_be_had_says_what_to_use_instead(tiny: Callable[..., Path], tmp_path: Path) -> None:
    _, tokenizer, _ = loaded(tiny('llama'))
    with pytest.raises(ModelError, match='chat_template='):
        ChatTemplate(tokenizer, 'Alpaca', custom_formatter=str)
    with pytest.raises(DataError, match="unknown template 'Alpaka'"):
        ChatTemplate(tokenizer, 'Alpaka')
    homeless = pickle.loads(pickle.dumps(tokenizer))
    homeless.name_or_path = ''
    with pytest.raises(ModelError, match='load_pretrained_models'):
        ChatTemplate(homeless, 'Alpaca')
