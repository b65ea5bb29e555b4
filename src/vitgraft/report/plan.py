"""`vitgraft plan`: what a recipe will cost before it is run, from counted MAC and assumptions that are named.

Counted: the model's MAC of one image. Arithmetic: 1 MAC is 2 FLOP, a training step is 3 forward passes (forward, and
backward with respect to activations and to weights), steps as the loader makes them, the learning rate by the recipe's
rule. Assumed: all else, in `Assumptions`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vitgraft.errors import RecipeError

__all__ = ["GPUS", "Assumptions", "RecipePlan", "count", "find_recipes", "make_plan", "to_json"]

# Peak dense TFLOP/s of matrix products by number format, from the makers' data sheets (SXM versions where there are
# several; tensor cores, without sparsity, accumulating in float32). float32 is the TF32 of the tensor cores.
GPUS = {
    "a100": {"bfloat16": 312.0, "float16": 312.0, "float32": 156.0},
    "h100": {"bfloat16": 989.0, "float16": 989.0, "float32": 495.0},
    "h200": {"bfloat16": 989.0, "float16": 989.0, "float32": 495.0},
    "l4": {"bfloat16": 121.0, "float16": 121.0, "float32": 60.0},
    "rtx4090": {"bfloat16": 165.0, "float16": 165.0, "float32": 83.0},
    "v100": {"float16": 125.0, "float32": 15.7},
}
DTYPES = {"16": "float16", "bf16": "bfloat16", "32": "float32", "64": "float64"}
IMAGENET = {"classes": 1000, "train": 1_281_167, "val": 50_000}


@dataclass(frozen=True)
class Assumptions:
    """What a plan takes for granted.

    Args:
        gpu: one of `GPUS`: its peak is where the achieved rate comes from.
        utilisation: share of the peak that training achieves. 0.16 of an A100 is 50 TFLOP/s. Small transformers get
            a tenth to a third; `vitgraft bench MODEL --mode train --device cuda` measures it as "share of peak".
        tflops: achieved TFLOP/s of one GPU, instead of `gpu` and `utilisation`.
        doubling: speed that is kept whenever the number of GPUs doubles, for the exchange of gradients.
        images: training images; None takes ImageNet-1K's 1,281,167 for a recipe of 1000 classes.
        val_images: images of each validation after an epoch; None takes ImageNet-1K's 50,000 with 1000 classes, else 0.
        images_per_core: images/s that one CPU core reads, decodes and augments for training;
            `python -m vitgraft.data.bench_loader PHOTOS` measures it.
        kilobytes: of an image file; ImageNet-1K's have 110 on average.
        recipe_gpus: GPUs that the recipe's batch size is meant for, where its trainer section doesn't say.
        keep_batch: whether the total batch stays that of the recipe, by smaller batches on more GPUs and accumulation
            on fewer; otherwise the batch of each GPU stays, and the learning rate follows by the recipe's rule.

    Raises:
        ValueError: a value out of range.
    """

    gpu: str = "a100"
    utilisation: float = 0.16
    tflops: float | None = None
    doubling: float = 0.97
    images: int | None = None
    val_images: int | None = None
    images_per_core: float = 100.0
    kilobytes: float = 110.0
    recipe_gpus: int = 8
    keep_batch: bool = True

    def __post_init__(self) -> None:
        wrong = []
        if self.gpu not in GPUS:
            wrong.append(f"gpu={self.gpu!r}: one of {', '.join(GPUS)}, or give tflops")
        for name in ("utilisation", "doubling"):
            if not 0 < getattr(self, name) <= 1:
                wrong.append(f"{name}={getattr(self, name)}: above 0, at most 1")
        for name in ("tflops", "images", "images_per_core", "kilobytes", "recipe_gpus"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                wrong.append(f"{name}={value}: above 0")
        if self.val_images is not None and self.val_images < 0:
            wrong.append(f"val_images={self.val_images}: at least 0")
        if wrong:
            raise ValueError("; ".join(wrong))

    def rate(self, dtype: str) -> float:
        """Achieved FLOP/s of one GPU in a number format.

        Raises:
            ValueError: no peak of this GPU in this format is known.
        """
        if self.tflops is not None:
            return self.tflops * 1e12
        if dtype not in GPUS[self.gpu]:
            raise ValueError(
                f"gpu={self.gpu!r} has no peak for {dtype}, which the recipe's precision asks for; "
                f"it has {', '.join(GPUS[self.gpu])}. Give tflops, or another precision in the recipe"
            )
        return GPUS[self.gpu][dtype] * self.utilisation * 1e12

    def efficiency(self, gpus: int) -> float:
        """Share of `gpus` times one GPU's speed that is left."""
        return self.doubling ** ((gpus - 1).bit_length())


