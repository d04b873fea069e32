"""A checkpoint and an adapter keep their action space."""

from __future__ import annotations

import json

import pytest

from align_anything.core.actions import ActionSpace
from align_anything.core.errors import ModelError
from align_anything.models.action_space import FILE, act_in, read_action_space, write_action_space
from align_anything.models.pretrained_model import load_spec

SPACE = ActionSpace(names=('left', 'right'))


def test_a_space_is_that_of_its_folder_or_of_the_model_under_an_adapter(tmp_path):
    model, adapter = tmp_path / 'model', tmp_path / 'adapter'
    model.mkdir()
    adapter.mkdir()
    (adapter / 'adapter_config.json').write_text(json.dumps({'base_model_name_or_path': str(model)}))
    assert read_action_space(model) is None and read_action_space(adapter) is None
    write_action_space(model, SPACE)
    assert read_action_space(model) == SPACE == read_action_space(adapter)
    own = ActionSpace(names=('up', 'down'))
    write_action_space(adapter, own)
    assert read_action_space(adapter) == own


def test_a_space_that_cannot_be_used_is_neither_written_nor_read(tmp_path):
    with pytest.raises(ModelError, match='cannot be used: an action has either names'):
        write_action_space(tmp_path, ActionSpace())
    (tmp_path / FILE).write_text('{"names": ["left"], "chunk": "two"}')
    with pytest.raises(ModelError, match=f"{FILE}: chunk has 'two'"):
        read_action_space(tmp_path)


@pytest.mark.extended
def test_a_space_of_what_acts_without_tokens_is_none_of_a_token_model(tiny):
    with pytest.raises(ModelError, match="'tokens' should be reserved, tail or words"):
        act_in(load_spec(tiny('qwen2_5_vl')), ActionSpace(names=('left', 'right')))
