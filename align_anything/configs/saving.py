"""The resolved settings as a file that `--config` takes again."""

from __future__ import annotations

from align_anything.configs.redaction import without_secrets
from align_anything.configs.schema import RunCfgs
from align_anything.configs.yaml_text import dump_yaml


def dump_resolved(cfgs: RunCfgs) -> str:
    """Returns all settings as YAML. Given back through `--config`, they make the same run.

    Secrets are left out, credentials inside URLs too; comments at the end name what has to be given again.
    """
    removed: list[str] = []
    text = dump_yaml(without_secrets(cfgs.model_dump(mode='json'), removed=removed))
    return text + ''.join(f'# left out because it holds a secret: {path}\n' for path in removed)
