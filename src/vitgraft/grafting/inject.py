"""How a graft is attached to a block: by forward hooks, which leave the class and the `forward` of the block alone.

One hook notes X0 where the block reads it, another adds graft(X0) to the attention's result before the residual sum.
What is noted lives for one call of one block in one thread, so that threads may share a model; while a compiler traces,
it is a plain attribute, which the compiler follows. Under activation checkpointing a block may run again in another
thread, long after the image that it belongs to: its grid then comes with X0 itself.

B batch, P prefix tokens, H x W token grid, C channels.
"""

import copy
import threading
import weakref
from typing import Any

import torch
from torch import nn

from vitgraft.errors import GraftError
from vitgraft.grafting.blocks import BlockSpec, first_argument

__all__ = ["BlockHooks", "GraftHooks", "GridSource", "TokenGrid", "detach_hooks", "has_hooks", "of_this_thread"]

Size = tuple[int, int]

_thread = threading.local()


def of_this_thread(name: str) -> weakref.WeakKeyDictionary:
    """A dictionary that belongs to the running thread, by hooks, and keeps no model alive."""
    mine = _thread.__dict__
    if name not in mine:
        mine[name] = weakref.WeakKeyDictionary()
    return mine[name]


def _backward_task() -> int:
    """The backward pass that runs in this thread; -1 outside of any. torch.utils.checkpoint asks the same way."""
    return torch._C._current_graph_task_id()


# A checkpointed block gets the very tensor again that it got first (unless torch.utils.checkpoint is reentrant).
_TAG = "_graft_grid"
_REENTRANT = (
    "Activation checkpointing runs a block again without its image: call torch.utils.checkpoint.checkpoint(block, ..., "
    "use_reentrant=False) for single blocks, which keeps the grid"
)


def _tag(x: torch.Tensor, source: object, size: Size) -> None:
    if torch.is_grad_enabled():
        # plain numbers: a tensor is saved with its attributes
        setattr(x, _TAG, {**getattr(x, _TAG, {}), id(source): size})


def _tagged(x: torch.Tensor, source: object) -> Size | None:
    return getattr(x, _TAG, {}).get(id(source))


_HANDLES = "_graft_handles"


def _keep(carrier: nn.Module, *handles: Any) -> None:
    """Keeps the handles of hooks with a module, with which they are copied and pickled."""
    carrier.__dict__.setdefault(_HANDLES, []).extend(handles)


def has_hooks(module: nn.Module) -> bool:
    """Whether this file has attached hooks to a module."""
    return _HANDLES in module.__dict__


def detach_hooks(module: nn.Module) -> None:
    """Removes all hooks that this file has attached to a module and its children."""
    for handle in module.__dict__.pop(_HANDLES, ()):
        handle.remove()


