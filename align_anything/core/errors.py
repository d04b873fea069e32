"""The errors a user can meet. Each message says what is wrong, where it came from and what to do."""

from __future__ import annotations

FOREIGN_FAULTS = (Exception, SystemExit)
"""What code of others may fail with. A `sys.exit` in it would end the run, with code 0 as if all had been well."""


class AlignAnythingError(Exception):
    """Base of every error that is the user's to mend; the launcher prints it without a traceback."""


class SettingsError(AlignAnythingError):
    """Settings that cannot be run. Carries every problem found, not only the first."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = list(problems)
        super().__init__('\n'.join(f'- {problem}' for problem in self.problems))


class ModelError(AlignAnythingError):
    """A checkpoint that cannot be loaded, or cannot do what was asked of it."""


class DataError(AlignAnythingError):
    """A data source, template or row that makes the whole run impossible."""


class SampleError(AlignAnythingError):
    """One row that cannot be used. The run leaves it out, counts it and lists it."""


class FilteredError(SampleError):
    """A row that is left out on purpose: its template, or a setting, says that it is not to be used."""


class UnidentifiedError(SampleError):
    """Content that cannot be told from other content, so that nothing that was made of it can be found again."""


class TrainingError(AlignAnythingError):
    """A run that must stop: non-finite loss, too many skipped samples, a failed self-check."""


class CheckpointError(TrainingError):
    """A checkpoint that some rank cannot write: every rank raises it in the same words, and the main one tells it."""


class RewardError(AlignAnythingError):
    """A reward function or service that is unknown, cannot work on these rows, or gave no usable numbers."""


class WorldError(AlignAnythingError):
    """An environment that is unknown, cannot be made, breaks its contract, or fails too often."""


class HubError(AlignAnythingError):
    """The hub refused what was asked of it, or could not be reached."""
