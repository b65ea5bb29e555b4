"""The base of the three predictors: a model with all that its predictions need, usable without Lightning."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor, nn

from vitgraft.predict.exported import save_run
from vitgraft.predict.inputs import ImageLike, read_image, split
from vitgraft.weights.hub import upload

__all__ = ["Prediction", "Predictor", "preprocessing_options"]


@dataclass
class Prediction:
    """What was predicted for one image, or why there is nothing.

    Attributes:
        image: Its file.
        width: In pixels.
        height: In pixels.
        result: What the predictor's `predict_batch` returns for it; None where there is an error.
        error: Why the image could not be predicted; None where it could.
        kept: The image itself, or its thumbnail, where one of them is needed afterwards.
        files: Kind of drawing -> the file that it was written to.
    """

    image: str
    width: int = 0
    height: int = 0
    result: Any = None
    error: str | None = None
    kept: Image.Image | None = None
    files: dict[str, str] = field(default_factory=dict)


@dataclass
class Predictor:
    """A model with all that its predictions need; `vitgraft.load` makes one.

    >>> run = vitgraft.load("runs/NAME")
    >>> run.predict("a.jpg")

    A task gives `of_run`, `transform`, `predict_batch`, `user_result`, and what is written and shown of a `Prediction`.

    Attributes:
        model: In evaluation mode.
        preprocessing: What the model expects of its images.
        class_names: Of each class.
        source: Which model of which file, for people.
        weights: "raw", "ema" (averaged), "pretrained" or "random".
        hyper_parameters: Options of the run's task, or of the export; None where the model is of neither.
        details: What its run has for a model card: `data`, `metrics`, `recipe`, `license`.
    """

    model: nn.Module
    preprocessing: Any
    class_names: tuple[str, ...]
    source: str = ""
    weights: str = "raw"
    hyper_parameters: Mapping[str, Any] | None = field(default=None, repr=False)
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)

    task: ClassVar[str]
    noun: ClassVar[str]  # in messages
    kind: ClassVar[str]  # of the JSON file
    options: ClassVar[tuple[str, ...]]  # hyper-parameters that `of_run` reads
    settings: ClassVar[tuple[str, ...]] = ()  # fields that `with_settings` and the command line change
    draws: ClassVar[bool] = True  # whether there is a `draw`
    batched: ClassVar[bool] = False  # whether prepared images are all of one size
    memory_hint: ClassVar[str] = "--device cpu"  # what helps where the memory is too small

    @classmethod
    def of_run(cls, hyper_parameters: Mapping[str, Any]) -> Self:
        """The predictor of a run's options; its weights are loaded afterwards."""
        raise NotImplementedError

    @property
    def transform(self) -> Callable[[Image.Image], Tensor]:
        """RGB image -> float32 (3, H, W), as in the model's evaluation."""
        raise NotImplementedError

    def predict_batch(self, pixels: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Any]:
        """The results of transformed images; None where the model's output is not finite.

        Args:
            pixels: float32 (3, H, W) each, on any device.
            sizes: (height, width) of the images before `transform`.
        """
        raise NotImplementedError

    def user_result(self, result: Any) -> Any:
        """What `predict` returns of a result of `predict_batch`."""
        raise NotImplementedError

    def predict(self, images: ImageLike | Iterable[ImageLike], batch_size: int = 32) -> Any:
        """Predicts an image, or several.

        Args:
            images: A path of an image file, a PIL image, an array (H, W, 3) or a tensor (3, H, W), both of uint8 or of
                floats of 0 to 1, not normalized; or a list of them, or a batch (B, H, W, 3) or (B, 3, H, W). Images may
                have any size. Gray and transparent ones are made RGB.
            batch_size: Images at a time, where the model takes several.

        Returns:
            Of one image its result, of several a list of them, in their order; on the CPU.

            - classification: a dict of `label` (name of the most probable class), `probability` (its), and
              `probabilities`, a float32 tensor (C,), in the order of `class_names`;
            - detection: torchvision's dict of tensors, by descending score: `boxes`, float32 (N, 4), x0, y0, x1, y1
              in pixels of the image, `scores`, float32 (N,), `labels`, int64 (N,), 1 to C, whose name is
              `class_names[label - 1]`, and `masks`, bool (N, H, W), where the model has them;
            - segmentation: the class map, a uint8 array (H, W): indices of `class_names`, 255: none.

            None where the model's output is not finite.

        Raises:
            ImageError: A file is not an image or is damaged; an array or tensor is no image.
        """
        given, single = split(images)
        results = []
        step = batch_size if self.batched else 1
        for start in range(0, len(given), step):
            opened = [read_image(one, f"image {start + i}") for i, one in enumerate(given[start : start + step])]
            sizes = [(one.height, one.width) for one in opened]
            results += self.predict_batch([self.transform(one) for one in opened], sizes)
        results = [None if one is None else self.user_result(one) for one in results]
        return results[0] if single else results

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((tensor.device for tensor in self.model.parameters()), torch.device("cpu"))

    def with_settings(self, **settings: Any) -> Self:
        """The same predictor with other settings; None leaves one as it is.

        Raises:
            ValueError: A setting that this task does not have, or out of range.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        for name in given:
            if name not in self.settings:
                takes = f"takes {', '.join(self.settings)}"
                raise ValueError(f"{name}={given[name]}: {self.source} is a {self.noun}, which {takes}")
        return replace(self, **given)

    # to other places

    def save_pretrained(self, folder: str | Path, license: str | None = None) -> Path:
        """Writes config.json, model.safetensors and a model card; `vitgraft.load(folder)` predicts the same.

        Args:
            folder: Made; must not hold anything.
            license: Of the weights, as the hub names it ("apache-2.0").

        Raises:
            CheckpointError: As `vitgraft.predict.exported.save_run`.
        """
        return save_run(self, folder, license).path

    def push_to_hub(self, repo_id: str, license: str | None = None, private: bool | None = None, **options: Any) -> str:
        """Puts the export into a repository of the Hugging Face hub; `vitgraft.load("hf-hub:USER/NAME")` loads it.

        Not by huggingface_hub's mixin, which saves the arguments of the constructor, a module among them here.

        Args:
            repo_id: `USER/NAME`; made where it is missing.
            license: As of `save_pretrained`.
            private: Of a new repository; None: as the account has it.
            **options: `token`, `message` (of the commit), `revision`, `create_pr`.

        Returns:
            The address of the commit.

        Raises:
            CheckpointError: The model can't be exported, or not uploaded.
        """
        with tempfile.TemporaryDirectory() as scratch:
            folder = self.save_pretrained(Path(scratch) / (repo_id.split("/")[-1] or "model"), license)
            return upload(folder, repo_id, private, **options)

    # what is written and shown

    def metadata(self) -> dict[str, Any]:
        """The model as a file of predictions describes it."""
        return {"model": self.source, "weights": self.weights, "preprocessing": asdict(self.preprocessing)}

    def columns(self) -> list[str]:
        """Headings of the CSV file, between `image` and `error`."""
        raise NotImplementedError

    def rows(self, one: Prediction) -> list[list[Any]]:
        """Rows of the CSV file below `columns` for an image that was predicted."""
        raise NotImplementedError

    def entry(self, one: Prediction) -> dict[str, Any]:
        """What the JSON file holds of an image, whether it was predicted or not."""
        raise NotImplementedError

    def counts(self, one: Prediction) -> Counter[str]:
        """What is added up over all images for `summary`, by class name."""
        raise NotImplementedError

    def summary(self, counts: Counter[str]) -> str:
        """The most frequent classes, in one line."""
        raise NotImplementedError

    def describe(self, one: Prediction) -> str:
        """A prediction in one line, for the terminal."""
        return self.summary(self.counts(one))

    def draw(self, folder: Path, stem: str, one: Prediction) -> dict[str, str]:
        """Draws a prediction on its image.

        Args:
            folder: Where to write.
            stem: Of the files' names.
            one: With its image as `kept`.

        Returns:
            Kind of drawing -> file.
        """
        raise NotImplementedError


def preprocessing_options(hyper_parameters: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """The `data_config` of a run as arguments of a preprocessing's dataclass, `input_size` as (height, width)."""
    known = {one.name for one in fields(kind)}
    config = {name: value for name, value in (hyper_parameters.get("data_config") or {}).items() if name in known}
    config = {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}
    if config.get("input_size"):
        config["input_size"] = config["input_size"][-2:]
    return config


def class_names_of(hyper_parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names of a run, or numbers."""
    return tuple(hyper_parameters.get("class_names") or map("class {}".format, range(hyper_parameters["num_classes"])))
