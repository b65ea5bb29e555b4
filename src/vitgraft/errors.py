"""What vitgraft raises. Every message names the option, the value it got and what would work."""


class VitgraftError(Exception):
    """Base of all errors of this package; each of them is an error of Python too, such as ValueError."""


class GraftError(VitgraftError, ValueError):
    """A graft that cannot be made: wrong option, wrong model, or a model that is grafted already."""


class NoGraftPointError(GraftError):
    """Nothing in the model can carry a graft, or nothing matched what was asked for."""


class FrozenModelError(VitgraftError, RuntimeError):
    """A model from `vitgraft.freeze` is trained or changed, or a model cannot be frozen; the message names the way."""


class ModelSpecError(VitgraftError, ValueError):
    """An unknown model name, or options that the named model does not take."""


class CheckpointError(VitgraftError, ValueError):
    """A checkpoint that is missing, damaged, or does not belong to the model it was meant for."""


class UntrustedError(CheckpointError):
    """A file from elsewhere names code that is not vitgraft's; the message names it and the option that trusts it."""


class ExportError(VitgraftError, RuntimeError):
    """A model that cannot be exported as asked: an operator is missing, or the export is not the same function."""


class MissingExtraError(VitgraftError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str):
        super().__init__(f"{package} is not installed. It comes with an extra: pip install 'vitgraft[{extra}]'")


class DataError(VitgraftError, ValueError):
    """A dataset that cannot be used: not found, of no known format, an empty class, classes that differ."""


class MissingSplitError(DataError):
    """A split that a dataset does not have."""


class ImageError(VitgraftError, ValueError):
    """An image that cannot be read.

    Args:
        name: The file.
        reason: Why it cannot be read.
    """

    def __init__(self, name: str, reason: str = ""):
        # one argument where it is unpickled or passed on by a worker process
        super().__init__(f"{name}: {reason}" if reason else name)
        self.name, self.reason = name, reason

    def __reduce__(self):
        return type(self), (self.name, self.reason)


class RecipeError(VitgraftError, ValueError):
    """A recipe that cannot be run as it stands; the message lists all of its errors."""

    def __init__(self, errors: "str | list[str]"):
        self.errors = [errors] if isinstance(errors, str) else list(errors)
        super().__init__("\n".join(self.errors))


class RunFolderError(VitgraftError, ValueError):
    """An output folder that this run cannot use: it holds another run, or cannot be written."""


class TrainingError(VitgraftError, RuntimeError):
    """A run that cannot continue: loss not finite, unreadable images, memory or disk full; details in the message."""


class CommandError(VitgraftError, ValueError):
    """A request that the command line cannot fulfil; the message names what would work."""
