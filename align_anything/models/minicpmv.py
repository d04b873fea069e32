"""The class of MiniCPM-V, where the documentation of align-anything has it, also by the name that it has there."""

from align_anything.models.families.minicpmv import AccustomedMiniCPMVModel
from align_anything.models.families.minicpmv import AccustomedMiniCPMVModel as AccustomedMiniCPMV

__all__ = ['AccustomedMiniCPMV', 'AccustomedMiniCPMVModel']
