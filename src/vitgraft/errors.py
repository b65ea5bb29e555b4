"""What vitgraft raises. Every message names the option, the value it got and what would work."""


class GraftError(ValueError):
    """A graft that cannot be made: wrong option, wrong model, or a model that is grafted already."""


class NoGraftPointError(GraftError):
    """Nothing in the model can carry a graft, or nothing matched what was asked for."""


class ModelSpecError(ValueError):
    """A model name that nobody knows, or options that the named model does not take."""


class CheckpointError(ValueError):
    """A checkpoint that does not belong to the model it was meant for."""


class MissingExtraError(ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str):
        super().__init__(f"{package} is not installed. It comes with an extra: pip install 'vitgraft[{extra}]'")


class DataError(ValueError):
    """A data set that can't be used: not found, of no known format, an empty class, classes that differ."""


class ImageError(ValueError):
    """An image that can't be read.

    Args:
        name: the file.
        reason: what is wrong with it.
    """

    def __init__(self, name: str, reason: str = ""):
        # one argument where it is unpickled or passed on by a worker process
        super().__init__(f"{name}: {reason}" if reason else name)
        self.name, self.reason = name, reason

    def __reduce__(self):
        return type(self), (self.name, self.reason)


class RecipeError(ValueError):
    """A recipe that cannot be run as it stands; the message names everything that is wrong with it."""

    def __init__(self, problems: "str | list[str]"):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class RunFolderError(ValueError):
    """An output folder that this run can't use: it holds another run, can't be written, or has nothing to continue."""


class TrainingError(RuntimeError):
    """A run that can't go on: loss not finite, images unreadable, memory or disk full; the message says what helps."""


class CommandError(ValueError):
    """A request that the command line can't fulfil; the message says what would work."""
