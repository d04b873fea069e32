"""diffusers, which is an extra: imported where a pipeline is asked for."""

from __future__ import annotations

from types import ModuleType

from align_anything.core.errors import ModelError


def require_diffusers() -> ModuleType:
    """Returns the module `diffusers`. Raises ModelError, which names the extra, where it is not installed."""
    try:
        import diffusers
    except ImportError as error:
        raise ModelError(
            f"models that denoise are pipelines of diffusers: pip install 'align-anything[diffusion]' ({error})."
        ) from error
    return diffusers
