"""`vitgraft fit | validate | test`: runs from recipes, on pytorch-lightning's LightningCLI.

All errors of a recipe and of the command line are reported at once, before anything is built or written. That needs the
merged values before jsonargparse, which stops at the first error, and a recipe may have a `base`: so both are merged by
`vitgraft.training.recipe`, and LightningCLI parses the result.
"""

import contextlib
import json
import logging
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vitgraft.atomic import check_writable, disk_error, path_error
from vitgraft.data.loader import worker_failure
from vitgraft.errors import MissingExtraError, RecipeError, TrainingError, VitgraftError
from vitgraft.weights.files import read_run, resolve_checkpoint

try:
    import pytorch_lightning as pl
    from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
    from pytorch_lightning.utilities.exceptions import MisconfigurationException
except ImportError as error:
    raise MissingExtraError(error.name or "pytorch-lightning", "train") from error

from vitgraft.data.classification import ImageData
from vitgraft.options import WholeNumber
from vitgraft.terminal import note, printable
from vitgraft.training import loggers, run_folder
from vitgraft.training.callbacks.checkpoint import Checkpoints, Interrupted
from vitgraft.training.callbacks.ema import AveragedWeights, ChosenWeights
from vitgraft.training.callbacks.epoch_loss import EpochLoss
from vitgraft.training.callbacks.evaluation_files import EvaluationFiles
from vitgraft.training.callbacks.guards import Guards, is_out_of_memory, lost_process
from vitgraft.training.callbacks.run_report import RunReport
from vitgraft.training.callbacks.worst_images import WorstImages
from vitgraft.training.check_recipe import recipe_errors, resolve, with_class_paths
from vitgraft.training.loggers import LoggerName
from vitgraft.training.recipe import merge, parse_arguments, read_recipes, split_arguments, with_init_args
from vitgraft.untrusted import CLASSES, check_class_paths

__all__ = ["main"]

WEIGHTS = Literal["raw", "ema"] | None
LOGGERS = LoggerName | list[LoggerName] | None
# Sections of a recipe beside model, data and trainer: the callbacks of every run
PARTS = {"checkpoints": Checkpoints, "ema": AveragedWeights, "guards": Guards}
DATA = f"{ImageData.__module__}.{ImageData.__name__}"  # of a recipe that names neither data nor a task with its own
TOP = {
    "seed_everything": int,
    "out": str,
    "ckpt_path": str | None,
    "weights": WEIGHTS,
    "verbose": bool,
    "logger": LOGGERS,
    "worst_images": WholeNumber,
    "weights_only": Literal[True] | None,
}

# What a smoke run changes: the recipe's own model, on generated images, two steps, nothing kept
SMOKE = {
    "checkpoints": {"enabled": False},
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
        "log_every_n_steps": 1,
        "logger": False,
    },
}


