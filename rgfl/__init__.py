"""rgfl: oriented detection on aerial imagery, from DOTA labels to a TensorRT engine.

Importing this package loads neither torch nor the compiled core; each module says what it needs.
"""

__version__ = "0.1.0"
