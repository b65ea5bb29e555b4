"""Plain ViTs as the backbone of dense systems, ours and other libraries': a training step of each, at three sizes."""

import pytest
import torch
from plain_vits import SIX, SIZES, make, without_gradient
from torch.nn import functional as F

import vitgraft
from vitgraft.models.adapters import SMPEncoder, TransformersBackbone
from vitgraft.models.mask_rcnn import FPNBackbone, MaskRCNN
from vitgraft.models.upernet import UperNet

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

# decoders of segmentation-models-pytorch that take any encoder, and the strides that they read (None: all)
DECODERS = {
    "Unet": None,
    "UnetPlusPlus": None,
    "MAnet": None,
    "Linknet": None,
    "FPN": (4, 8, 16, 32),
    "PSPNet": (8,),
    "PAN": (4, 8, 16),
    "DeepLabV3": (8,),
    "DeepLabV3Plus": (4, 16),
    "UPerNet": (4, 8, 16, 32),
    "Segformer": (4, 8, 16, 32),
}


def objects(size, masks=True):
    """Two boxes in an image of this size."""
    height, width = size
    boxes = torch.tensor([[4.0, 4.0, width - 20.0, height - 20.0], [10.0, 20.0, width - 4.0, height - 2.0]])
    target = {"boxes": boxes, "labels": torch.tensor([1, 2])}
    return {**target, "masks": torch.ones(2, height, width, dtype=torch.uint8)} if masks else target


def step(net, losses) -> None:
    """One training step: a finite loss, and a gradient for every parameter that trains."""
    loss = sum(losses)
    assert loss.isfinite()
    loss.backward()
    assert without_gradient(net) == []


@pytest.mark.parametrize("name", SIX)
def test_our_mask_rcnn(name):
    net = MaskRCNN(make(name), 2, fpn_channels=16, box_channels=16, mask_channels=8, mask_convs=1)
    assert net.backbone.fpn is None
    images = [torch.randn(3, *size) for size in SIZES]
    step(net, net(images, [objects(size) for size in SIZES]).values())
    found = net.eval()(images[2:])
    assert found[0]["masks"].shape[1:] == SIZES[2]


@pytest.mark.parametrize("name", SIX)
def test_our_upernet(name):
    net = UperNet(vitgraft.pyramid(make(name)), 3, channels=8, aux_channels=8)
    outputs = [out for size in SIZES for out in net(torch.randn(2, 3, *size))]
    assert [tuple(out.shape[1:]) for out in outputs] == [(3, *size) for size in SIZES for _ in range(2)]
    step(net, [out.square().mean() for out in outputs])


@pytest.mark.parametrize("name", SIX)
def test_decoders_of_segmentation_models_pytorch(name, monkeypatch):
    smp = pytest.importorskip("segmentation_models_pytorch")
    monkeypatch.setattr(smp.encoders, "encoders", {})
    for decoder, strides in DECODERS.items():
        vitgraft.register_smp_encoder(decoder, lambda: make(name), strides=strides)
        net = getattr(smp, decoder)(decoder, encoder_weights=None, classes=3)
        # the library's own decoders take multiples of 32, except Unet; PAN pools the coarsest map three times
        sizes = SIZES if decoder == "Unet" else ((128, 128), (160, 128)) if decoder == "PAN" else SIZES[:2]
        outputs = [net(torch.randn(2, 3, *size)) for size in sizes]
        assert [tuple(out.shape[1:]) for out in outputs] == [(3, *size) for size in sizes]
        step(net, [out.square().mean() for out in outputs])


@pytest.mark.parametrize("name", SIX)
def test_detectors_of_torchvision(name):
    from torchvision.models.detection import FasterRCNN

    net = FasterRCNN(FPNBackbone(make(name), 16), 3, min_size=64, max_size=128)
    step(net, net([torch.randn(3, *size) for size in SIZES], [objects(size, False) for size in SIZES]).values())
    assert net.eval()([torch.randn(3, *SIZES[2])])[0]["boxes"].shape[1] == 4


def test_retinanet_and_fcos_of_torchvision():
    from torchvision.models.detection import FCOS, RetinaNet

    for detector in (RetinaNet, FCOS):
        net = detector(FPNBackbone(make("timm deit"), 32), 3, min_size=64, max_size=128)
        step(net, net([torch.randn(3, *size) for size in SIZES], [objects(size, False) for size in SIZES]).values())