@dataclass(frozen=True)
class Row:
    """A recipe on a number of GPUs.

    Attributes:
        images_per_second: what the GPUs together take from the loader.
        loader_cores: how many CPU cores deliver that.
        hours: wall time where the loader keeps up.
        hours_with_workers: wall time with the recipe's loader processes, a core for each.
        options: words of the command line that make the run so.
    """

    gpus: int
    batch_size: int
    accumulate: int
    total_batch: int
    lr: float
    steps_per_epoch: int
    steps: int
    images_per_second: float
    loader_cores: int
    megabytes_per_second: float
    hours: float
    gpu_hours: float
    workers: int
    hours_with_workers: float
    options: str


@dataclass(frozen=True)
class RecipePlan:
    """What a recipe costs.

    Attributes:
        macs: of the forward pass of one image.
        images: training images of an epoch, before repeated augmentation.
        drawn: images that an epoch trains on, repeated augmentation and full batches considered.
        flops: of the whole training, validation included.
        rate: FLOP/s that one GPU is taken to achieve.
    """

    name: str
    model: str
    params: int
    macs: int
    input_size: tuple[int, int, int]
    dtype: str
    epochs: int
    images: int
    drawn: int
    val_images: int
    flops: float
    rate: float
    lr_rule: str
    rows: tuple[Row, ...]


def make_plan(
    path: str | Path,
    assumptions: Assumptions | None = None,
    gpus: Sequence[int] = (1, 8, 64),
    counts: Callable[[Mapping[str, Any]], tuple[int, int, tuple[int, int, int]]] | None = None,
) -> RecipePlan:
    """Works out a recipe.

    Args:
        path: of the recipe.
        assumptions: what is taken for granted.
        gpus: numbers of GPUs to work it out for.
        counts: what gives (parameters, MAC, input size) of the options of the recipe's model; by default they are
            counted (`count`).

    Raises:
        RecipeError: the recipe can't be read, has no model or no number of epochs, or the assumptions don't fit it.
        ModelSpecError, GraftError: the model can't be built.
    """
    from vitgraft.training.recipe import read_recipe

    assumptions = assumptions or Assumptions()
    recipe = read_recipe(path)
    model, data, trainer = (_options(recipe, section) for section in ("model", "data", "trainer"))
    task = str((recipe.get("model") or {}).get("class_path", "Classification")).rpartition(".")[2]
    if task != "Classification":
        raise RecipeError(
            f"{path}: plan works out classifiers, not a {task}: vitgraft tables --table 3 4 has the MAC of detectors "
            "and segmenters, the recipe's header what it is expected to cost"
        )
    name = model.get("model")
    epochs = trainer.get("max_epochs")
    if not isinstance(name, str):
        raise RecipeError(f"{path}: model.model: the recipe names no model")
    if not isinstance(epochs, int) or epochs < 1:
        raise RecipeError(f"{path}: trainer.max_epochs={epochs}: plan needs a number of epochs, at least 1")
    images, val_images = _images(path, model, assumptions)
    dtype = _dtype(str(trainer.get("precision") or "32-true"))
    try:
        rate = assumptions.rate(dtype)
    except ValueError as error:
        raise RecipeError(f"{path}: {error}") from error
    params, macs, input_size = (counts or count)(model)
    settings = [_settings(path, n, model, data, trainer, images, assumptions) for n in gpus]
    first = settings[0]
    drawn = first["batches"] * first["batch_size"] * first["gpus"]  # without what is left over and fills no batch
    flops = 2.0 * macs * epochs * (3 * drawn + val_images)
    read = epochs * (drawn + val_images)
    rows = [_row(setting, epochs, flops, read, macs, rate, assumptions) for setting in settings]
    rule = "as given"
    if model.get("lr_batch") is not None:
        rule = f"{model.get('lr', 1e-3):g} x total batch / {model['lr_batch']}"
    return RecipePlan(
        Path(path).stem, name, params, macs, input_size, dtype, epochs, images, drawn, val_images, flops, rate, rule,
        tuple(rows),
    )  # fmt: skip


def count(model: Mapping[str, Any]) -> tuple[int, int, tuple[int, int, int]]:
    """Parameters, MAC and input size of the model of a recipe, built without its tensors."""
    from vitgraft.report.count import count_macs, count_params
    from vitgraft.tasks._models import build_model, data_config_of

    classes = model.get("num_classes") or IMAGENET["classes"]
    built = build_model(model["model"], classes, model.get("model_kwargs"), model.get("graft"), device="meta")
    given = model.get("data_config") or {}
    input_size = tuple(given.get("input_size") or data_config_of(built)["input_size"])
    return count_params(built), count_macs(built, input_size), input_size


