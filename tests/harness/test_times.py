"""The summary at the end of a run: what each test took in all its phases and workers, and what each folder did."""

from __future__ import annotations

from types import SimpleNamespace

from tests.harness.times import SLOWEST, Times, summary


def test_phases_add_up_and_folders_have_what_their_tests_took() -> None:
    times = Times()
    for name, duration in (
        ('tests/models/test_a.py::test_one', 1.0),
        ('tests/models/test_a.py::test_one', 0.5),
        ('tests/models/deep/test_b.py::test_two', 2.0),
        ('tests/losses/test_c.py::test_three', 0.25),
        ('tests/losses/test_c.py::test_four', 0.01),
    ):
        times.pytest_runtest_logreport(SimpleNamespace(nodeid=name, duration=duration))
    assert [line.split() for line in summary(times.seconds)] == [
        ['2.0', 's', 'tests/models/deep/test_b.py::test_two'],
        ['1.5', 's', 'tests/models/test_a.py::test_one'],
        ['0.2', 's', 'tests/losses/test_c.py::test_three'],
        [],
        ['3.5', 's', 'tests/models'],
        ['0.3', 's', 'tests/losses'],
        ['3.8', 's', 'all', 'workers', 'together'],
    ]


def test_only_the_slowest_are_named_and_all_are_counted() -> None:
    lines = summary({f'tests/a/test_b.py::test_{number}': float(number) for number in range(100)})
    assert len(lines) == SLOWEST + 3 and lines[0].endswith('test_99') and lines[SLOWEST - 1].endswith('test_70')
    assert lines[-1].split()[0] == '4950.0'
