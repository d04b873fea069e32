"""Keys: where they come from, and that they stay unseen."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from align_anything.core.errors import SettingsError
from align_anything.serve.door import KEY_VARIABLE, Keys, is_local, read_keys


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / 'keys'
    file.write_text('first-key\n\n  second-key \n')
    file.chmod(0o600)
    monkeypatch.setenv(KEY_VARIABLE, 'third-key')
    keys = Keys(read_keys(str(file)))
    for key in (b'first-key', b'second-key', b'third-key'):
        assert keys.allow(b'Bearer ' + key) and keys.allow(b'bearer ' + key)
    for wrong in (b'', b'Bearer', b'Bearer ', b'Bearer first-ke', b'Basic first-key', b'first-key', b'Bearer \xff'):
        assert not keys.allow(wrong)
    monkeypatch.delenv(KEY_VARIABLE)
    assert not Keys(read_keys(None))


def test_a_key_is_in_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / 'keys'
    file.write_text('short\n')
    file.chmod(0o644)
    with caplog.at_level(logging.WARNING, logger='align_anything'), pytest.raises(SettingsError) as caught:
        read_keys(str(file))
    assert 'short' not in str(caught.value) and 'chmod 600' in caplog.text and 'short' not in caplog.text
    assert 'my-key' not in repr(vars(Keys(['my-key-is-long'])))
    for text, message in (('', 'holds no key'), (None, 'cannot be read')):
        if text is None:
            file.unlink()
        else:
            file.write_text(text)
        with pytest.raises(SettingsError, match=message):
            read_keys(str(file))


@pytest.mark.parametrize(
    ('host', 'local'),
    [('127.0.0.1', True), ('::1', True), ('localhost', True), ('0.0.0.0', False), ('::', False), ('node1', False)],
)
def test_addresses_of_this_machine(host: str, local: bool) -> None:
    assert is_local(host) is local
