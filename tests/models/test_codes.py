"""Codes are ids: media written into answers and read back, by rules that a checkpoint or a run declares."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from align_anything.core.errors import ModelError, SampleError
from align_anything.core.store import TensorStore
from align_anything.core.types import CodedMedia, Conversation, Embedding, Message
from align_anything.models.codes import CODES, KindOfCodes, MediaCodes
from align_anything.models.family import FamilySpec
from align_anything.testing.emitting import digits, melody
from tests.models.samples import assistant, load, user

Emitting = Callable[..., Path]
PICTURE = KindOfCodes('image', (8,), (20,), opening=(1, 2), closing=(3,), size=(2, 3))
ROWS = KindOfCodes('image', (8,), (20,), opening=(1,), closing=(3, 4), row_end=5)
SOUND = KindOfCodes('audio', (6, 4), (30, 36), opening=(6,), closing=(7,))


class Rules:
    """Stands for a codec."""

    def __init__(self, fingerprint: str = 'own') -> None:
        self.fingerprint = fingerprint
        self.folder = Path('codec')


CODED = MediaCodes({'image': PICTURE, 'audio': SOUND}, {'image': Rules(), 'audio': Rules()})


def drawn(medium: Any, kind: str = 'image', **more: Any) -> Message:
    return {'role': 'assistant', 'content': [{'type': kind, kind: medium, **more}]}


def asked(medium: Any, kind: str = 'image') -> Conversation:
    return [user('draw the digit two'), drawn(medium, kind)]


@pytest.fixture
def drawing(emitting: Emitting) -> FamilySpec:
    return load(emitting('drawing'))


@pytest.mark.parametrize(
    ('kind', 'grid'),
    [(PICTURE, (2, 3)), (ROWS, (2, 3)), (ROWS, (4, 1)), (SOUND, (1,)), (SOUND, (5,))],
)
def test_what_is_written_is_read_again(kind: KindOfCodes, grid: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    codes = torch.stack([torch.randint(size, grid) for size in kind.books])
    ids, free = kind.written(codes)
    assert len(ids) == len(free) == kind.length(grid)
    opening, closing = len(kind.opening), len(kind.closing)
    assert ids[:opening].tolist() == list(kind.opening) and ids[-closing:].tolist() == list(kind.closing)
    assert torch.equal(kind.read(ids[opening:-closing].tolist()), codes)
    chosen = [*kind.opening[:1], *(token for token in ids.tolist() if token >= 20), *kind.closing[: kind.open_ended]]
    assert ids[free].tolist() == chosen


@pytest.mark.parametrize(
    ('kind', 'ids'),
    [
        (PICTURE, [20, 21, 22, 23, 24]),  # one short
        (PICTURE, [20, 21, 22, 23, 24, 28]),  # no code
        (ROWS, [20, 21, 5, 22, 5]),  # rows of unequal length
        (ROWS, [20, 21, 5, 22, 23]),  # the last row has no end
        (SOUND, [30, 36, 31]),  # half a frame
        (SOUND, [36, 30]),  # books in the wrong order
        (SOUND, []),
        (KindOfCodes('image', (8,), (20,), opening=(1,), closing=(3,)), [20, 21, 22]),  # no square
        (KindOfCodes('video', (8,), (20,), opening=(1,), closing=(3,)), [20, 21, 22, 23]),  # frames of any size
    ],
)
def test_what_is_no_whole_medium_is_not_read(kind: KindOfCodes, ids: list[int]) -> None:
    assert kind.read(ids) is None


def test_a_response_is_taken_apart_into_text_and_media() -> None:
    picture, sound = torch.arange(6).view(1, 2, 3), torch.tensor([[0, 5], [3, 1]])
    ids = [9, *PICTURE.written(picture)[0].tolist(), 10, 11, *SOUND.written(sound)[0].tolist()]
    first, drawn_part, between, heard = CODED.parts(ids)
    assert (first, between) == ([9], [10, 11])
    assert torch.equal(drawn_part.codes, picture) and torch.equal(heard.codes, sound)
    assert (drawn_part.kind, heard.kind, heard.codec) == ('image', 'audio', 'own')
    for broken in (ids[:5], [*ids[:1], *ids[2:]], [*ids[:8], 25, *ids[8:]]):
        assert [token for part in CODED.parts(broken)[:1] for token in part] == broken[: len(CODED.parts(broken)[0])]
        assert not any(isinstance(part, CodedMedia) and part.kind == 'image' for part in CODED.parts(broken))


def test_every_id_is_in_the_sets_that_its_number_says() -> None:
    rows = 44
    sets = CODED.sets(rows)
    members = [{token for start, stop in spans for token in range(start, stop)} for spans in sets]
    numbers = CODED.set_of(torch.arange(rows)).tolist()
    assert all(token in members[number] for token, number in enumerate(numbers))
    assert members == [
        set(range(rows)) - set(range(20, 28)) - set(range(30, 40)),
        set(range(20, 28)),
        {*range(30, 36), 7},  # where a frame is whole, the sound may end
        set(range(36, 40)),
    ]


def test_an_answer_is_opening_codes_and_closing(drawing: FamilySpec) -> None:
    picture = digits()[0][0]
    example = drawing.encode(asked(picture))
    (response,) = example.responses
    own = drawing.codes.kinds['image']
    assert len(response) == own.length((4, 4)) + 1 and response.weights.all()
    assert drawing.codes.is_code(response.ids).sum() == 16 and not drawing.codes.is_code(example.prompt.ids).any()
    (part,) = drawing.decode(response)
    assert part['type'] == 'image' and part['image'].codes.shape == (1, 4, 4)
    assert not response.media and not response.media_counts


def test_text_stands_before_and_behind_a_medium(drawing: FamilySpec) -> None:
    turn = {
        'role': 'assistant',
        'content': [
            {'type': 'text', 'text': 'Here: '},
            {'type': 'image', 'image': digits()[0][0]},
            {'type': 'text', 'text': ' a two.'},
        ],
    }
    (response,) = drawing.encode([user('draw the digit two'), turn]).responses
    kinds = [part['type'] for part in drawing.decode(response)]
    texts = [part['text'] for part in drawing.decode(response) if part['type'] == 'text']
    assert kinds == ['text', 'image', 'text'] and [text.strip() for text in texts] == ['Here:', 'a two.']


def test_a_medium_in_the_prompt_is_read_as_codes(drawing: FamilySpec) -> None:
    picture = digits()[0][0]
    question = {
        'role': 'user',
        'content': [{'type': 'text', 'text': 'What is it? '}, {'type': 'image', 'image': picture}],
    }
    prompt = drawing.encode_prompt([question])
    assert drawing.codes.is_code(prompt.ids).sum() == 16
    example = drawing.encode([question, assistant('two')])
    assert torch.equal(example.prompt.ids, prompt.ids) and not drawing.codes.is_code(example.responses[0].ids).any()


def test_codes_of_the_row_are_taken_as_they_are(drawing: FamilySpec) -> None:
    codes = torch.arange(16).view(1, 4, 4)
    (response,) = drawing.encode(asked(CodedMedia('image', codes))).responses
    (part,) = drawing.decode(response)
    assert torch.equal(part['image'].codes, codes)
    beside = asked(digits()[0][0])
    beside[1]['content'][0][CODES] = CodedMedia('image', codes, drawing.codes.rules['image'].fingerprint)
    assert torch.equal(drawing.decode(drawing.encode(beside).responses[0])[0]['image'].codes, codes)


@pytest.mark.parametrize(
    ('codes', 'reason'),
    [
        (torch.arange(9).view(1, 3, 3), '3 x 3 codes, but the model writes 4 x 4'),
        (torch.full((1, 4, 4), 64), 'not from 0 to 63'),
        (torch.full((1, 4, 4), -1), 'not from 0 to 63'),
        (torch.zeros(2, 4, 4, dtype=torch.long), '2 books, but the model writes 1'),
        (torch.zeros(1, 0, 4, dtype=torch.long), 'not from 0 to 63, or there are none'),
    ],
)
def test_codes_that_do_not_fit_are_no_sample(drawing: FamilySpec, codes: torch.Tensor, reason: str) -> None:
    with pytest.raises(SampleError, match=reason):
        drawing.encode(asked(CodedMedia('image', codes)))


def test_codes_of_another_codec_are_no_sample(drawing: FamilySpec) -> None:
    with pytest.raises(SampleError, match='has an embedding as image, and this model reads and writes the codes'):
        drawing.encode(asked(Embedding(numpy.ones(4, numpy.float32))))
    with pytest.raises(SampleError, match='those of another codec'):
        drawing.encode(asked(CodedMedia('image', torch.zeros(1, 4, 4, dtype=torch.long), 'foreign')))


def test_tokens_of_codes_in_a_text_are_no_sample(drawing: FamilySpec) -> None:
    for text in ('<|image_0_3|>', 'a <|image_0_0|> b'):
        with pytest.raises(SampleError, match='tokens of codes'):
            drawing.encode([user('draw'), assistant(text)])
    with pytest.raises(SampleError, match='characters that stand for media'):
        drawing.encode([user('draw \ue0c00\ue0c1'), assistant('no')])


def test_a_medium_is_not_cut_by_truncation(drawing: FamilySpec) -> None:
    drawing.max_length = len(drawing.encode_prompt(asked(None)[:1])) + 10
    with pytest.raises(SampleError, match='media would be cut'):
        drawing.encode(asked(digits()[0][0]))


def test_what_closes_a_medium_is_not_cut_off_it(drawing: FamilySpec) -> None:
    row = asked(digits()[0][0])
    whole = drawing.encode(row)
    (end,) = (whole.responses[0].ids == drawing.codes.kinds['image'].closing[0]).nonzero().flatten().tolist()
    closed = len(whole.prompt) + end + 1
    drawing.max_length = closed
    assert drawing.encode(row).responses[0].truncated
    drawing.max_length = closed - 1
    with pytest.raises(SampleError, match=f'their last token is number {closed} of'):
        drawing.encode(row)


def test_a_medium_longer_than_the_model_writes_is_no_sample(emitting: Emitting) -> None:
    spec = load(emitting('singing'))
    spec.codes = replace(spec.codes, kinds={'audio': replace(spec.codes.kinds['audio'], longest=11)})
    with pytest.raises(SampleError, match='12 tokens, but the model writes 11 at most'):
        spec.encode(asked(melody([0, 1, 2]), 'audio'))


def test_answers_that_differ_in_a_picture_share_their_prompt(drawing: FamilySpec) -> None:
    one, other = digits()[0][:2]
    question = {'role': 'user', 'content': [{'type': 'image', 'image': digits()[0][5]}]}
    example = drawing.encode_group([[question, drawn(one)], [question, drawn(other)]])
    assert drawing.codes.is_code(example.prompt.ids).sum() == 16
    first, second = example.responses
    assert len(first) == len(second) and not torch.equal(first.ids, second.ids)


def test_what_has_no_choice_weighs_nothing_where_codes_are_compared(drawing: FamilySpec, emitting: Emitting) -> None:
    drawing.codes = replace(drawing.codes, restricted=True, weights={'image': 0.5})
    (response,) = drawing.encode(asked(digits()[0][0])).responses
    assert response.weights.tolist() == [0.5, *[0.5] * 16, 0.0, 1.0]
    drawing.codes = replace(drawing.codes, begins=True)
    (response,) = drawing.encode(asked(digits()[0][0])).responses
    assert response.weights.tolist() == [0.0, *[0.5] * 16, 0.0, 0.0]
    singing = load(emitting('singing'))
    singing.codes = replace(singing.codes, restricted=True)
    (response,) = singing.encode(asked(melody([0, 1, 2]), 'audio')).responses
    assert response.weights.tolist() == [1.0] * (1 + 12 + 1 + 1)  # the model chooses how long it sings


def test_stored_codes_are_read_and_a_missing_entry_is_no_sample(drawing: FamilySpec, tmp_path: Path) -> None:
    store = TensorStore(tmp_path, 'media_codes', '', 'model_cfgs.media_code_dir')
    drawing.codes = pickle.loads(pickle.dumps(drawing.codes.with_store(store)))
    one, other = digits()[0][:2]
    codes = drawing.codes.rules['image'].open().encode([one])[0]
    store.put(drawing.codes.key('image', one), {CODES: codes})
    (response,) = drawing.encode(asked(one)).responses
    assert torch.equal(drawing.decode(response)[0]['image'].codes, codes)
    with pytest.raises(SampleError, match='no codes of an image'):
        drawing.encode(asked(other))


def test_before_codes_are_made_lengths_are_right_and_media_differ(drawing: FamilySpec) -> None:
    one, other = (drawing.encode(asked(picture)).responses[0] for picture in digits()[0][:2])
    again = drawing.encode(asked(digits()[0][0])).responses[0]
    assert torch.equal(one.ids, again.ids) and not torch.equal(one.ids, other.ids) and len(one) == len(other)


def edited(source: Path, out: Path, **changes: Any) -> Path:
    """A copy of a checkpoint whose declaration of pictures has other values; None takes a key away."""
    shutil.copytree(source, out)
    config = json.loads((out / 'config.json').read_text())
    declared = {**config['media_codes']['image'], **changes}
    config['media_codes'] = {'image': {key: value for key, value in declared.items() if value is not None}}
    (out / 'config.json').write_text(json.dumps(config))
    return out


@pytest.mark.parametrize(
    ('changes', 'reason'),
    [
        ({'openning': '<|image_begin|>'}, "no 'openning'. Did you mean 'opening'"),
        ({'codec': 'nowhere'}, 'holds no codec'),
        ({'codec': None}, 'name the folder of its codec'),
        ({'first_ids': [5000]}, 'reach to id 5063'),
        ({'first_ids': None}, 'either tokens or first_ids'),
        ({'first_ids': [1, 2]}, '2 ids for 1 code books'),
        ({'first_ids': None, 'tokens': '<|picture_{}|>'}, "no token '<|picture_0|>'"),
        ({'first_ids': None, 'tokens': '<|image_0_|>'}, 'has no {}'),
        ({'opening': None}, 'name the token that media begin with'),
        ({'size': None, 'closing': None}, 'without a size'),
        ({'row_end': '<|image_begin|><|image_end|>'}, 'is no one token'),
        ({'row_end': 'two tokens'}, "no token 'two tokens'"),
        ({'size': 4}, 'size: [4] is not 2 numbers of codes'),
        ({'size': [4, 'four']}, 'is not 2 numbers of codes'),
        ({'max_length': 'long'}, "max_length: 'long' is no number of tokens"),
        ({'first_ids': 'all'}, 'is no list of ids'),
        ({'first_ids': None, 'tokens': 5}, 'is no text, nor a list of texts'),
        ({'codec': 5}, 'codec: 5 is no text'),
        ({'opening': 7}, 'opening: 7 is no text'),
        ({'closing': ['<|image_end|>']}, "closing: ['<|image_end|>'] is no text"),
        ({'opening': '<|image_begn|>'}, "no token '<|image_begn|>'"),
        ({'closing': '<|image_nd|>'}, "no token '<|image_nd|>'"),
        ({'row_end': '<unk>'}, "no token '<unk>'"),
        ({'opening': '<|image_0_3|>'}, 'opening: it holds a token that is a code'),
        ({'row_end': '<|image_end|>'}, 'row_end: it is what opens or closes'),
        ({'closing': '<|image_begin|>'}, 'closing: it begins with the token that opens image'),
    ],
)
def test_a_declaration_that_cannot_be_read_is_refused(
    emitting: Emitting, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelError) as caught:
        load(edited(emitting('drawing'), tmp_path / 'model', **changes))
    assert reason in str(caught.value)


def test_one_token_does_not_end_two_kinds(emitting: Emitting, tmp_path: Path) -> None:
    shutil.copytree(emitting('unified'), tmp_path / 'model')
    config = json.loads((tmp_path / 'model' / 'config.json').read_text())
    config['media_codes']['audio']['closing'] = config['media_codes']['image']['closing']
    (tmp_path / 'model' / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ModelError, match='audio.closing: it ends image too'):
        load(tmp_path / 'model')


@pytest.mark.parametrize('declaration', ['image', [{'image': {}}], 5])
def test_a_declaration_is_a_mapping(emitting: Emitting, tmp_path: Path, declaration: Any) -> None:
    shutil.copytree(emitting('drawing'), tmp_path / 'model')
    config = json.loads((tmp_path / 'model' / 'config.json').read_text())
    (tmp_path / 'model' / 'config.json').write_text(json.dumps({**config, 'media_codes': declaration}))
    with pytest.raises(ModelError, match='is no mapping from kinds of media'):
        load(tmp_path / 'model')


def test_codes_are_found_by_the_names_of_their_tokens(emitting: Emitting, tmp_path: Path) -> None:
    declared = load(emitting('drawing')).codes.kinds['image']
    named = load(edited(emitting('drawing'), tmp_path / 'model', first_ids=None, tokens='<|image_0_{}|>'))
    assert named.codes.kinds['image'] == declared
