"""The error of a training that cannot go on; of its own, because every part of one raises it."""

from rgfl.errors import UserError


class TrainingError(UserError):
    """The run cannot go on; one line that says why and what to do."""