def _options(recipe: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    values = recipe.get(section) or {}
    return values.get("init_args") or {} if "class_path" in values or "init_args" in values else values


def _images(path: str | Path, model: Mapping[str, Any], assumptions: Assumptions) -> tuple[int, int]:
    imagenet = model.get("num_classes") == IMAGENET["classes"]
    if assumptions.images is None and not imagenet:
        raise RecipeError(f"{path}: images: how many there are to train on is not in the recipe; give --images N")
    images = assumptions.images or IMAGENET["train"]
    default_val = IMAGENET["val"] if assumptions.images is None else 0
    return images, default_val if assumptions.val_images is None else assumptions.val_images


def _dtype(precision: str) -> str:
    return DTYPES.get(precision.split("-")[0], "float32")


def _settings(path, gpus, model, data, trainer, images, assumptions) -> dict[str, Any]:
    """Batch, accumulation and learning rate on so many GPUs."""
    from vitgraft.training.optimization import scale_learning_rates

    batch, accumulate = data.get("batch_size", 64), trainer.get("accumulate_grad_batches", 1)
    devices, nodes = trainer.get("devices"), trainer.get("num_nodes", 1)
    meant = devices * nodes if isinstance(devices, int) and devices > 0 else assumptions.recipe_gpus
    total = batch * meant * accumulate
    if assumptions.keep_batch:
        if total % gpus:
            raise RecipeError(f"{path}: {gpus} GPUs: the total batch of {total} can't be shared out equally")
        # as large as the recipe's on each GPU, and the rest by accumulation
        share = total // gpus
        accumulate = next(n for n in range(1, share + 1) if share % n == 0 and share // n <= batch)
        batch = share // accumulate
    rates = scale_learning_rates(
        model.get("lr", 1e-3), 0.0, 0.0, model.get("lr_batch"), model.get("lr_scale", "lr"), batch, gpus, accumulate
    )
    words = [f"--trainer.devices {min(gpus, 8)}"] + ([f"--trainer.num_nodes {gpus // 8}"] if gpus > 8 else [])
    if batch != data.get("batch_size", 64):
        words.append(f"--data.batch_size {batch}")
    if accumulate != trainer.get("accumulate_grad_batches", 1):
        words.append(f"--trainer.accumulate_grad_batches {accumulate}")
    return {
        "gpus": gpus, "batch_size": batch, "accumulate": accumulate, "total_batch": batch * gpus * accumulate,
        "lr": rates.lr, "batches": _batches(path, data, images, batch, gpus),
        "workers": data.get("workers", 4), "options": " ".join(words),
    }  # fmt: skip


def _batches(path: str | Path, data: Mapping[str, Any], images: int, batch: int, gpus: int) -> int:
    """Batches of an epoch in each process."""
    from vitgraft.data.sampling import TrainOrder

    try:
        return len(TrainOrder(images, 0, batch, gpus, 0, 3 if data.get("repeated_aug") else 1))
    except ValueError as error:
        raise RecipeError(f"{path}: {gpus} GPUs: {error}") from error


def _row(
    setting: dict[str, Any], epochs: int, flops: float, read: int, macs: int, rate: float, assumptions: Assumptions
) -> Row:
    """`read`: images that the loader reads in the whole training."""
    gpus = setting["gpus"]
    cores = max(1, setting["workers"]) * gpus
    speed = rate * gpus * assumptions.efficiency(gpus)
    images_per_second = speed / (6 * macs)
    steps = -(-setting["batches"] // setting["accumulate"])
    hours = flops / speed / 3600
    return Row(
        gpus=gpus,
        batch_size=setting["batch_size"],
        accumulate=setting["accumulate"],
        total_batch=setting["total_batch"],
        lr=setting["lr"],
        steps_per_epoch=steps,
        steps=steps * epochs,
        images_per_second=images_per_second,
        loader_cores=-int(-images_per_second // assumptions.images_per_core),
        megabytes_per_second=images_per_second * assumptions.kilobytes / 1000,
        hours=hours,
        gpu_hours=hours * gpus,
        workers=setting["workers"],
        hours_with_workers=max(hours, read / (cores * assumptions.images_per_core) / 3600),
        options=setting["options"],
    )


def find_recipes(paths: Sequence[str | Path]) -> list[Path]:
    """The recipes among files and folders; of a folder all but the bases, whose names begin with _.

    Raises:
        RecipeError: nothing there.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(one for one in path.glob("*.yaml") if not one.name.startswith("_"))
        if path.is_dir() and not inside:
            raise RecipeError(f"{path}: no recipe (*.yaml) in this folder")
        found += inside if path.is_dir() else [path]
    return found


def to_json(plans: Sequence[RecipePlan], assumptions: Assumptions) -> dict[str, Any]:
    """Everything, as plain values."""
    return {"kind": "plan", "assumptions": asdict(assumptions), "recipes": [asdict(plan) for plan in plans]}
