"""What timm asks of a model, once for CSWin and the pyramids of the zoo."""

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import get_device_dtype, global_pool_nlc, to_2tuple, trunc_normal_
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import nn

from vitgraft.models._compile import one_graph_per_size

__all__ = ["Pyramid", "check_stages", "embedding", "init_weights"]

# B batch, H x W token grid, C channels, N tokens.

POOLS = ("", "token", "avg", "max", "avgmax")


class Pyramid(nn.Module):
    """Base of the pyramids: images go through `_embed`, then through one `_stage` after the other, then `_finish`.

    A subclass calls `_set_stages` first and `_make_head` last, and defines the five methods below; what is passed from
    stage to stage is its own affair.

    Args:
        num_classes: Outputs of the classifier, 0 for none.
        global_pool: Pooling before it: "avg", "max", "avgmax", "token" (only with a class token), "" for none.
        drop_rate: Dropout before the classifier.
    """

    num_prefix_tokens = 0
    min_size = 4  # smallest side of an image
    # (second, first): parts of names under which the authors store the same tensor again
    second_names: tuple[tuple[str, str], ...] = ()

    def __init__(self, in_chans: int, num_classes: int, global_pool: str, drop_rate: float):
        super().__init__()
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.feature_info: list[dict[str, Any]] = []
        self._set_pool(global_pool)

    # What a subclass defines

    def _embed(self, x: torch.Tensor) -> Any:
        """Images (B, in_chans, H, W) to what the first stage takes."""
        raise NotImplementedError

    def _stage(self, i: int, state: Any) -> Any:
        """One stage."""
        raise NotImplementedError

    def _map(self, i: int, state: Any, norm: bool) -> torch.Tensor:
        """The output of stage i as a map (B, C, H, W), after the final norm if wanted and if that is one of the map."""
        raise NotImplementedError

    def _finish(self, state: Any) -> torch.Tensor:
        """The output of the last stage to the normed tokens (B, N, num_features) that the classifier pools."""
        raise NotImplementedError

    def _prune(self, stages: int) -> None:
        """Removes the modules of all stages from `stages` on."""
        raise NotImplementedError

    def fit_tensors(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A checkpoint's tensors; those that depend on its image size are resized to this model's.

        Raises:
            ValueError: The image size has to be known and cannot be inferred.
        """
        return tensors

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """As nn.Module's; takes the authors' state dict with what is in it twice, computed, or empty."""
        errors = args[-1]
        for name in list(state_dict):
            first = next((name.replace(second, f) for second, f in self.second_names if second in name), None)
            if first in state_dict and not torch.equal(state_dict[name], state_dict[first]):
                errors.append(f"{name} and {first} differ, and are one tensor here")
            if first in state_dict or name.endswith("relative_position_index") or state_dict[name].numel() == 0:
                del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _set_stages(self, dims: Sequence[int], patch_sizes: Sequence[int], module: str, first: int = 1) -> None:
        """Fills `feature_info` and `num_features`.

        Args:
            dims: Channels of each stage.
            patch_sizes: Patch of each stage, on the map of the stage before.
            module: Name of a stage's module, without its number.
            first: Number of the first stage.
        """
        reductions = itertools.accumulate(patch_sizes, operator.mul)
        self.feature_info = [
            {"num_chs": dim, "reduction": reduction, "module": f"{module}{first + i}"}
            for i, (dim, reduction) in enumerate(zip(dims, reductions, strict=True))
        ]
        self.num_features = dims[-1]

    def _checked(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size of images, or an error if it is too small."""
        if min(size) < self.min_size:
            raise ValueError(
                f"an image of {size[0]} x {size[1]} pixels is too small: {type(self).__name__} needs "
                f"{self.min_size} x {self.min_size} or more"
            )
        return size

    def _as_map(self, x: torch.Tensor, size: tuple[int, int], norm: bool) -> torch.Tensor:
        """Tokens (B, P + H * W, C), prefix tokens in front, to a map (B, C, H, W)."""
        x = x[:, x.shape[1] - size[0] * size[1] :]
        return (self.norm(x) if norm else x).transpose(1, 2).unflatten(2, size)

    def _grid(self, i: int) -> tuple[int, int]:
        """The map of stage i at `img_size`."""
        return tuple(side // self.feature_info[i]["reduction"] for side in self.img_size)

    # timm's interface

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Sets the nominal image size; here nothing depends on it."""
        self.img_size = self._checked(to_2tuple(img_size))

    def _make_head(self, device=None, dtype=None) -> None:
        self.head_hidden_size = self.num_features
        self.head_drop = nn.Dropout(self.drop_rate)
        self.head = (
            nn.Linear(self.num_features, self.num_classes, device=device, dtype=dtype)
            if self.num_classes > 0
            else nn.Identity()
        )

    def _set_pool(self, global_pool: str) -> None:
        pools = [pool for pool in POOLS if pool != "token" or self.num_prefix_tokens]
        if global_pool not in pools:
            raise ValueError(f"global_pool={global_pool!r}: {type(self).__name__} has {', '.join(map(repr, pools))}")
        self.global_pool = global_pool

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Position embeddings, learned tokens and tables of relative positions."""
        ends = ("pos_embed", "cls_token", "rel_pos", "bias_table", "position_bias")
        return {name for name, _ in self.named_parameters() if name.rstrip("1234").endswith(ends)}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Gives the model a new classifier (0 classes: none); the pooling stays unless given."""
        if global_pool is not None:
            self._set_pool(global_pool)
        self.num_classes = num_classes
        self._make_head(**get_device_dtype(self))
        self.head.apply(init_weights)
        for module in (self.head_drop, self.head):
            module.train(self.training)

    def _run(self, block: nn.Module, *args: Any) -> Any:
        """A block, with its activations recomputed in the backward pass where that is asked for."""
        if self.grad_checkpointing and self.training and not torch.jit.is_scripting():
            return checkpoint(block, *args)
        return block(*args)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Runs the stages and returns the maps at the ends of some.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Stages, counted from 0; the last n if int, all if None.
            norm: Apply the final norm to the last stage's map (the others have other widths; RegionViT's is one of the
                regional tokens and never of a map).
            stop_early: Skip the stages behind the last one asked for. If any are, there are no final features: None.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: Return the maps alone, without the final features (B, N, C) in front.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt={output_fmt!r}: use 'NCHW' or 'NHWC'")
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        last = len(self.feature_info) - 1
        depth = (max_index if stop_early else last) + 1
        one_graph_per_size(x)
        state = self._embed(x)
        intermediates = []
        for i in range(depth):
            state = self._stage(i, state)
            if i in take_indices:
                level = self._map(i, state, norm and i == last)
                intermediates.append(level.contiguous() if output_fmt == "NCHW" else level.permute(0, 2, 3, 1))
        if intermediates_only:
            return intermediates
        return self._finish(state) if depth > last else None, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what `forward_intermediates` with these indices does not need; returns the indices."""
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        pruned = max_index < len(self.feature_info) - 1
        if pruned:
            self._prune(max_index + 1)
            self.feature_info = self.feature_info[: max_index + 1]
            self.num_features = self.feature_info[-1]["num_chs"]
        if pruned or prune_norm:
            self.norm = nn.Identity()
        if pruned or prune_head:
            self.reset_classifier(0, "")
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, in_chans, H, W) to normed tokens (B, N, num_features)."""
        one_graph_per_size(x)
        state = self._embed(x)
        for i in range(len(self.feature_info)):
            state = self._stage(i, state)
        return self._finish(state)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Tokens (B, N, num_features) to logits (B, num_classes)."""
        x = global_pool_nlc(x, self.global_pool, self.num_prefix_tokens)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, in_chans, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


def check_stages(**options: Sequence) -> int:
    """The number of stages.

    Raises:
        ValueError: Options of different lengths.
    """
    lengths = {len(values) for values in options.values()}
    if len(lengths) != 1:
        given = ", ".join(f"{name}={tuple(values)}" for name, values in options.items())
        raise ValueError(f"one value per stage is needed: {given}")
    return lengths.pop()


def embedding(*shape: int, device=None, dtype=None) -> nn.Parameter:
    """A learned token, position embedding or table: truncated normal of standard deviation 0.02."""
    return nn.Parameter(trunc_normal_(torch.zeros(*shape, device=device, dtype=dtype), std=0.02))


def init_weights(module: nn.Module) -> None:
    """DeiT's initialization, which all these models' authors use; convolutions keep PyTorch's."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