class RunRecord(SaveConfigCallback):
    """Keeps in the run's folder the configuration and, once they are known, what the task took from the data and the
    names of the run at other services."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if ids := loggers.run_ids(trainer.loggers):
            run_folder.add_to_record(trainer.default_root_dir, loggers=ids)
        if weights := pl_module.hparams.get("class_weights"):
            named = dict(zip(pl_module.class_names, weights, strict=True))
            run_folder.add_to_record(trainer.default_root_dir, class_weights=named)


class VitgraftCLI(LightningCLI):
    """LightningCLI with vitgraft's tasks and data, run folder and defaults.

    Args:
        args: The sub-command and its options.
        is_smoke: Two steps on generated images; nothing is written.
    """

    def __init__(self, args: list[str], is_smoke: bool = False):
        self.is_smoke = is_smoke
        super().__init__(
            pl.LightningModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            # the hyper-parameters of a checkpoint are those of the class, readable without this command line
            load_from_checkpoint_support=False,
            save_config_callback=RunRecord,
            save_config_kwargs={"overwrite": True},
            args=args,
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--seed_everything", type=int, default=0, help="Seed of everything random in the run.")
        parser.add_argument("--out", type=str, default="runs/unnamed", help="Folder of the run.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--weights", type=WEIGHTS, default=None, help="Weights of the checkpoint: raw or ema.")
        parser.add_argument("--worst_images", type=WholeNumber, default=8, help="Images in report.html; 0: none.")
        parser.add_argument(
            "--logger", type=LOGGERS, default=None, help="Beside metrics.csv: tensorboard, wandb, mlflow."
        )
        for name, part in PARTS.items():
            parser.add_lightning_class_args(part, name)
        parser.link_arguments("out", "trainer.default_root_dir")
        for target in ("model.init_args.seed", "data.init_args.seed"):
            parser.link_arguments("seed_everything", target)

    def _parse_ckpt_path(self) -> None:
        """Done before parsing, by `_run`."""

    def _set_seed(self) -> None:
        """Everything is seeded where it is drawn; this is for what the user's own callbacks draw."""
        pl.seed_everything(self._get(self.config, "seed_everything"), verbose=False)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        config = self._get(self.config_init, "trainer")
        if config.get("logger") in (None, True):
            is_fit = self.subcommand == "fit"
            kwargs["logger"] = is_fit and loggers.make(self._get(self.config, "logger"), self._get(self.config, "out"))
        if config.get("log_every_n_steps") is None:
            kwargs["log_every_n_steps"] = 10
        if config.get("enable_model_summary") is None:
            kwargs["enable_model_summary"] = False
        callbacks = [EpochLoss()]
        if self.subcommand != "fit":
            self.save_config_callback = None
            callbacks = [ChosenWeights(self._get(self.config, "weights"))]
        if not self.is_smoke:
            worst = WorstImages(self._get(self.config, "worst_images"))
            callbacks += [worst, RunReport(worst) if self.subcommand == "fit" else EvaluationFiles(worst)]
        self.trainer_defaults = {"callbacks": callbacks}
        return super().instantiate_trainer(**kwargs)

    def after_instantiate_classes(self) -> None:
        if self.is_smoke:
            weights = self.model.hparams.get("class_weights")
            given = len(weights) if isinstance(weights, list) else None
            self.datamodule.smoke(self.model.hparams.get("num_classes") or given)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run by `main`, once all is built."""

    def run(self) -> None:
        super()._run_subcommand(self.subcommand)


def with_data_of_run(recipe: dict[str, Any], checkpoint: str, trust: bool = False, known: Any = None) -> dict[str, Any]:
    """The recipe with the data section that the checkpoint's run had, where it has none. Of a checkpoint without its
    run's record the image sizes are taken; a classifier's are in its data_config. `trust`, `known`: of `read_run`."""
    folder = Path(checkpoint).parent
    task = recipe.get("model", {}).get("class_path", "").rpartition(".")[2]
    if "data" in recipe or task == "":
        return recipe
    section = (run_folder.read_record(folder).get("recipe") or {}).get("data")
    if isinstance(section, dict):
        record = folder / run_folder.RECORD
        check_class_paths(f"{record}: recipe.data", section, trust, known)
        note(f"data options: those of the run ({record}), under those of the command line")
        return {**recipe, "data": with_init_args(section)}
    if task == "Classification":
        return recipe
    data = resolve(default_data(recipe["model"]), pl.LightningDataModule)
    sizes = data.options_of(recipe["model"]["init_args"].get("data_config") or {})
    known = ", ".join(f"{name} {value}" for name, value in sizes.items())
    note(
        f"no run.json beside {checkpoint}: of the data options only the image sizes are known "
        f"({known or 'none'}), under those of the command line"
    )
    return {**recipe, "data": {"class_path": f"{data.__module__}.{data.__name__}", "init_args": sizes}}


def default_data(model: Any) -> str:
    """Class path of the data that a recipe's model section takes where the recipe names none."""
    path = model.get("class_path") if isinstance(model, dict) else model
    cls = resolve(path, pl.LightningModule) if isinstance(path, str) else None
    return getattr(cls, "DATA", DATA)


def main(argv: Sequence[str]) -> int:
    """Runs `vitgraft fit ...` and returns the exit code: 0 done, 1 a run that had to stop, 2 a request with errors.

    A signal that ended a run leaves by `Interrupted`, with the code 128 + its number. Ctrl-C does so everywhere:
    Lightning ends with code 1 on a KeyboardInterrupt.
    """
    before = None
    # ignored in background jobs of a shell: they are not to be interrupted
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        before = signal.signal(signal.SIGINT, _interrupt)
    try:
        return _main(argv)
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def _interrupt(number: int, frame: Any) -> None:
    raise Interrupted(number)


