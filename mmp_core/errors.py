"""Errors a user can act on. Their text names the input, what was expected and what to do."""


class InputError(ValueError):
    """A value given by the user cannot be used."""


class CheckpointError(InputError):
    """A checkpoint is missing, incomplete, or of another kind."""
