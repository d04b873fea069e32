"""What may be sampled where, against media as they are written for training."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from align_anything.core.errors import SettingsError
from align_anything.core.types import MediaKind
from align_anything.models.codecs.base import CodecRules
from align_anything.models.codes import KindOfCodes, MediaCodes
from align_anything.rollouts.base import Sampling, check_emission
from align_anything.rollouts.grammar import Emission, Grammar
from align_anything.rollouts.restricted import Restricted, Restriction, SetSampling

ROWS, STOP, BANNED = 200, 2, 7
LENGTH = 200
STOPS = (STOP, 3)
IMAGE = KindOfCodes('image', (10,), (100,), (20, 21), (22,), row_end=23)
BOOKS = KindOfCodes('image', (5, 7), (110, 120), (24,), (25, 26), size=(2, 2))
SOUND = KindOfCodes('audio', (6, 4), (130, 140), (30,), (31,))
CLIP = KindOfCodes('video', (8,), (150,), (40, 41, 42), (), row_end=43, size=(2, 3, 1))


def codes_of(*kinds: KindOfCodes, restricted: bool = True) -> MediaCodes:
    rules = {own.kind: CodecRules(Path('codec'), own.kind, own.books, own.kind) for own in kinds}
    return MediaCodes({own.kind: own for own in kinds}, rules, restricted=restricted)


def grammar_of(codes: MediaCodes, emission: Emission | None) -> Grammar:
    return Grammar.of(codes, emission, STOPS, STOP, [BANNED])


def ids_of(allowed: Sequence[tuple[int, int]]) -> list[int]:
    return [token for start, stop in allowed for token in range(start, min(stop, ROWS))]


def sampled(grammar: Grammar, dice: random.Random, length: int = LENGTH, ends: float = 0.05) -> list[int]:
    """Ids that the grammar allows, up to one that ends them, with media among them more often than by chance."""
    state, ids = grammar.start(), []
    opening = [rule.opening[0] for rule in grammar.kinds if rule.opening]
    while len(ids) < length and (not ids or ids[-1] not in STOPS):
        allowed = ids_of(state.allowed)
        assert allowed, ids
        likely = [token for token in allowed if token in opening or (token in STOPS and dice.random() < ends)]
        ids.append(dice.choice(likely if likely and dice.random() < 0.3 else allowed))
        state.advance(ids[-1])
    return ids


def settings(dice: random.Random) -> tuple[MediaCodes, Emission]:
    """Random settings of what may be written."""
    pictures = dice.choice([IMAGE, BOOKS])
    sound = replace(SOUND, longest=dice.choice([None, 2, 5, 6]))
    codes = codes_of(*dice.sample([pictures, sound, CLIP], dice.randint(1, 3)))
    grids: dict[MediaKind, Any] = {
        'image': None if pictures is BOOKS else (dice.randint(1, 3), dice.randint(1, 3)),
        'audio': dice.choice([None, (dice.randint(1, 4),)]) if sound.longest is None else None,
        'video': None,
    }
    kinds = dice.sample(sorted(codes.kinds), dice.randint(1, len(codes.kinds)))
    begins = kinds[0] if len(kinds) == 1 and dice.random() < 0.5 else None
    return codes, Emission({kind: grids[kind] for kind in kinds}, begins)


def test_sampled_responses_hold_the_grammar() -> None:
    """Their media are written as they are for training, codes stand in no text, and all states agree."""
    dice, media, kinds_together = random.Random(0), 0, 0
    while media < 1000:
        codes, emission = settings(dice)
        grammar = grammar_of(codes, emission)
        again = Grammar.from_json(json.loads(json.dumps(grammar.to_json())))
        assert again == grammar
        ids = sampled(grammar, dice)
        finished = ids[-1] in STOPS
        parts = codes.parts([token for token in ids if token not in STOPS])
        found = [part for part in parts if type(part) is not list]
        media += len(found)
        kinds_together += len({part.kind for part in found}) > 1
        if finished:
            text = [token for part in parts if type(part) is list for token in part]
            assert BANNED not in text and not codes.is_code(torch.tensor(text, dtype=torch.long)).any()
            whole = [codes.kinds[part.kind].written(part.codes) for part in found]
            written = [token for part in parts for token in (part if type(part) is list else whole.pop(0)[0].tolist())]
            assert written == [token for token in ids if token not in STOPS]
        for part in found:
            grid, own = emission.grids[part.kind] or codes.kinds[part.kind].size, tuple(part.codes.shape[1:])
            assert own == grid if grid is not None else own[0] <= (codes.kinds[part.kind].longest or LENGTH) // 2
        if emission.begins is not None and finished:
            assert [part.kind for part in found] == [emission.begins] and len(parts) == 1 and ids[-1] == STOP
        state, chosen = again.start(), grammar.chosen(ids)
        for number, token in enumerate(ids):
            allowed = ids_of(state.allowed)
            assert state.free == (len(allowed) > 1) == chosen[number]
            if state.free:
                assert {*codes.set_of(torch.tensor(allowed)).tolist()} == {state.number}
            if number % 10 == 0:
                behind = grammar.after(ids[:number])
                assert (state.allowed, state.number) == (behind.allowed, behind.number)
            state.advance(token)
    assert kinds_together > 20


@pytest.mark.parametrize('own', [IMAGE, BOOKS, SOUND])
@pytest.mark.parametrize('begins', [False, True])
def test_what_is_chosen_is_what_is_trained(own: KindOfCodes, begins: bool) -> None:
    """The choices in a medium are those that have a weight where preferences between media are trained."""
    grid = (3,) if own.kind == 'audio' else (2, 2)
    codes = codes_of(own)
    grammar = grammar_of(codes, Emission({own.kind: None if own is SOUND else grid}, own.kind if begins else None))
    medium = torch.zeros(len(own.books), *grid, dtype=torch.long)
    ids, free = own.written(medium)
    text, expected = ([], free.tolist()) if begins else ([50, 60], [True, True, *free.tolist()])
    if begins:
        expected[: len(own.opening)] = [False] * len(own.opening)
    chosen = grammar.chosen([*text, *ids.tolist(), STOP])
    assert chosen == [*expected, not begins]


def test_kinds_that_are_not_asked_for_are_never_opened() -> None:
    codes = codes_of(IMAGE, SOUND)
    for emission, opened in ((None, []), (Emission({'audio': None}), [30]), (Emission({'image': (1, 2)}), [20])):
        allowed = ids_of(grammar_of(codes, emission).start().allowed)
        assert [token for token in allowed if token in (20, 30)] == opened
        assert not {22, 23, 31, BANNED, *range(100, 110), *range(130, 136), *range(140, 144)} & {*allowed}
        assert {STOP, 3, 21, 24, 199} <= {*allowed}


@pytest.mark.parametrize(('longest', 'most'), [(7, 3), (4, 2), (None, 9)])
def test_audio_is_closed_at_its_limit(longest: int | None, most: int) -> None:
    """At the end of a frame, by force; before that the model may close it behind each frame but the last."""
    codes = codes_of(replace(SOUND, longest=longest))
    grammar, ids = grammar_of(codes, Emission({'audio': None})), [30]
    closes = []
    for number in range(2 * most):
        closes.append((31, 32) in grammar.after(ids).allowed)
        ids.append(140 if number % 2 else 130)
    assert closes == [number > 0 and number % 2 == 0 for number in range(2 * most)]
    assert grammar.after(ids).free == (longest is None)
    assert grammar.after([*ids, 31]).allowed == grammar.text


def test_a_text_can_end_where_its_end_closes_media_too() -> None:
    own = KindOfCodes('audio', (6,), (130,), (30,), (STOP,))
    grammar = Grammar.of(codes_of(own), Emission({'audio': None}), [STOP], STOP)
    assert STOP in ids_of(grammar.start().allowed)
    assert grammar.after([50, 30, 131, STOP]).allowed == grammar.after([50, STOP]).allowed
    assert STOP not in ids_of(Grammar.of(codes_of(own), None, STOPS, STOP).start().allowed)


def test_what_is_not_allowed_is_refused() -> None:
    grammar = grammar_of(codes_of(IMAGE), Emission({'image': (1, 2)}))
    for ids in ([20, 22], [100], [20, 21, 100, 23], [20, 21, 100, 101, 102], [200, BANNED]):
        with pytest.raises(ValueError, match='may not come here'):
            grammar.after(ids)


def test_settings_that_cannot_be_obeyed_are_refused() -> None:
    codes = codes_of(IMAGE, replace(BOOKS, kind='video', size=(1, 2, 2)), SOUND)
    image: dict[MediaKind, Any] = {'image': (2, 2)}

    def problem(emit: Emission, tokens: int = 100, codes: MediaCodes | None = codes, **how: Any) -> str:
        with pytest.raises(SettingsError) as raised:
            check_emission(codes, Sampling(emit=emit, max_new_tokens=tokens, **how))
        (found,) = raised.value.problems
        return found

    # Opening, two rows with their ends, closing, and the end of the turn.
    check_emission(codes, Sampling(emit=Emission(image, 'image'), max_new_tokens=10))
    assert 'has 10 tokens or more' in problem(Emission(image, 'image'), 9)
    check_emission(codes, Sampling(emit=Emission({'audio': None}, 'audio'), max_new_tokens=5))
    assert 'has 5 tokens or more' in problem(Emission({'audio': None}), 4)
    assert 'writes no image; it writes text.' in problem(Emission(image), codes=None)
    assert 'writes no video' in problem(Emission({'video': None}), codes=codes_of(IMAGE))
    unsized = codes_of(replace(CLIP, size=None))
    assert 'emit_size.image: the checkpoint does not declare' in problem(Emission({'image': None}))
    assert 'such as {video: [16, 16, 16]}' in problem(Emission({'video': None}), codes=unsized)
    plain = codes_of(KindOfCodes('image', (10,), (100,), (20,), (22,)))
    assert 'square images' in problem(Emission({'image': (2, 3)}), codes=plain)
    check_emission(plain, Sampling(emit=Emission({'image': (3, 3)})))
    assert 'is not 2 numbers' in problem(Emission({'image': (2, 2, 2)}))
    assert 'is not 1 numbers' in problem(Emission({'audio': (0,)}))
    assert 'has [1, 2, 2] codes, not [1, 1, 1]' in problem(Emission({'video': (1, 1, 1)}))
    assert 'holds that and nothing else' in problem(Emission({**image, 'audio': None}, 'image'))
    assert 'emit_top_k.audio' in problem(Emission(image), emit_top_k={'audio': 3})
    assert 'emit_temperature.audio' in problem(Emission(image), emit_temperature={'audio': 2.0})
    short = codes_of(replace(SOUND, longest=7))
    assert 'has 8 tokens, but the model writes 7 at most' in problem(Emission({'audio': (4,)}), codes=short)
    bare = KindOfCodes('image', (10,), (100,), size=(1, 1))
    assert 'has to begin with it' in problem(Emission({'image': None}), codes=codes_of(bare))
    check_emission(codes_of(bare), Sampling(emit=Emission({'image': None}, 'image'), max_new_tokens=2))
    twins = codes_of(IMAGE, KindOfCodes('audio', (6,), (130,), (20,), (31,)))
    assert 'cannot be told apart' in problem(Emission({**image, 'audio': None}), codes=twins)


@pytest.mark.parametrize('restricted', [True, False])
def test_units_are_sampled_among_their_set(restricted: bool) -> None:
    """Log-probabilities are those of the set, whatever is left out of what is sampled."""
    codes = codes_of(SOUND, restricted=restricted)
    grammar = grammar_of(codes, Emission({'audio': None}))
    how = (SetSampling(0.5, top_p=0.8), SetSampling(2.0, 3), SetSampling(0.0))
    sample = Restricted(Restriction.from_json(json.loads(json.dumps(Restriction(grammar, how).to_json()))))
    logits = torch.randn(4, ROWS, generator=torch.Generator().manual_seed(0))
    # In text, at a frame where the sound may end, at its second book, and in text once more.
    behind = [[50], [30, 131, 140], [30, 131], [50]]
    logprobs, left = sample(logits, [grammar.after(ids) for ids in behind])
    sets = [[*range(130), *range(136, 140), *range(144, ROWS)], [*range(130, 136), 31], [*range(140, 144)]]
    for row, number in enumerate([0, 1, 2, 0]):
        among = sets[number] if restricted else list(range(ROWS))
        expected = (logits[row, among] / (how[number].temperature or 1)).log_softmax(-1)
        torch.testing.assert_close(logprobs[row, among], expected)
        kept = left[row].isfinite().nonzero().flatten()
        torch.testing.assert_close(left[row, kept], logprobs[row, kept])
        assert {*kept.tolist()} <= {*sets[number]}
    assert left[1].isfinite().sum() == 3 and left[2].isfinite().sum() == 1
    assert 1 < left[0].isfinite().sum() < 100 and int(left[2].argmax()) == 140 + int(logits[2, 140:144].argmax())


def test_what_is_no_grammar_is_refused() -> None:
    good = Restriction(grammar_of(codes_of(SOUND), None), (SetSampling(),) * 3).to_json()
    assert Restriction.from_json(good).to_json() == good
    for bad in (
        {},
        {**good, 'how': []},
        {**good, 'grammar': {}},
        {**good, 'grammar': {**good['grammar'], 'begins': 3}},
    ):
        with pytest.raises(ValueError, match='grammar'):
            Restriction.from_json(bad)
