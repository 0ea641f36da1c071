"""Packs: many models stepped together. Needs torch, numpy and safetensors alone."""

from tiltyard.training.pack import Pack, build_module, explain_unpackable
from tiltyard.training.scores import scores
from tiltyard.training.spec import MEMBER_FIELDS, Member, PackSpec, split_config

__all__ = [
    "MEMBER_FIELDS",
    "Member",
    "Pack",
    "PackSpec",
    "build_module",
    "explain_unpackable",
    "scores",
    "split_config",
]
