"""How the denoising steps of a run sample that are trained."""

from __future__ import annotations

from align_anything.configs.online import OnlineRunCfgs
from align_anything.models.diffusion.process import Process
from align_anything.policies.denoising.transitions import Kernel

NOISE_LEVELS = {'flow_sde': 0.7, 'dance_sde': 0.3, 'cps': 0.7, 'ddim': 1.0}


def kernel_of(cfgs: OnlineRunCfgs, process: Process) -> Kernel:
    """How the trained steps of rollouts sample. Raises SettingsError for a kernel that the process has not."""
    own = cfgs.diffusion_cfgs
    name = ('flow_sde' if process.prediction == 'flow' else 'ddim') if own.sde_kernel == 'auto' else own.sde_kernel
    level = NOISE_LEVELS[name] if own.noise_level is None else own.noise_level
    kernel = Kernel(name, level, own.kl_form)
    kernel.check(process)
    return kernel