@pytest.mark.parametrize("name", SIX)
def test_upernet_of_transformers(name):
    pytest.importorskip("transformers")
    from transformers import ResNetConfig, UperNetConfig, UperNetForSemanticSegmentation
    from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

    stages = ["stage1", "stage2", "stage3", "stage4"]
    other = ResNetConfig(embedding_size=4, hidden_sizes=[4] * 4, depths=[1] * 4, out_features=stages)
    config = UperNetConfig(backbone_config=other, hidden_size=8, auxiliary_channels=8, num_labels=3)
    net = UperNetForSemanticSegmentation(config)
    net.backbone = backbone = TransformersBackbone(vitgraft.pyramid(make(name)))
    net.decode_head = UperNetHead(config, backbone.channels)
    net.auxiliary_head = UperNetFCNHead(config, backbone.channels)
    assert backbone.out_features == ["stride4", "stride8", "stride16", "stride32"]
    losses = []
    for size in SIZES:
        output = net(torch.randn(2, 3, *size), labels=torch.randint(3, (2, *size)))
        assert tuple(output.logits.shape[2:]) == size
        losses.append(output.loss)
    step(net, losses)


def test_a_pyramid_with_options_in_our_detector():
    """Of its own channels it gets an FPN; of the detector's, none; hierarchical ones always."""
    model = vitgraft.graft(make("timm deit"), window_size=2, blocks=(1, 2))
    own = MaskRCNN(
        vitgraft.pyramid(model, source="levels", window_size=2, global_blocks=1), 2, masks=False, fpn_channels=16
    )
    assert own.backbone.fpn is not None
    step(own, own([torch.randn(3, 64, 64)], [objects((64, 64))]).values())
    same = FPNBackbone(vitgraft.pyramid(make("timm deit"), out_channels=16), 16)
    assert same.fpn is None
    with pytest.raises(ValueError, match="strides"):
        FPNBackbone(vitgraft.pyramid(make("timm deit"), strides=(8, 16)), 16)


def test_hierarchical_models_in_segmentation_models_pytorch():
    smp = pytest.importorskip("segmentation_models_pytorch")
    small = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "window_size": 4}
    net = smp.FPN("tu-graft_swin_tiny_patch4_window7_224", encoder_weights=None, classes=3, img_size=64, **small)
    net(torch.randn(2, 3, 64, 64)).square().mean().backward()
    with pytest.raises(ValueError, match="strides"):
        SMPEncoder(vitgraft.models.swin.SwinTransformer(**small))


def test_encoders_share_nothing_and_check_their_options(monkeypatch):
    smp = pytest.importorskip("segmentation_models_pytorch")
    monkeypatch.setattr(smp.encoders, "encoders", {})
    vitgraft.register_smp_encoder("vit", make("timm deit"), out_channels=8)
    first, second = (smp.FPN("vit", encoder_weights=None) for _ in range(2))
    assert first.encoder.out_channels == [3, 8, 8, 8, 8, 8]
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}
    with pytest.raises(ValueError, match="already"):
        vitgraft.register_smp_encoder("vit", make("timm deit"))
    with pytest.raises(ValueError, match="in_chans=4"):
        smp.FPN("vit", encoder_weights=None, in_channels=4)
    for strides in ((4, 8), (3, 32)):
        with pytest.raises(ValueError, match="32 included"):
            SMPEncoder(make("timm deit"), strides=strides)
    encoder = SMPEncoder(make("timm deit"), strides=(4, 32))
    assert [tuple(m.shape[1:]) for m in encoder(torch.randn(1, 3, 64, 64))[1:]] == [
        (0, 32, 32),
        (8, 16, 16),
        (0, 8, 8),
        (0, 4, 4),
        (32, 2, 2),
    ]


def test_cross_entropy_falls_in_a_few_steps():
    """The whole chain trains: UperNet on a pyramid of a grafted ViT's levels separates left from right."""
    model = vitgraft.graft(make("timm deit"), window_size=2, blocks=(1, 2), init="identity")
    net = UperNet(vitgraft.pyramid(model, source="levels"), 2, channels=8, aux_channels=None)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    images = torch.randn(4, 3, 64, 64)
    labels = (torch.arange(64) >= 32).long().expand(4, 64, 64)
    images[:, 0] += 2 * labels
    losses = []
    for _ in range(20):
        losses.append(F.cross_entropy(net(images), labels))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]
