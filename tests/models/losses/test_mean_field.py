# SPDX-License-Identifier: Apache-2.0
import importlib
import math
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import skimage.data
import torch
import torch.nn.functional as F

from mal_mmdet.models.losses import mean_field, pairwise_weights
from tests.conftest import ROOT

# The package has a function of that name.
MODULE = importlib.import_module("mal_mmdet.models.losses.mean_field")


def naive_weights(images, zeta, omega, k):
    """K as a dense matrix over the pixels of each crop, pixel by pixel."""
    batch, _, height, width = images.shape
    matrix = torch.zeros(batch, height * width, height * width, dtype=images.dtype)
    r = k // 2
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                for ny in range(max(y - r, 0), min(y + r + 1, height)):
                    for nx in range(max(x - r, 0), min(x + r + 1, width)):
                        distance = (images[b, :, y, x] - images[b, :, ny, nx]).square().sum()
                        weight = omega * math.exp(-distance / (2 * zeta**2))
                        same = ny == y and nx == x
                        matrix[b, y * width + x, ny * width + nx] = 1 if same else weight
    return matrix


def naive_mean_field(probs, box, images, zeta, omega, k, steps, eps):
    """The method as stated: both labels, a dense K, ``eps`` in the denominator."""
    matrix = naive_weights(images, zeta, omega, k)
    t = box.flatten(1)
    x = (probs * box).flatten(1).clamp(0.1, 0.9)
    for _ in range(steps):
        a1 = torch.exp((matrix @ x.log()[..., None])[..., 0]) * t
        a0 = torch.exp((matrix @ (1 - x).log()[..., None])[..., 0])
        x = (a1 / (a0 + a1 + eps)).clamp(0.1, 0.9)
    return (x > 0.5).view_as(probs)


@pytest.fixture
def interpreted(monkeypatch):
    """The kernel for GPUs, run by Triton's interpreter on the CPU."""
    module = pytest.importorskip("mal_mmdet.models.losses.mean_field_triton", reason="no Triton")
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction

    kernel = InterpretedFunction(module.mean_field_kernel.fn)
    monkeypatch.setattr(module, "mean_field_kernel", kernel)
    for name in ("cdiv", "max", "min"):  # written in Triton themselves
        monkeypatch.setattr(tl, name, InterpretedFunction(getattr(tl, name).fn))
    return module.triton_mean_field


@pytest.fixture(params=["compiled", "torch", "triton"])
def path(request, monkeypatch):
    """The ways to make the steps: that of a CPU, and on a CPU those of other devices."""
    if request.param == "triton":
        function = request.getfixturevalue("interpreted")
    else:
        function = getattr(MODULE, f"{request.param}_mean_field")
    taken = []

    def watched(*args):
        taken.append(request.param)
        return function(*args)

    if request.param == "triton":
        monkeypatch.setattr(MODULE, "gpu_kernel", lambda probs, kernel_size: watched)
    else:
        monkeypatch.setattr(MODULE, "compiled_mean_field", watched)
    yield
    assert taken


def example(smooth=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, 9, 11, generator=generator, dtype=dtype) * 0.2
    if smooth:
        images[:, :, :, 5:] += 1.0  # an edge for the field to stop at
    probs = torch.rand(2, 9, 11, generator=generator, dtype=dtype)
    probs[..., :5] = (probs[..., :5] + 0.45).clamp(max=1)  # mostly foreground left of the edge
    box = torch.zeros(2, 9, 11, dtype=dtype)
    box[0, 1:8, 0:9] = 1
    box[1, 0:7, 1:10] = 1
    box[:, 2] *= 0.4  # fractions, as on the border of a shrunk box
    return probs, box, images