def _main(argv: Sequence[str]) -> int:
    command = argv[0]
    if "--help-all" in argv[1:]:
        VitgraftCLI([command, "--help"])  # prints and exits
    _quiet()
    try:
        if any(map(_asks, argv[1:])):
            _answer(command, argv[1:])
        with tempfile.TemporaryDirectory(prefix="vitgraft-smoke-") as scratch:
            return _run(command, argv, scratch)
    except TrainingError as error:
        print(printable(f"vitgraft {command}: stopped: {error}"), file=sys.stderr)
        return 1
    except VitgraftError as error:
        lines = getattr(error, "errors", [str(error)])
        head = "error: " if len(lines) == 1 else f"{len(lines)} errors:\n  "
        print(printable(f"vitgraft {command}: {head}" + "\n  ".join(lines)), file=sys.stderr)
        return 2
    except MisconfigurationException as error:  # options that Lightning refuses when it has the data
        print(printable(f"vitgraft {command}: error: {error}"), file=sys.stderr)
        return 2
    except Exception as error:
        if unusable := path_error(error):
            print(printable(f"vitgraft {command}: error: {unusable}"), file=sys.stderr)
            return 2
        if is_out_of_memory(error):
            reason = "\n".join(getattr(error, "__notes__", [])) or "out of memory"
            reason += f"\n({str(error).splitlines()[0]})"
        elif refused := disk_error(error):
            reason = f"could not write: {refused}. Make room or writable, then continue a run with --resume"
        else:
            reason = worker_failure(error) or lost_process(error)
        if reason is None:
            raise
        print(printable(f"vitgraft {command}: stopped: {reason}"), file=sys.stderr)
        return 1


def _name(configs: Sequence[str]) -> str:
    """Of a run: that of its last recipe."""
    return Path(configs[-1]).stem if configs else "unnamed"


def _asks(argument: str) -> bool:
    """Whether an argument asks jsonargparse to print something: `--print_config`, `--model.help CLASS`."""
    name = argument.partition("=")[0]
    return name == "--print_config" or (name.startswith("--") and name.endswith(".help"))


def _answer(command: str, argv: Sequence[str]) -> None:
    """Lets jsonargparse print the configuration or the help of a class, and exits."""
    arguments, rest = split_arguments(argv)
    for name in CLASSES:  # so that jsonargparse knows it by its bare name
        with contextlib.suppress(MissingExtraError):
            resolve(name, pl.LightningModule)
    for i, argument in enumerate(rest):
        option, _, value = argument.partition("=")
        value = value or (rest[i + 1] if i + 1 < len(rest) else "")
        if option in ("--model.help", "--data.help"):
            known = [name for name in CLASSES if name.endswith("Data") == (option == "--data.help")]
            if value not in known and "." not in value:
                raise RecipeError([f"{option}={value}: give one of {', '.join(known)}, or the import path of a class"])
        elif option.endswith(".help") and option.count(".") == 1:
            raise RecipeError([f"{option}: there is --model.help and --data.help; --help-all lists all other options"])
    recipe = read_recipes(arguments.config)
    recipe.setdefault("out", f"runs/{_name(arguments.config)}")
    recipe = with_class_paths(recipe, {"data": default_data(recipe.get("model"))})
    VitgraftCLI([command, "--config", json.dumps(recipe), *rest])


