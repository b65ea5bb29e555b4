"""The models of the study: a backbone, and what a configuration of the grid puts on it."""

from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitgraft import graft, train_grafts_only
from vitgraft.errors import CommandError
from vitgraft.layers.attention import WindowAttention
from vitgraft.randomness import derive
from vitgraft.tools.count import count_params

__all__ = ["build_model", "count_trained", "matched_ratio"]

Options = dict[str, Any]
LORA_TARGETS = r".*blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])"


class BiasedAttention(WindowAttention):
    """Full attention with a relative position bias, in place of a ViT block's attention.

    It is window attention with one window, on token sequences.
    """

    def forward(self, x: torch.Tensor, attn_mask: None = None, **_: Any) -> torch.Tensor:
        """(B, H * W, C) -> (B, H * W, C)"""
        grid = x.view(x.shape[0], *self.window_size, x.shape[2])
        return super().forward(grid).flatten(1, 2)


class Adapter(nn.Module):
    """A residual FFN that computes the identity at first: in place of a block's `ls1`, behind its attention."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, C) -> (B, N, C)"""
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm(x))))


def count_trained(model: nn.Module) -> int:
    """Number of parameters that train."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _backbone(arguments: Options, seed: int, mlp_ratio: float | None = None) -> nn.Module:
    arguments = dict(arguments) if mlp_ratio is None else {**arguments, "mlp_ratio": mlp_ratio}
    name, std = arguments.pop("name", None), arguments.pop("pos_embed_std", None)
    torch.manual_seed(derive(seed, "model"))
    if name is not None:
        return timm.create_model(name, **arguments, graft={"blocks": []})
    model = VisionTransformer(class_token=False, global_pool="avg", **arguments)
    if std is not None:
        nn.init.normal_(model.pos_embed, std=std)
    return model


def matched_ratio(options: Options, configurations: dict[str, Options]) -> float | None:
    """The ratio of the feed-forward networks with which a model has the parameters of the one that it is matched with.

    None: it is matched with none.
    """
    if "match" not in options:
        return None
    target = count_params(build_model(configurations[options["match"]], configurations))
    plain, wider = (count_params(_backbone(options["model"], 0, ratio)) for ratio in (4.0, 5.0))
    return 4 + (target - plain) / (wider - plain) + 1e-6  # timm rounds down


def build_model(
    options: Options, configurations: dict[str, Options], seed: int = 0, start: dict[str, torch.Tensor] | None = None
) -> nn.Module:
    """The model of a configuration.

    Args:
        options: Its options in the grid.
        configurations: Those of its block, by name: the sizes of some depend on others.
        seed: Of the initial weights.
        start: Weights of the backbone to begin with; its classifier is left out.

    Raises:
        CommandError: LoRA, and PEFT is not installed.
    """
    model_options = options["model"]
    ratio = matched_ratio(options, configurations)
    if ratio is not None:  # parameters of equal shape begin equal
        model = _backbone(model_options, seed, ratio)
        _load_equal(model, _backbone(model_options, seed).state_dict())
    elif "name" in model_options and options["graft"].get("blocks") != []:
        torch.manual_seed(derive(seed, "model"))
        arguments = {name: value for name, value in model_options.items() if name != "name"}
        model = timm.create_model(model_options["name"], **arguments, graft=options["graft"])
        _load_equal(model, _backbone(model_options, seed).state_dict())
    else:
        model = _backbone(model_options, seed)
    if start is not None:
        _load_equal(model, {name: value for name, value in start.items() if not name.startswith("head.")})
    if options.get("position_bias"):
        for block in model.blocks:
            _bias(block, model.patch_embed.grid_size)
    if options.get("graft") is not None and "name" not in model_options:
        graft(model, options["graft"])
    if "adapter" in options:
        _add_adapters(model, build_model(configurations[options["adapter"]], configurations))
    if "lora" in options:
        return _add_lora(model, count_trained(build_model(configurations[options["lora"]], configurations)))
    if options.get("frozen"):
        train_grafts_only(model)
    return model


def _load_equal(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Loads what has the name and the shape of a parameter of the model."""
    own = model.state_dict()
    model.load_state_dict({n: w for n, w in weights.items() if n in own and w.shape == own[n].shape}, strict=False)


def _bias(block: nn.Module, size: tuple[int, int]) -> None:
    old = block.attn
    block.attn = BiasedAttention(old.qkv.in_features, old.num_heads, size)
    _load_equal(block.attn, old.state_dict())


def _add_adapters(model: nn.Module, grafted: nn.Module) -> None:
    """An FFN as large as the graft on every block that has one in `grafted`."""
    for block, like in zip(model.blocks, grafted.blocks, strict=True):
        if hasattr(like, "graft"):
            dim = block.attn.qkv.in_features
            block.ls1 = Adapter(dim, round((count_params(like.graft) - 3 * dim) / (2 * dim + 1)))


def _add_lora(model: nn.Module, trained: int) -> nn.Module:
    """LoRA (PEFT's) on all linear layers of the blocks, with as many parameters that train, the classifier included."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise CommandError("LoRA needs PEFT: pip install peft") from error
    per_rank = sum(
        layer.in_features + layer.out_features
        for block in model.blocks
        for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
    )
    rank = max(1, round((trained - count_params(model.head)) / per_rank))
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_TARGETS, modules_to_save=["head"])
    return get_peft_model(model, config)
