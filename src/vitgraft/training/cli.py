"""`vitgraft fit | validate | test`: runs from recipes, on pytorch-lightning's LightningCLI.

All mistakes of a recipe and of the command line are told at once, before anything is built or written.
"""

import importlib.util
import logging
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitgraft.errors import (
    CheckpointError,
    DataError,
    GraftError,
    ImageError,
    MissingExtraError,
    ModelSpecError,
    RecipeError,
)

try:
    import pytorch_lightning as pl
    from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
except ImportError as error:
    raise MissingExtraError(error.name or "pytorch-lightning", "train") from error

from vitgraft.data.datamodule import ImageData
from vitgraft.tasks.classification import Classification
from vitgraft.training.check_recipe import find_problems, with_class_paths
from vitgraft.training.evaluation_files import EvaluationFiles
from vitgraft.training.recipe import Request, as_text, merge, parse_words

__all__ = ["COMMANDS", "default_callbacks", "main"]

COMMANDS = ("fit", "validate", "test")
TASKS = (Classification,)
DATA = f"{ImageData.__module__}.{ImageData.__name__}"
TOP = {
    "seed_everything": int,
    "out": str,
    "ckpt_path": str,
    "verbose": bool,
    "return_predictions": bool,
    "weights_only": bool | None,
}
USER_ERRORS = (RecipeError, DataError, ImageError, GraftError, ModelSpecError, CheckpointError, MissingExtraError)

# What a smoke run changes: the recipe's own model, on generated images, two steps, nothing kept
SMOKE = {
    "model": {"init_args": {"pretrained": False, "checkpoint_path": None}},
    "data": {"init_args": {"batch_size": 2, "workers": 0}},
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "num_nodes": 1,
        "strategy": "auto",
        "precision": "32-true",
        "max_epochs": 1,
        "max_steps": -1,
        "limit_train_batches": 2,
        "limit_val_batches": 1,
        "limit_test_batches": 1,
        "accumulate_grad_batches": 1,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
    },
}


def default_callbacks(command: str, config: Any) -> list[pl.Callback]:
    """The callbacks of every run, beside those of the recipe.

    Args:
        command: fit, validate or test.
        config: The parsed configuration of the command.
    """
    return [EvaluationFiles()] if command in ("validate", "test") else []


