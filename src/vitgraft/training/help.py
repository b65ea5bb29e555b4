"""The help texts of fit, validate and test: what they do, examples that work as they stand, common options."""

_COMMON = """\
options that most runs need (all of them: vitgraft {command} --help-all):
  --config FILE                 the recipe; given again, the later one wins
  --data.root DIR               the images: DIR/train/CLASS/* and DIR/val/CLASS/*; for detection COCO's layout,
                                for segmentation ADE20K's; those two make scenes of digits where there is none
  --data.batch_size N           images per process
  --model.OPTION VALUE          e.g. --model.lr 1e-3   (all: --model.help Classification,
                                or Detection, or Segmentation)
  --trainer.OPTION VALUE        e.g. --trainer.max_epochs 20 --trainer.devices 8 --trainer.precision bf16-mixed
  --seed_everything N           of initial weights, order, augmentation (default: 0)
  --out DIR                     folder of the run (default: runs/NAME OF THE RECIPE)
  --resume                      resume the run in that folder, or start it where there is none (fit)
  --ckpt_path FILE              a checkpoint, a run's folder (its best), or last or best of the run in --out
  --weights raw|ema             which weights of the checkpoint (validate, test)
  --trust                       the checkpoint or run folder may name classes that are not vitgraft's, and so run code
  --checkpoints.every_n_steps N save between the ends of epochs, too
  --checkpoints.early_stopping N
                                end the run after N validations that bring nothing better
  --worst_images N              images with the most mistakes in report.html (default: 8)
  --logger NAME                 beside metrics.csv: tensorboard, wandb, mlflow, or several: '[wandb,tensorboard]'
  --ema.decay D                 average the weights, e.g. 0.9998
  --smoke                       two steps on generated images, nothing written: does the recipe run here?
"""

_TEXTS = {
    "fit": """\
vitgraft fit: train a model from a recipe

examples:
  vitgraft fit --config recipe.yaml                                                     what vitgraft init DIR wrote
  vitgraft fit --config recipes/cifar10/vit_micro_graft.yaml --smoke
  vitgraft fit --config recipes/cifar10/vit_micro_graft.yaml --data.root DIR
  vitgraft fit --config recipes/imagenet1k/graft_swin_tiny.yaml --data.root DIR --trainer.devices 8
  vitgraft fit --config recipes/finetune/swin_tiny.yaml --data.root DIR --model.lr 1e-4
  vitgraft fit --config recipes/digits/mask_rcnn_graft_swin_micro.yaml                  boxes and masks, without data
  vitgraft fit --config recipes/ade20k/upernet_graft_swin_tiny_ade20k.yaml --data.root DIR
  vitgraft fit --config recipes/cifar10/vit_micro_graft.yaml --data.root DIR --resume   after an interruption
""",
    "validate": """\
vitgraft validate: evaluate a checkpoint on the validation set

examples:
  vitgraft validate --ckpt_path runs/NAME                                               on the data of the run
  vitgraft validate --ckpt_path runs/NAME/last.ckpt --data.root DIR
""",
    "test": """\
vitgraft test: evaluate a checkpoint on the test set

examples:
  vitgraft test --ckpt_path runs/NAME --data.test test                                  on the data of the run
  vitgraft test --ckpt_path runs/NAME --data.root DIR
""",
}

HELP = {command: f"{text}\n{_COMMON.format(command=command)}" for command, text in _TEXTS.items()}


def asked(argv: list[str]) -> bool:
    """Whether a command line asks for the short help: by --help, or without arguments."""
    return len(argv) == 1 or bool({"-h", "--help"} & set(argv))


def show_help(argv: list[str]) -> int:
    """Prints the short help; the exit code is 2 without arguments."""
    print(HELP[argv[0]])
    return 2 if len(argv) == 1 else 0
