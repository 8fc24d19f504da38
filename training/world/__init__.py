"""The drawn world the embedded models learn: small landscapes with captions and exact ground truth."""

from training.world.grammar import CLASSES, KINDS, Caption, Group, Spec, caption, sample_spec
from training.world.render import Scene, render

__all__ = ["CLASSES", "KINDS", "Caption", "Group", "Scene", "Spec", "caption", "render", "sample_spec"]
