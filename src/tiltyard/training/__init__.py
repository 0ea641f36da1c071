"""Packs: many models stepped together. Needs torch, numpy and safetensors alone."""

from tiltyard.training.beginning import build_module, rebuild_module
from tiltyard.training.pack import Pack, calibrate
from tiltyard.training.packable import check_model
from tiltyard.training.scores import scores
from tiltyard.training.spec import MEMBER_FIELDS, Member, PackSpec, members_of, pack_signature, split_config
from tiltyard.training.vmapped import explain_unpackable

__all__ = [
    "MEMBER_FIELDS",
    "Member",
    "Pack",
    "PackSpec",
    "build_module",
    "calibrate",
    "check_model",
    "explain_unpackable",
    "members_of",
    "pack_signature",
    "rebuild_module",
    "scores",
    "split_config",
]
