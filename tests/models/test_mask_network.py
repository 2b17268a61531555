# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from mmdet.registry import MODELS

from mal_mmdet.models import decoders

SWIN = dict(
    type="mmpretrain.SwinTransformer",
    arch=dict(embed_dims=16, depths=[1, 1, 1], num_heads=[1, 1, 1]),
    img_size=64,
    pad_small_map=True,
)
ARCH = dict(embed_dims=32, num_layers=1, num_heads=2, feedforward_channels=32)


def network(decoder=None, **backbone):
    vit = dict(type="mmpretrain.VisionTransformer", arch=ARCH, img_size=32, patch_size=8)
    vit.update(dict(out_type="featmap"), **backbone)
    decoder = decoder or dict(type="AttentionDecoder", in_channels=32, channels=8)
    return MODELS.build(dict(type="MaskNetwork", backbone=vit, decoder=decoder))


def run(model, size=32):
    return model(torch.randn(1, 3, size, size), torch.tensor([500.0]))


def test_an_unknown_decoder_names_the_field_and_the_known_ones():
    with pytest.raises(ValueError, match=r"model.network.decoder.type is 'Magic'.*QueryDecoder"):
        network(dict(type="Magic", in_channels=32))


@pytest.mark.parametrize("decoder", ["AttentionDecoder", "FullyConnectedDecoder"])
def test_a_map_of_other_channels_names_the_field(decoder):
    model = network(dict(type=decoder, in_channels=48, channels=8))
    with pytest.raises(ValueError, match=r"decoder.in_channels is 48.*gives \(1, 32, 4, 4\)"):
        run(model)


def test_an_encoder_without_a_map_says_what_to_set():
    with pytest.raises(ValueError, match=r"gives \(1, 32\).*out_type='featmap'"):
        run(network(out_type="cls_token"))


def test_a_crop_that_the_patch_does_not_divide():
    with pytest.raises(ValueError, match=r"CropBBox.size is 44.*patch_size\), 8: 40 or 48"):
        run(network(), size=44)
    assert run(network(), size=48).shape == (1, 24, 24)


def test_a_padded_crop_that_its_cells_divide():
    """A patch of 16 makes 15 cells of 225 pixels by padding them to 240."""
    model = network(patch_size=16)
    with pytest.raises(ValueError, match=r"CropBBox.size is 225.*16: 224 or 240"):
        run(model, size=225)
    stem = dict(type="ConvStemVisionTransformer", arch=ARCH, img_size=32, out_type="featmap")
    decoder = dict(type="AttentionDecoder", in_channels=32, channels=8)
    model = MODELS.build(dict(type="MaskNetwork", backbone=stem, decoder=decoder))
    with pytest.raises(ValueError, match=r"CropBBox.size is 225.*16: 224 or 240"):
        run(model, size=225)


def test_a_crop_whose_rest_the_encoder_cuts_off():
    arch = dict(depths=[1, 1], channels=[16, 32])
    convnext = dict(type="mmpretrain.ConvNeXt", arch=arch, out_indices=(1,))
    decoder = dict(type="AttentionDecoder", in_channels=32, channels=8)
    backbone = convnext | dict(gap_before_final_norm=False)
    model = MODELS.build(dict(type="MaskNetwork", backbone=backbone, decoder=decoder))
    with pytest.raises(ValueError, match=r"CropBBox.size is 100.*8: 96 or 104"):
        run(model, size=100)


@pytest.mark.parametrize(
    "backbone, channels, wrong, right",
    [
        (dict(type="mmdet.ResNet", depth=18, out_indices=(3,)), 512, (112, "32: 96 or 128"), 96),
        (dict(type="mmdet.ResNet", depth=18, out_indices=(2,)), 256, (120, "16: 112 or 128"), 80),
        (dict(SWIN, out_indices=(2,)), 64, (120, "16: 112 or 128"), 48),
    ],
)
def test_a_crop_that_stages_pad_to_cells_that_divide_it(backbone, channels, wrong, right):
    """Four cells of 32 pixels cover 128, and not the 112 that they divide."""
    decoder = dict(type="AttentionDecoder", in_channels=channels, channels=8)
    model = MODELS.build(dict(type="MaskNetwork", backbone=backbone, decoder=decoder)).eval()
    with pytest.raises(ValueError, match=rf"CropBBox.size is {wrong[0]}.*{wrong[1]}"):
        run(model, size=wrong[0])
    assert torch.isfinite(run(model, size=right)).all()


def test_a_timm_model_tells_its_stride():
    """Seven cells of 14 pixels are no six and a bit of 16."""
    pytest.importorskip("timm")
    options = dict(patch_size=14, img_size=98, dynamic_img_size=True, out_indices=(2,))
    wrapper = dict(type="mmpretrain.TIMMBackbone", model_name="vit_tiny_patch16_224")
    decoder = dict(type="AttentionDecoder", in_channels=192, channels=8)
    backbone = wrapper | dict(features_only=True, **options)
    model = MODELS.build(dict(type="MaskNetwork", backbone=backbone, decoder=decoder))
    assert run(model, size=98).shape == (1, 28, 28)


def test_channels_last_is_the_layout_of_the_crops_and_changes_no_mask():
    backbone = dict(type="mmdet.ResNet", depth=18, out_indices=(2,))
    decoder = dict(type="AttentionDecoder", in_channels=256, channels=8)
    config = dict(type="MaskNetwork", backbone=backbone, decoder=decoder)
    plain = MODELS.build(config).eval()
    model = MODELS.build(config | dict(channels_last=True)).eval()
    model.load_state_dict(plain.state_dict())
    layouts = []
    for network in (plain, model):
        network.backbone.register_forward_pre_hook(
            lambda _, args: layouts.append(args[0].is_contiguous(memory_format=torch.channels_last))
        )
    images, areas = torch.randn(2, 3, 64, 64), torch.full((2,), 5000.0)
    torch.testing.assert_close(model(images, areas), plain(images, areas))
    assert layouts == [True, False]


@MODELS.register_module()
class MeanDecoder(torch.nn.Module):
    """One of a user's own: a linear layer, whose sums depend on the number of rows."""

    def __init__(self, in_channels, channels):
        super().__init__()
        self.in_channels = in_channels
        self.head = torch.nn.Linear(in_channels, 32 * 32)

    def forward(self, features, areas):
        return self.head(features.mean((2, 3))).unflatten(1, (32, 32))


@pytest.mark.parametrize("precision", ["float32", "autocast", "cast"])
@pytest.mark.parametrize(
    "decoder",
    [dict(type=name) for name in decoders.__all__]
    + [dict(type="AttentionDecoder", scale_adaptive=False), dict(type="MeanDecoder")],
)
def test_predicted_logits_do_not_depend_on_the_batch(decoder, precision):
    """Maps from 2 to 32 cells a side; batches that leave one crop, and sizes of which one is."""
    model = network(dict(decoder, in_channels=32, channels=48), patch_size=4).eval()
    images = torch.randn(9, 3, 32, 32)
    mixed = torch.tensor([500.0, 5e3, 5e4] * 3)
    if precision == "cast":
        model, images = model.bfloat16(), images.bfloat16()
    with torch.no_grad(), torch.autocast("cpu", enabled=precision == "autocast"):
        for areas in (mixed, *(torch.full_like(mixed, area) for area in mixed[:3])):
            together = model.predict(images, areas)
            for size in (1, 2, 4):
                batches = zip(images.split(size), areas.split(size))
                apart = torch.cat([model.predict(*batch) for batch in batches])
                assert torch.equal(apart, together)
            if precision == "float32":
                torch.testing.assert_close(together, model(images, areas))