class GridSource:
    """Notes the grid of each image: at the module that makes the patches, at the one that receives the image, or at a
    block that is given it.

    Args:
        patch: Side of a patch in pixels where the grid is worked out from the image that `module` receives; None where
            it is that of the map (B, C, H, W) that `module` returns.
        model_id: `id` of the grafted model, by which a copy of the whole differs from a copy of a part.
    """

    def __init__(self, patch: int | None = None, model_id: int | None = None):
        self.patch = patch
        self.model_id = model_id
        self.size: Size | None = None  # of the last image, for compiled blocks
        self.traced: Size | None = None  # the same, where it was noted by compiled code
        self.trained: set[Size] = set()  # sizes that a backward pass may ask for

    def __deepcopy__(self, memo: dict) -> "GridSource":
        if self.model_id not in memo:  # a part of the model is copied: what one copy notes, the other reads
            return self
        copied = memo[id(self)] = type(self)(self.patch, id(memo[self.model_id]))
        copied.size, copied.traced, copied.trained = self.size, self.traced, set(self.trained)
        return copied

    def attach(self, module: nn.Module) -> None:
        """Attaches the hook to the module that makes the patches."""
        if self.patch is None:
            _keep(module, module.register_forward_hook(self.note_output))
        else:
            _keep(module, module.register_forward_pre_hook(self.note_image, with_kwargs=True))

    def note_output(self, module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        self.note((output.shape[-2], output.shape[-1]))

    def note_image(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        image = first_argument(args, kwargs)
        self.note((image.shape[-2] // self.patch, image.shape[-1] // self.patch))

    def note(self, size: Size, alone: bool = False) -> None:
        """Notes the size of the map of an image, `alone` or beside others that no block has used yet."""
        if torch.compiler.is_compiling():
            self.traced = size
            return
        self.size, self.traced = size, None
        if torch.is_grad_enabled():
            self.trained.add(size)
        sizes, task = of_this_thread("sizes"), _backward_task()
        noted_in, noted, used = sizes.get(self, (task, (), False))
        # several images may be read before the first block runs, such as crops of two sizes
        earlier = () if alone or used or noted_in != task else noted
        sizes[self] = (task, tuple(dict.fromkeys((*earlier, size))), False)

    def sizes(self) -> tuple[Size, ...]:
        """Sizes of the map that the tokens of a block may belong to which runs now."""
        if torch.compiler.is_compiling():
            size = self.size if self.traced is None else self.traced
            return () if size is None else (size,)
        if self.traced is not None:
            return (self.traced,)
        task = _backward_task()
        noted_in, noted, _ = of_this_thread("sizes").get(self, (None, (), True))
        if noted_in == task:
            of_this_thread("sizes")[self] = (task, noted, True)
            return noted
        return tuple(self.trained) if task != -1 else ()  # a checkpointed block runs again without its image

    def recall(self, size: Size) -> None:
        """Notes again the size that a checkpointed block ran with."""
        of_this_thread("sizes")[self] = (_backward_task(), (size,), True)


class TokenGrid:
    """The grid of a block's flat tokens (B, P + H * W, C), at each call.

    Args:
        source: Where the size of each image's map is noted.
        ratio: Side of a token in cells of that map; grids are rounded up.
        prefix: Number P of prefix tokens.
    """

    def __init__(self, source: GridSource, ratio: int = 1, prefix: int = 0):
        self.source = source
        self.ratio = ratio
        self.prefix = prefix

    def _cells(self, size: Size) -> Size:
        return -(-size[0] // self.ratio), -(-size[1] // self.ratio)

    def of(self, x: torch.Tensor, tokens: int, block: nn.Module) -> Size:
        """The grid (H, W) of so many tokens of the block's input x.

        Raises:
            GraftError: No image was read before, its map has another number of tokens, or several maps have this one.
        """
        if torch.compiler.is_compiling():
            sizes = self.source.sizes()
            return self._cells(sizes[-1]) if sizes else self._fail(tokens, block, sizes)
        size = _tagged(x, self.source) if _backward_task() != -1 else None
        if size is not None:
            self.source.recall(size)
            return self._cells(size)
        sizes = self.source.sizes()
        fitting = [size for size in sizes if self._fits(size, tokens)]
        if len(fitting) != 1:
            self._fail(tokens, block, sizes)
        _tag(x, self.source, fitting[0])
        return self._cells(fitting[0])

    def note_block(self, block: nn.Module, args: tuple) -> None:
        """Pre-hook of a block whose children ask for the grid: checkpointed, it runs again with this very input."""
        self.of(args[0], args[0].shape[1], block)

    def _fits(self, size: Size, tokens: int) -> bool:
        H, W = self._cells(size)
        return H * W + self.prefix == tokens

    def _fail(self, tokens: int, block: nn.Module, sizes: tuple[Size, ...]) -> Any:
        name = type(block).__name__
        grids = " or ".join(dict.fromkeys(f"{h} x {w}" for h, w in map(self._cells, sizes)))
        if not sizes:
            raise GraftError(
                f"{name} got {tokens} tokens, and the grid of their image is unknown, since no image was read in this "
                "thread: run the model, or its patch projection first. A patch projection that was replaced after "
                "grafting has lost its hook: replace it first, then graft"
            )
        if any(self._fits(size, tokens) for size in sizes):
            hint = _REENTRANT if _backward_task() != -1 else "Run the model on one image size at a time"
            raise GraftError(f"{name} got {tokens} tokens, which may be a {grids} grid. {hint}")
        raise GraftError(
            f"{name} got {tokens} tokens for a {grids} grid with {self.prefix} prefix tokens: a graft needs the whole "
            "grid, and tokens that are added or dropped after grafting are none of it"
        )


class _Call:
    """One call of a block."""

    def __init__(self, block: nn.Module, alone: bool = False):
        self.block = block  # under nn.DataParallel a copy of the one that was grafted
        self.grid: Size | None = None
        self.alone = alone  # of its `forward` without the block's own hooks
        self.x0: torch.Tensor | None = None
        self.added = False


class BlockHooks:
    """The hooks of one block: X0 is noted, then `combine` gives what replaces the attention's result.

    Args:
        block: The block.
        spec: Where X0 is read and the result passes.
    """

    def __init__(self, block: nn.Module, spec: BlockSpec):
        self.block = block
        self.spec = spec
        self.call: _Call | None = None  # while a compiler traces

    def __deepcopy__(self, memo: dict) -> "BlockHooks":
        # a copy of one child alone, as PEFT makes of it, stays a child of this block
        if id(self.block) not in memo:
            return self
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return copied

    def combine(self, call: _Call, result: torch.Tensor) -> torch.Tensor:
        """What replaces the attention's result."""
        raise NotImplementedError

    def note_grid(self, size: Size) -> None:
        """Notes the grid that the block is given."""
        raise NotImplementedError

    def attach(self) -> None:
        """Attaches the hooks to the block and its children, to stay with them."""
        _keep(self.block, *self.register())

    def register(self) -> list[Any]:
        """Registers the hooks of the block and its children, and returns their handles."""
        block, spec = self.block, self.spec
        handles = [block.register_forward_pre_hook(self.begin, with_kwargs=True)]
        if spec.input_from:
            child = block.get_submodule(spec.input_from)
            handles.append(child.register_forward_pre_hook(self.note, with_kwargs=True))
        if spec.output_to:
            child = block.get_submodule(spec.output_to)
            handles.append(child.register_forward_pre_hook(self.add_to_input, with_kwargs=True))
        elif spec.output_of:
            handles.append(block.get_submodule(spec.output_of).register_forward_hook(self.add_to_output))
        # also after an error: nothing may be left of the call; before other hooks, which see what the next block gets
        handles.append(block.register_forward_hook(self.end, prepend=True, always_call=True))
        return handles

    def _open(self, call: _Call) -> _Call:
        if torch.compiler.is_compiling():
            self.call = call
        else:
            of_this_thread("calls")[self] = call
        return call

    def _current(self) -> _Call | None:
        if torch.compiler.is_compiling():
            return self.call
        return of_this_thread("calls").get(self) or self.call

    def begin(self, block: nn.Module, args: tuple, kwargs: dict) -> None:
        """Before the block."""
        x = first_argument(args, kwargs)
        if isinstance(x, torch.fx.Proxy):
            raise GraftError(
                "torch.fx's symbolic tracing (torchvision's create_feature_extractor) runs no hooks, by which grafts "
                "are attached: use timm.create_model(..., features_only=True), forward_intermediates, "
                "vitgraft.DenseFeatures or torch.export"
            )
        if self.spec.grid is not None:
            self.note_grid(self.spec.grid(args, kwargs))
        call = self._open(_Call(block))
        if not self.spec.input_from:
            self._note(call, x)

    def note(self, child: nn.Module, args: tuple, kwargs: dict) -> None:
        """Before the child that X0 is read by. Without a call: `block.forward` runs by itself, as transformers does in
        activation checkpointing."""
        self._note(self._current() or self._open(_Call(self.block, alone=True)), first_argument(args, kwargs))

    def _note(self, call: _Call, x0: torch.Tensor) -> None:
        call.x0 = x0

    def add_to_input(self, child: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Before the child that the attention's result is passed to."""
        call = self._pending()
        if call is None:
            return None
        if args:
            return (self._combine(call, args[0]), *args[1:]), kwargs
        name = next(name for name, value in kwargs.items() if isinstance(value, torch.Tensor))
        return args, {**kwargs, name: self._combine(call, kwargs[name])}

    def add_to_output(self, child: nn.Module, args: tuple, output: Any) -> Any:
        """After the child that returns the attention's result."""
        call = self._pending()
        if call is None:
            return output
        if hasattr(output, "_fields"):  # a named tuple
            return output._replace(**{output._fields[0]: self._combine(call, output[0])})
        if isinstance(output, (tuple, list)):
            return type(output)((self._combine(call, output[0]), *output[1:]))
        return self._combine(call, output)

    def _pending(self) -> _Call | None:
        """The call whose X0 is noted and not yet used."""
        call = self._current()
        if call is None and not self.spec.input_from and "graft" in self.block._modules:
            raise GraftError(
                f"{type(self.block).__name__} reads X0 as its own input, which is noted when it is called as a "
                "module: call block(x), not block.forward(x)"
            )
        return None if call is None or call.x0 is None else call

    def _combine(self, call: _Call, result: torch.Tensor) -> torch.Tensor:
        result = self.combine(call, result)
        call.x0, call.added = None, True
        if call.alone:
            self._close()
        return result

    def _close(self) -> list[_Call | None]:
        """Ends the call, of which nothing is left."""
        # parts of a block that a compiler gave up on run as they are, beside parts that are compiled
        calls = [self.call]
        self.call = None
        if not torch.compiler.is_compiling():
            calls.append(of_this_thread("calls").pop(self, None))
        return calls

    def end(self, block: nn.Module, args: tuple, output: Any) -> Any:
        """After the block, also where it raised an error (then `output` is None)."""
        if output is not None and self.spec.output_of == "":
            output = self.add_to_output(block, args, output)
        calls = self._close()
        if output is not None and not any(call is not None and call.added and call.x0 is None for call in calls):
            self.fail(calls[-1] or calls[0])
        return output

    def fail(self, call: _Call | None) -> None:
        """Raises the error of a block that ran without its graft."""
        if "graft" in self.block._modules:
            raise GraftError(f"{type(self.block).__name__}: its graft was not used. {self.reason(call)}")

    def reason(self, call: _Call | None) -> str:
        """Why the attention's result was not met."""
        start, spec = self.spec.input_from or "the block's input", self.spec
        target = f"calls {spec.output_to}" if spec.output_of is None else f"calls {spec.output_of}"
        if call is None or (call.x0 is None and not call.added):
            return (
                f"Its forward does not call {start}, where X0 is read. A child that was replaced after grafting has "
                "lost its hooks: replace it first, then graft"
            )
        again = " again" if call.added else ""
        return f"Its forward calls {start}{again} and never {target} afterwards, where the graft is added"


class GraftHooks(BlockHooks):
    """Adds the child `graft` of a block, if it has one, to its attention's result.

    Blocks without a graft get the hooks too: torch.compile does not look whether the children of a module have hooks
    when it takes code that it compiled for another module of the class. (Nor would a checkpointed first block keep its
    grid.)

    Args:
        grid: Grid of flat tokens; None where the block's tokens are a map.
    """

    def __init__(self, block: nn.Module, spec: BlockSpec, grid: TokenGrid | None = None):
        super().__init__(block, spec)
        self.grid = grid

    def note_grid(self, size: Size) -> None:
        if self.grid is not None:
            self.grid.source.note(size, alone=True)

    def _note(self, call: _Call, x0: torch.Tensor) -> None:
        call.x0 = x0
        if self.grid is not None:
            call.grid = self.grid.of(x0, x0.shape[1] if x0.dim() == 3 else x0.shape[-1], call.block)

    def combine(self, call: _Call, result: torch.Tensor) -> torch.Tensor:
        x, spec = call.x0, self.spec
        if "graft" not in call.block._modules:
            return result
        if spec.to_grid is not None:
            x = spec.to_grid(call.block, x)
        if x.dim() == 3:
            H, W = call.grid
            x = x[:, x.shape[1] - H * W :].reshape(x.shape[0], H, W, x.shape[2])
        elif spec.layout == "nchw" and spec.to_grid is None:
            x = x.permute(0, 2, 3, 1)
        # autocast may leave another precision, which the sum would spread
        return self._add(call.block, call.block.graft(x).to(result.dtype), result)

    def _add(self, block: nn.Module, g: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        """The attention's result plus the graft's (B, H, W, C), in the result's layout."""
        spec = self.spec
        if spec.from_grid is not None:
            return result + spec.from_grid(block, g, result)
        if result.dim() == 3:
            g = g.flatten(1, 2)
            prefix = result.shape[1] - g.shape[1]
            if prefix:
                return torch.cat((result[:, :prefix], result[:, prefix:] + g), dim=1)
            return result + g
        return result + (g.permute(0, 3, 1, 2) if spec.layout == "nchw" else g)
