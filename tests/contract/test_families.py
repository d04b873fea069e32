"""Every family that this package knows has a tiny checkpoint, a script and a learning test."""

from __future__ import annotations

import ast
import pkgutil
from pathlib import Path

import pytest
import yaml

from align_anything.models import families as family_files
from align_anything.testing import tiny
from align_anything.testing.tiny.judges import JUDGES
from tests.models import stand_ins

ROOT = Path(__file__).resolve().parents[2]
# Lists of families, with the length of their training, in tests/learning/test_*.py.
LENGTHS = ('STEPS', 'EPOCHS')
# The configuration of Qwen-VL calls itself qwen.
SCRIPTS = {'qwen': 'qwen_vl'}
# Their model classes come with the checkpoints; tests have stand-ins with the same interface, which prove no learning.
STAND_INS_ONLY = ('baichuan_m1', 'minicpmo', 'minicpmv', 'phi3_v', 'qwen')
# Its tiny checkpoint stayed at chance for 60 steps, longer than most others need.
NOT_TAUGHT = ('gemma3n',)
# They write nothing: a run of theirs as reward models is their lesson (tests/trainers/test_picked_pictures.py).
SCORING = ('clip',)
# It acts, by code of its own: runs on its stand-in are its lesson (tests/trainers/test_openvla.py), of its script too
# (tests/scripts/test_shell_scripts.py).
ACTING = ('openvla',)


def known() -> list[str]:
    """The families with a file of their own, those with checkpoints in the table, and LLaVA-Interleave: a LLaVA."""
    table = yaml.safe_load((ROOT / 'align_anything' / 'cli' / 'families.yaml').read_text())
    families = {*(module.name for module in pkgutil.iter_modules(family_files.__path__)), *table, 'llava_interleave'}
    return sorted(families.difference(ACTING, (name for name, entry in table.items() if 'not_served' in entry)))


def taught(folder: Path) -> set[str]:
    """The families that the learning tests list."""
    found = set()
    for path in folder.glob('test_*.py'):
        for line in ast.parse(path.read_text()).body:
            if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) in LENGTHS:
                found |= ast.literal_eval(line.value).keys()
    return found


@pytest.mark.parametrize('family', known())
def test_a_family_can_be_built_launched_and_taught(family: str) -> None:
    made = {*tiny.KINDS, *stand_ins.FAMILIES, *(JUDGES if family in SCORING else ())}
    assert family in made, 'no tiny checkpoint: align_anything/testing/tiny'
    script = SCRIPTS.get(family, family)
    kind = 'rm' if family in SCORING else 'sft'
    assert [*(ROOT / 'scripts').glob(f'*/{script}_{kind}.sh')], f'no script: scripts/{script}/{script}_{kind}.sh'
    assert family in STAND_INS_ONLY + NOT_TAUGHT + SCORING or family in taught(ROOT / 'tests' / 'learning'), (
        'no learning test: STEPS or EPOCHS in tests/learning/test_*.py'
    )


def test_a_list_of_families_is_found_in_a_test(tmp_path: Path) -> None:
    (tmp_path / 'test_smells.py').write_text("STEPS = {'nose': 3}\nOTHER = {'ear': 4}\nEYES, LIDS = 2, 4\n")
    assert taught(tmp_path) == {'nose'}
