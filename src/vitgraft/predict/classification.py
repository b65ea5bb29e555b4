"""Predictions of classifiers: the probability of each class."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from vitgraft.data.transforms import Preprocessing, Transform, eval_transform, model_preprocessing
from vitgraft.predict.base import Prediction, Predictor, class_names_of, preprocessing_options
from vitgraft.terminal import short_name
from vitgraft.weights.create import build_model

__all__ = ["Classifier"]


@dataclass
class Classifier(Predictor):
    """A `Predictor` of classes: `predict` returns label and probabilities of each image.

    Attributes:
        model: Images (B, 3, H, W) -> logits (B, C).
        top: Classes that are written and shown for each image.
    """

    top: int = 5

    task: ClassVar = "classification"
    noun: ClassVar = "classifier"
    kind: ClassVar = "predictions"
    options: ClassVar = ("model", "num_classes", "model_kwargs", "graft")
    settings: ClassVar = ("top",)
    draws: ClassVar = False
    batched: ClassVar = True
    memory_hint: ClassVar = "a smaller --batch-size"

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"top={self.top}: at least 1")

    @classmethod
    def of_run(cls, hyper_parameters: Mapping[str, Any]) -> Self:
        """The classifier of a run's options; its weights are loaded afterwards."""
        h = hyper_parameters
        model = build_model(h["model"], h["num_classes"], h.get("model_kwargs"), h.get("graft"))
        options = preprocessing_options(h, Preprocessing)
        return cls(model, model_preprocessing(model, **options), class_names_of(h), hyper_parameters=h)

    @property
    def transform(self) -> Transform:
        """RGB image -> float32 (3, H, W), as in the model's evaluation."""
        return eval_transform(self.preprocessing)

    @torch.inference_mode()
    def predict_batch(self, pixels: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[np.ndarray | None]:
        """Float32 (C,) probabilities of each image; None where they are not finite."""
        probabilities = self.model(torch.stack(list(pixels)).to(self.device)).float().softmax(1).cpu().numpy()
        return [one if np.isfinite(one).all() else None for one in probabilities]

    def user_result(self, result: np.ndarray) -> dict[str, Any]:
        """`label`, `probability` and `probabilities` (C,)."""
        best = int(result.argmax())
        return {
            "label": self.class_names[best],
            "probability": float(result[best]),
            "probabilities": torch.from_numpy(result),
        }

    def best(self, one: Prediction) -> list[tuple[int, str, float]]:
        """(index, name, probability) of the `top` classes, by descending probability."""
        if one.result is None:
            return []
        order = np.argsort(-one.result, kind="stable")[: self.top]
        return [(int(i), self.class_names[i], float(one.result[i])) for i in order]

    def metadata(self) -> dict[str, Any]:
        """The model as a file of predictions describes it."""
        return {**super().metadata(), "top": min(self.top, len(self.class_names))}

    def columns(self) -> list[str]:
        """class_1, probability_1, class_2, ..."""
        ranks = range(1, min(self.top, len(self.class_names)) + 1)
        return [f"{name}_{rank}" for rank in ranks for name in ("class", "probability")]

    def rows(self, one: Prediction) -> list[list[Any]]:
        """One row for each image."""
        return [[cell for _, name, p in self.best(one) for cell in (name, f"{p:.6g}")]]

    def entry(self, one: Prediction) -> dict[str, Any]:
        """`predictions`, by descending probability."""
        return {
            "predictions": [
                {"index": index, "class": name, "probability": float(f"{p:.6g}")} for index, name, p in self.best(one)
            ]
        }

    def counts(self, one: Prediction) -> Counter[str]:
        """Images of each class."""
        return Counter([short_name(self.best(one)[0][1])])

    def summary(self, counts: Counter[str]) -> str:
        """Images of the most frequent classes."""
        return ", ".join(f"{name} {count}" for name, count in counts.most_common(5))

    def describe(self, one: Prediction) -> str:
        """The most probable classes."""
        return ", ".join(f"{short_name(name)} {p:.1%}" for _, name, p in self.best(one))
