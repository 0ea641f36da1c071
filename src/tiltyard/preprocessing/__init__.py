"""What a model does to raw columns before it sees them: fitted on the training split, stored with the model."""

from tiltyard.preprocessing.fitted import Preprocessor

__all__ = ["Preprocessor"]
