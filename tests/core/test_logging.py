"""Notes once, warnings from everyone."""

from __future__ import annotations

import pytest

from align_anything.core.logging import RankHandler, get_logger


def test_rank_zero_notes_and_everyones_warnings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = get_logger('align_anything.somewhere')
    logger.info('a note from rank 0')
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('WORLD_SIZE', '2')
    logger.info('a note from rank 1')
    logger.warning('careful')
    text = capsys.readouterr().err
    assert '[align-anything] a note from rank 0\n' in text
    assert 'a note from rank 1' not in text
    assert '[align-anything rank 1] WARNING careful\n' in text


def test_one_handler_however_many_loggers() -> None:
    loggers = [get_logger('align_anything.a'), get_logger('align_anything.b'), get_logger('outside')]
    assert loggers[2].name == 'align_anything.outside'
    handlers = get_logger('align_anything').handlers
    assert sum(isinstance(handler, RankHandler) for handler in handlers) == 1