@pytest.mark.parametrize("zeta", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("omega, k", [(1.0, 3), (2.0, 3), (1.0, 5)])
@pytest.mark.parametrize("steps", [1, 7, 40])
def test_equals_the_stated_method(path, zeta, omega, k, steps):
    probs, box, images = example()
    expected = naive_mean_field(probs, box, images, zeta, omega, k, steps, eps=0)
    found = mean_field(probs, box, images, zeta, omega, k, steps)
    assert found.dtype == torch.bool
    assert torch.equal(found, expected)
    assert 0 < found.sum() < found.numel()


@pytest.mark.parametrize("zeta", [0.1, 0.3])
def test_the_small_term_left_out_decides_hardly_a_pixel_of_a_photograph(path, zeta):
    photo = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)[None].float()
    mean, std = torch.tensor([123.7, 116.3, 103.5]), torch.tensor([58.4, 57.1, 57.4])
    photo = (photo - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    images = F.interpolate(photo, (40, 40), mode="bilinear").double()
    probs = F.interpolate(torch.rand(1, 1, 8, 8), (40, 40), mode="bilinear")[:, 0].double()
    box = torch.zeros_like(probs)
    box[:, 6:35, 5:33] = 1
    expected = naive_mean_field(probs, box, images, zeta, 1.0, 3, 100, eps=1e-6)
    found = mean_field(probs, box, images, zeta)
    assert (found == expected).float().mean() >= 0.999


def test_pairwise_weights_against_the_dense_matrix():
    _, _, images = example()
    matrix = naive_weights(images, 0.3, 2.0, 3)
    weights = dict(pairwise_weights(images, 0.3, 2.0, 3))
    assert list(weights) == [(0, 1), (1, -1), (1, 0), (1, 1)]
    for (dy, dx), weight in weights.items():
        assert weight.shape == (2, 9, 11)
        for y in range(9):
            for x in range(11):
                inside = y + dy < 9 and 0 <= x + dx < 11
                expected = torch.zeros(2, dtype=weight.dtype)
                if inside:
                    expected = matrix[:, y * 11 + x, (y + dy) * 11 + x + dx]
                torch.testing.assert_close(weight[:, y, x], expected)


def test_fills_a_uniform_region_and_stops_at_its_edge(path):
    """Two flat regions: the seed spreads over its own region and no further."""
    images = torch.zeros(1, 3, 12, 12)
    images[..., 6:] = 1.0
    box = torch.ones(1, 12, 12)
    probs = torch.full((1, 12, 12), 0.45)
    probs[..., :6] = 0.55
    probs[0, 3, 2] = 0.2  # noise on either side
    probs[0, 8, 9] = 0.8
    masks = mean_field(probs, box, images)
    assert masks[..., :6].all() and not masks[..., 6:].any()


@pytest.mark.parametrize("place", ["corner", "line", "pixel", "whole", "gaps", "nothing"])
@pytest.mark.parametrize("k", [3, 5])
def test_boxes_at_the_border_and_of_any_size(path, place, k):
    probs, box, images = example()
    box.zero_()
    if place == "corner":  # two boxes in opposite corners
        box[0, :4, :5] = box[1, 5:, 4:] = 1
    elif place == "line":
        box[:, 4, :] = 1
    elif place == "pixel":
        box[0, 8, 10] = 1
    elif place == "whole":
        box.fill_(1)
    elif place == "gaps":  # of fewer and of more rows than the neighbourhood has
        box[0, :4] = box[0, 5:7] = box[0, 8] = box[1, 2:7, 1:7] = 1
    expected = naive_mean_field(probs, box, images, 0.5, 1.0, k, 12, eps=0)
    assert torch.equal(mean_field(probs, box, images, 0.5, 1.0, k, 12), expected)
    assert expected.any() or place in ("nothing", "pixel", "line")


@pytest.mark.parametrize("seed", range(20))
def test_crops_of_a_batch_know_nothing_of_each_other(path, seed):
    generator = torch.Generator().manual_seed(seed)
    probs = 0.55 + 0.45 * torch.rand(5, 9, 7, generator=generator, dtype=torch.float64)
    images = 0.3 * torch.rand(5, 3, 9, 7, generator=generator, dtype=torch.float64)
    box = torch.zeros_like(probs)
    for mask in box:
        y, x, height, width = torch.randint(6, (4,), generator=generator).tolist()
        mask[y : y + height + 4, x : x + width + 4] = 1
    expected = naive_mean_field(probs, box, images, 0.3, 1.0, 3, 3, eps=0)
    assert torch.equal(mean_field(probs, box, images, 0.3, 1.0, 3, 3), expected)
    assert 20 < expected.sum() < box.sum()


@pytest.mark.parametrize("batch, height, width, k", [(2, 2, 1, 5), (1, 1, 4, 7), (2, 1, 5, 9)])
def test_images_smaller_than_the_neighbourhood(path, batch, height, width, k):
    probs, box, images = (x[:batch, ..., :height, :width] for x in example())
    box = torch.ones_like(box)
    expected = naive_mean_field(probs, box, images, 0.5, 1.0, k, 6, eps=0)
    assert torch.equal(mean_field(probs, box, images, 0.5, 1.0, k, 6), expected)


@pytest.mark.parametrize("which", ["probs", "box_masks", "images"])
@pytest.mark.parametrize("part", [slice(None, 1), (..., slice(None, 5))])
def test_maps_that_do_not_fit_are_refused(which, part):
    maps = dict(zip(("probs", "box_masks", "images"), example()))
    maps[which] = maps[which][part]
    shape = re.escape(str(tuple(maps[which].shape)))
    with pytest.raises(ValueError, match=rf"(?s){shape}.*do not fit"):
        mean_field(**maps)


def test_another_default_device_changes_nothing():
    inputs = example()
    expected = mean_field(*inputs, num_steps=20)
    with torch.device("meta"):
        found = mean_field(*inputs, num_steps=20)
    assert found.any() and torch.equal(found, expected)


def test_certain_probabilities_even_if_rounding_took_them_beyond(path):
    probs, box, images = example(dtype=torch.float32)
    certain = (probs > 0.5).float()
    beyond = torch.where(certain > 0, torch.tensor(1.0).nextafter(torch.tensor(2.0)), -1e-7)
    expected = naive_mean_field(certain, box, images, 0.3, 1.0, 3, 2, eps=0)
    assert 0 < expected.sum() < expected.numel()
    assert torch.equal(mean_field(certain, box, images, 0.3, num_steps=2), expected)
    assert torch.equal(mean_field(beyond, box, images, 0.3, num_steps=2), expected)


def test_nothing_outside_the_box(path):
    probs, box, images = example()
    masks = mean_field(torch.ones_like(probs), box, images, num_steps=20)
    assert masks.any() and not masks[box == 0].any()


def test_stopping_at_the_fixed_point_changes_nothing(monkeypatch):
    probs, box, images = example(dtype=torch.float32)
    compiled = mean_field(probs, box, images, num_steps=10**6)
    monkeypatch.setattr(MODULE, "compiled_mean_field", MODULE.torch_mean_field)
    steps = []
    equal = torch.equal

    def watched(a, b):
        steps.append(equal(a, b))
        return steps[-1]

    with monkeypatch.context() as patch:
        patch.setattr(torch, "equal", watched)
        stopped = mean_field(probs, box, images, num_steps=10**6)
    assert steps[-1] and len(steps) < 100  # it did stop before its last step
    with monkeypatch.context() as patch:
        patch.setattr(torch, "equal", lambda a, b: False)
        whole = mean_field(probs, box, images, num_steps=1000)
    assert torch.equal(stopped, whole) and torch.equal(compiled, whole)


@pytest.mark.parametrize("k", [1, 4])
def test_other_kernels_are_refused(k):
    with pytest.raises(ValueError, match=rf"kernel_size is {k}.*odd and at least 3"):
        mean_field(*example(), kernel_size=k)


def test_crops_in_threads_equal_one_vector(monkeypatch):
    """Photographs, with boxes of many blocks of the compiled code and of a part of one."""
    photo = torch.from_numpy(skimage.data.coffee()).permute(2, 0, 1)[None].double() / 60 - 2
    images = torch.cat([photo[..., y : y + 70, y : y + 90] for y in (0, 80, 160, 240)])
    probs = torch.rand(4, 70, 90, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    box = torch.zeros_like(probs)
    for i, side in enumerate((3, 20, 45, 70)):
        box[i, :side, :side] = 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    compiled = importlib.import_module("mal_mmdet.models.losses.mean_field_numba")
    monkeypatch.setattr(compiled, "PIXELS_OF_A_THREAD", 1)
    started = []
    pool = compiled.ThreadPoolExecutor
    monkeypatch.setattr(
        compiled, "ThreadPoolExecutor", lambda threads: started.append(threads) or pool(threads)
    )
    found = mean_field(probs, box, images)
    monkeypatch.setattr(MODULE, "compiled_mean_field", MODULE.torch_mean_field)
    assert torch.equal(found, mean_field(probs, box, images))
    assert 500 < found.sum() < box.sum()
    assert started == [3]


def test_maps_that_are_not_contiguous(path):
    probs, box, images = example()
    strided = [maps.movedim(0, -1).contiguous().movedim(-1, 0) for maps in (probs, box, images)]
    assert not strided[0].is_contiguous()
    expected = mean_field(probs, box, images, num_steps=20)
    assert expected.any() and torch.equal(mean_field(*strided, num_steps=20), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(path, dtype):
    halves = [maps.to(dtype) for maps in example()]
    masks = mean_field(*halves, num_steps=20)
    singles = [maps.float() for maps in halves]
    assert masks.any() and torch.equal(masks, mean_field(*singles, num_steps=20))


def test_programs_of_a_crop_hand_on_what_they_find(interpreted, monkeypatch):
    """Photographs, with boxes of one program and of several, which meet within rows.

    The interpreter runs one program after the other, so each stage is a launch of its own.
    """
    module = importlib.import_module("mal_mmdet.models.losses.mean_field_triton")
    monkeypatch.setattr(module, "block_size", lambda kernel_size: 128)
    photo = torch.from_numpy(skimage.data.coffee()).permute(2, 0, 1)[None].double() / 60 - 2
    images = torch.cat([photo[..., y : y + 30, y : y + 20] for y in (0, 80, 160)])
    probs = torch.rand(3, 30, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    box = torch.zeros_like(probs)
    for i, side in enumerate((3, 11, 30)):
        box[i, :side, :side] = 1
    expected = mean_field(probs, box, images, num_steps=11)
    found = interpreted(probs, box, images, 0.1, 1.0, 3, 11, stages_per_launch=1)
    assert torch.equal(found, expected)
    assert 50 < expected.sum() < box.sum()


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mal_mmdet.models.losses import mean_field_triton as module

constants = dict(ZETA=0.1, OMEGA=1.0, LIMIT=module.MAX_LOG_ODDS, SIDE=3)
constants["BLOCK"] = module.block_size(3)
numbers = ("turn", "height", "width", "channels", "first_stage", "stop_stage")
for dtype in ("fp32", "fp64"):
    signature = dict.fromkeys(("probs", "box_masks", "images", "states"), f"*{dtype}")
    signature |= dict(counters="*i32", masks="*i1") | dict.fromkeys(numbers, "i32")
    signature |= dict.fromkeys(constants, "constexpr")
    for capability in (80, 90):
        kernel = triton.compile(
            ASTSource(module.mean_field_kernel, signature, constants),
            target=GPUTarget("cuda", capability, 32),
            options=dict(num_warps=module.NUM_WARPS, num_stages=1),
        )
        code = kernel.asm["ptx"]
        # All threads have stored before others are told, and what others stored is seen.
        stores = code.split("st.global.b")
        told = [part for part in stores if "gpu.release" in part]
        assert len(told) == 2 and all(
            "bar.sync" in part[: part.index("gpu.release")] for part in told
        )
        assert "gpu.acquire" in code.replace("acquire.gpu", "gpu.acquire") and "gpu.release" in code
        assert "ld.global" in code and "ld.global.nc" not in code
        print(dtype, capability, len(kernel.asm["cubin"]))
"""


def test_the_kernel_compiles_for_gpus():
    """In a process of its own: Triton's interpreter leaves its language changed."""
    pytest.importorskip("triton", reason="no Triton")
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    sizes = [int(line[2]) for line in lines if line[0] in ("fp32", "fp64")]
    assert len(sizes) == 4 and min(sizes) > 1000


class FakeGPU:
    """Looks like maps on a GPU of some processors."""

    device = torch.device("cuda", 0)
    shape = (4, 128, 128)


@pytest.mark.parametrize("processors, fits", [(132, True), (16, True), (15, False)])
def test_programs_that_wait_for_each_other_fit_on_the_gpu(processors, fits, monkeypatch):
    module = pytest.importorskip("mal_mmdet.models.losses.mean_field_triton", reason="no Triton")
    monkeypatch.setattr(MODULE, "triton_works", lambda device: True)
    properties = SimpleNamespace(multi_processor_count=processors)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    kernel = MODULE.gpu_kernel(FakeGPU(), 3)
    assert kernel is (module.triton_mean_field if fits else None)


def test_other_devices_have_no_kernel():
    assert MODULE.gpu_kernel(torch.zeros(1, 2, 2), 3) is None


def test_triton_works(interpreted):
    assert MODULE.triton_works.__wrapped__(torch.device("cpu"))


@pytest.fixture
def said(monkeypatch):
    """What is logged."""
    texts = []
    monkeypatch.setattr(MODULE, "print_log", lambda text, **kwargs: texts.append(text))
    return texts


def test_without_triton_the_steps_are_pytorchs(said, monkeypatch):
    monkeypatch.setitem(sys.modules, "mal_mmdet.models.losses.mean_field_triton", None)
    assert not MODULE.triton_works.__wrapped__(torch.device("cpu"))
    assert len(said) == 1 and "Triton does not work on cpu" in said[0]


def test_a_kernel_that_cannot_be_compiled_is_replaced(interpreted, said, monkeypatch):
    module = importlib.import_module("mal_mmdet.models.losses.mean_field_triton")

    def kernel(*args):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(module, "triton_mean_field", kernel)
    assert not MODULE.triton_works.__wrapped__(torch.device("cpu"))
    assert len(said) == 1 and "(RuntimeError: Failed to find C compiler)" in said[0]


def test_a_full_gpu_does_not_replace_the_kernel(interpreted, monkeypatch):
    module = importlib.import_module("mal_mmdet.models.losses.mean_field_triton")

    def kernel(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "triton_mean_field", kernel)
    with pytest.raises(torch.OutOfMemoryError):
        MODULE.triton_works.__wrapped__(torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("path", ["kernel", "PyTorch's operations"])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_a_gpu_gives_the_masks_of_a_cpu(path, kernel_size, monkeypatch):
    device = torch.device("cuda", 0)
    assert MODULE.triton_works(device)
    if path != "kernel":
        monkeypatch.setattr(MODULE, "gpu_kernel", lambda probs, kernel_size: None)
    photo = torch.from_numpy(skimage.data.coffee()).permute(2, 0, 1)[None].double() / 60 - 2
    images = torch.cat([photo[..., y : y + 128, y : y + 128] for y in (0, 90, 180, 270)])
    probs = torch.rand(4, 128, 128, generator=torch.Generator().manual_seed(0)).double()
    box = torch.zeros_like(probs)
    for i, side in enumerate((3, 20, 75, 128)):
        box[i, :side, :side] = 1
    expected = mean_field(probs, box, images, kernel_size=kernel_size)
    on_gpu = [maps.to(device) for maps in (probs, box, images)]
    found = mean_field(*on_gpu, kernel_size=kernel_size).cpu()
    # Exact ties, at which rounding decides, are few.
    assert (found == expected)[box > 0].float().mean() > 0.999
    assert 1000 < expected.sum() < box.sum()