class VitgraftCLI(LightningCLI):
    """LightningCLI with vitgraft's tasks and data, run folder and defaults."""

    def __init__(self, request: Request, args: list[str]):
        self.request = request
        super().__init__(
            pl.LightningModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            # the hyper-parameters of a checkpoint are those of the class, readable without this command line
            load_from_checkpoint_support=False,
            save_config_kwargs={"overwrite": True},
            args=args,
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=int, default=0, help="Seed of everything random in the run.")
        parser.add_argument("--out", type=str, default="runs/unnamed", help="Folder of the run.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"data": {"class_path": DATA}})
        parser.link_arguments("out", "trainer.default_root_dir")
        for target in ("model.init_args.seed", "data.init_args.seed"):
            parser.link_arguments("seed_everything", target)

    def _parse_ckpt_path(self) -> None:
        """Done before parsing, by `with_checkpoint`."""

    def _set_seed(self) -> None:
        """Everything is seeded where it is drawn; this is for what the user's own callbacks draw."""
        pl.seed_everything(self._get(self.config, "seed_everything"), verbose=False)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        config = self._get(self.config_init, "trainer")
        if config.get("logger") in (None, True):
            kwargs["logger"] = self._loggers() if self.subcommand == "fit" else False
        if config.get("enable_model_summary") is None:
            kwargs["enable_model_summary"] = False
        if self.subcommand != "fit":
            kwargs["enable_checkpointing"] = False
        if "smoke" in self.request.flags:
            kwargs["logger"] = False
        if self.subcommand != "fit" or "smoke" in self.request.flags:
            self.save_config_callback = None
        self.trainer_defaults = {"callbacks": default_callbacks(self.subcommand, self.config[self.subcommand])}
        return super().instantiate_trainer(**kwargs)

    def _loggers(self) -> list[Any]:
        """Metrics as CSV, and for tensorboard where it is installed, directly in the run's folder."""
        from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

        where = {"save_dir": self._get(self.config, "out"), "name": "", "version": ""}
        found = [CSVLogger(**where)]
        if importlib.util.find_spec("tensorboard"):
            found.append(TensorBoardLogger(**where))
        return found

    def after_instantiate_classes(self) -> None:
        if "smoke" in self.request.flags:
            self.datamodule.smoke(self.model.hparams.get("num_classes"))
            keep = [one for one in self.trainer.callbacks if not isinstance(one, EvaluationFiles)]
            self.trainer.callbacks = keep

    def _run_subcommand(self, subcommand: str) -> None:
        """Run by `main`, once all is built."""

    def run(self) -> None:
        super()._run_subcommand(self.subcommand)


def with_checkpoint(recipe: dict[str, Any], path: str | None, command: str) -> dict[str, Any]:
    """The recipe with the model that a checkpoint was saved with, by the checkpoint's own hyper-parameters.

    A run that goes on (fit) keeps its recipe; so does a recipe without a checkpoint file ("last", "best").
    """
    if path in (None, "last", "best"):
        return recipe
    if not Path(path).is_file():
        raise RecipeError(f"ckpt_path={path}: no such file")
    if command == "fit":
        return recipe
    from vitgraft.training.rebuild import read_hyper_parameters

    class_path, options = read_hyper_parameters(path)
    model = {"class_path": class_path, "init_args": options}
    return {**recipe, "model": model}


def main(argv: Sequence[str]) -> int:
    """Runs `vitgraft fit ...` and returns the exit code: 0 done, 2 a wrong request."""
    command = argv[0]
    if "--help-all" in argv[1:]:
        argv = [command, "--help"]
        VitgraftCLI(Request(command), argv)  # prints and exits
    _quiet()
    try:
        with tempfile.TemporaryDirectory(prefix="vitgraft-smoke-") as scratch:
            return _run(command, argv, scratch)
    except USER_ERRORS as error:
        lines = getattr(error, "problems", [str(error)])
        head = f"vitgraft {command}: error: "
        more = f"{len(lines)} things are wrong:\n  " if len(lines) > 1 else ""
        print(head + more + "\n  ".join(lines), file=sys.stderr)
        return 2


def _run(command: str, argv: Sequence[str], scratch: str) -> int:
    request = parse_words(argv)
    recipe = request.recipe()
    recipe = with_checkpoint(recipe, request.values.get("ckpt_path"), command)
    if command in ("validate", "test"):
        recipe.setdefault("verbose", False)  # EvaluationFiles shows more than Lightning's own table
        if Path(str(request.values.get("ckpt_path"))).is_file():
            recipe["out"] = str(Path(request.values["ckpt_path"]).parent)  # the run that it belongs to
    if "out" not in recipe:
        recipe["out"] = f"runs/{Path(request.configs[-1]).stem}" if request.configs else "runs/unnamed"
    over = request.values
    if "smoke" in request.flags:
        recipe, over = merge(recipe, {**SMOKE, "out": scratch}), merge(over, {"out": scratch})
    problems = find_problems(merge(recipe, over), TOP, {"data": DATA})
    if "model" not in merge(recipe, over):
        need = "--config RECIPE" if command == "fit" else "--ckpt_path CHECKPOINT (or --config RECIPE)"
        problems.insert(0, f"no model: give {need}")
    if problems:
        raise RecipeError(problems)
    recipe = with_class_paths(recipe, {"data": DATA})
    words = [*request.words, "--out", over["out"]] if "smoke" in request.flags else request.words
    cli = VitgraftCLI(request, [command, "--config", as_text(recipe), *words])
    cli.run()
    _tell(cli)
    return 0


def _tell(cli: VitgraftCLI) -> None:
    """The closing line: what was reached, and what was written."""
    trainer = cli.trainer
    if not trainer.is_global_zero:
        return
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if not name.startswith("lr")}
    reached = ", ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items()))
    if "smoke" in cli.request.flags:
        print(f"smoke: {trainer.global_step} steps, {reached}; nothing was written")
        return
    done = f"{cli.subcommand}: "
    if cli.subcommand == "fit":
        done += f"{trainer.current_epoch} epochs, {trainer.global_step} updates, "
    print(done + reached)
    out = Path(cli._get(cli.config, "out"))
    if cli.subcommand == "fit" and out.is_dir():
        print(f"written to {out}: {', '.join(sorted(str(p.relative_to(out)) for p in out.rglob('*') if p.is_file()))}")


def _quiet() -> None:
    """Lightning's tips and notes that say nothing of this run."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    for text in (".*does not have many workers.*", ".*tensorboardX.*", ".*isinstance.treespec.*", ".*args parameter.*"):
        warnings.filterwarnings("ignore", text)
