# SPDX-License-Identifier: Apache-2.0
"""A device whose tensors are computed on the CPU, to find what would mix devices on a GPU."""

import contextlib
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

OTHER = torch.device("lazy", 0)  # a device type of PyTorch that its wheels have no code for


class OtherTensor(torch.Tensor):
    """A tensor that says it is on :data:`OTHER`, with its values on the CPU."""

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=OTHER,
        )

    def __init__(self, values):
        self.values = values

    def __repr__(self):
        return f"OtherTensor({self.values})"

    def tolist(self):
        return self.values.tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError(f"NumPy does not read tensors on {OTHER}")

    __array__ = numpy

    def new_tensor(self, data, dtype=None):
        return OtherTensor(self.values.new_tensor(data, dtype=dtype))

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _dispatch(function, args, kwargs or {})


class _Factories(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _dispatch(function, args, kwargs or {})


def _dispatch(function, args, kwargs):
    name = function.__name__.partition(".")[0]
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    others = [x for x in tensors if isinstance(x, OtherTensor)]
    mixable = [x for x in tensors if not isinstance(x, OtherTensor)]
    # As on a GPU: numbers without dimensions may come from the CPU, but not into lists of tensors,
    # and so may indices, though not its own into a CPU's tensor.
    if name in ("index", "index_put", "index_put_"):
        indexed, _, *values = args
        if others and not isinstance(indexed, OtherTensor):
            raise RuntimeError(f"{function} of a tensor on the CPU and of others on {OTHER}")
        mixable = [x for x in values if isinstance(x, torch.Tensor) and x.device != OTHER]
    if name not in ("cat", "stack"):
        mixable = [x for x in mixable if x.dim()]
    if others and mixable and name not in ("_to_copy", "copy_"):
        raise RuntimeError(f"{function} of tensors on {OTHER} and on the CPU")
    there = bool(others)
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == OTHER.type
        kwargs = kwargs | dict(device="cpu")
    elif name == "copy_":
        there = isinstance(args[0], OtherTensor)

    def values(x):
        return x.values if isinstance(x, OtherTensor) else x

    out = function(*tree_map(values, args), **tree_map(values, kwargs))
    if not there:
        return out
    out = tree_map_only(
        torch.Tensor, lambda x: x if isinstance(x, OtherTensor) else OtherTensor(x), out
    )
    return return_and_correct_aliasing(function, args, kwargs, out)


@contextlib.contextmanager
def other_device():
    """In it, tensors can be made on and moved to :data:`OTHER`, without autocast."""
    make = torch.tensor

    def tensor(data, *, device=None, **kwargs):
        made = make(data, **kwargs)
        return made if device is None or torch.device(device) != OTHER else OtherTensor(made)

    def autocast(device_type, *args, **kwargs):
        assert device_type in ("cpu", OTHER.type)
        return contextlib.nullcontext()

    with (
        _Factories(),
        mock.patch("torch.tensor", tensor),
        mock.patch("torch.autocast", autocast),
    ):
        yield OTHER