def _run(command: str, argv: Sequence[str], scratch: str) -> int:
    arguments, over = parse_arguments(argv[1:])
    recipe = read_recipes(arguments.config)
    own_out = f"runs/{_name(arguments.config)}"
    given = over.get("ckpt_path")
    if given is not None:
        out = over.get("out") or recipe.get("out") or own_out
        path = Path(out) / f"{given}.ckpt" if given in ("last", "best") else given
        over["ckpt_path"] = str(resolve_checkpoint(path, "ckpt_path").path)
    if command != "fit":  # a resumed run keeps its recipe
        recipe.setdefault("verbose", False)  # EvaluationFiles shows more than Lightning's own table
        if given is not None:
            known = merge(recipe, over)  # classes that the user names are his own
            checkpoint, _ = read_run(over["ckpt_path"], arguments.trust, known)
            recipe["model"] = {"class_path": checkpoint["task"], "init_args": checkpoint["hyper_parameters"]}
            recipe = with_data_of_run(recipe, over["ckpt_path"], arguments.trust, known)
            recipe["out"] = str(Path(over["ckpt_path"]).parent)  # the run that it belongs to
    recipe.setdefault("out", own_out)
    if arguments.smoke:
        recipe, over = merge(recipe, SMOKE), {**over, "out": scratch}
    recipe = merge(recipe, over)
    default = {"data": default_data(recipe.get("model"))}
    errors = recipe_errors(recipe, TOP, default, PARTS)
    if "model" not in recipe:
        need = "--config RECIPE" if command == "fit" else "--ckpt_path CHECKPOINT (or --config RECIPE)"
        errors.insert(0, f"no model: give {need}")
    errors += [
        f"{name}={value!r}: not in UTF-8, which a recipe can't hold; rename it, or give a link to it"
        for name, value in run_folder.flat(recipe).items()
        if isinstance(value, str) and not value.isascii() and value != value.encode(errors="replace").decode()
    ]
    if errors:
        raise RecipeError(errors)
    recipe = with_class_paths(recipe, default)
    if arguments.smoke:
        return _launch(command, recipe, is_smoke=True)
    if command != "fit":
        with run_folder.nothing_half_written(recipe["out"]):
            check_writable(recipe["out"])
            return _launch(command, recipe)
    with run_folder.locked(recipe["out"]), run_folder.nothing_half_written(recipe["out"]):
        last = run_folder.begin(recipe["out"], recipe, arguments.resume, _name(arguments.config), arguments.trust)
        if last is not None:
            recipe["ckpt_path"] = str(last)
        return _launch(command, recipe)


def _launch(command: str, recipe: dict[str, Any], is_smoke: bool = False) -> int:
    """Builds a run from checked options, and runs it."""
    try:
        cli = VitgraftCLI([command, "--config", json.dumps(recipe)], is_smoke)
    except (MisconfigurationException, ValueError, TypeError) as error:  # what only building it shows
        raise error if isinstance(error, VitgraftError) else RecipeError(str(error)) from error
    cli.run()
    if command == "fit" and not cli.trainer.global_step:
        raise TrainingError("not one update was made: set max_epochs, max_steps and limit_train_batches above 0")
    _print_summary(cli)
    return 0


def _print_summary(cli: VitgraftCLI) -> None:
    """The last lines: metrics, and what was written."""
    trainer = cli.trainer
    if not trainer.is_global_zero:
        return
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if not name.startswith("lr")}
    values = ", ".join(f"{name} {value:.4g}" for name, value in sorted(metrics.items()))
    if cli.is_smoke:
        print(f"smoke: {trainer.global_step} steps, {values}; nothing was written")
        return
    if cli.subcommand != "fit":
        print(f"{cli.subcommand}: {values}")
        return
    print(", ".join(filter(None, [f"fit: {trainer.current_epoch} epochs, {trainer.global_step} updates", values])))
    out = Path(cli._get(cli.config, "out"))
    if not any(name.startswith("val/") for name in metrics) and not (out / "best.ckpt").exists():
        names = ("check_val_every_n_epoch", "limit_val_batches", "max_steps")
        options = ", ".join(f"trainer.{name}={getattr(trainer, name)}" for name in names)
        print(f"not validated, so there is no best.ckpt ({options})")
    if out.is_dir():
        files = sorted(path.name + "/" * path.is_dir() for path in out.iterdir())
        note(f"written to {out}: {', '.join(name for name in files if name != run_folder.LOCK)}")


def _quiet() -> None:
    """Silences tips and notes of Lightning that do not concern the run."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    for text in (".*does not have many workers.*", ".*tensorboardX.*", ".*isinstance.treespec.*", ".*args parameter.*"):
        warnings.filterwarnings("ignore", text)
