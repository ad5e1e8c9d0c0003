"""The released implementation beside samlit's, with equal weights."""

import functools
import warnings

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling import Sam as OfficialSam
from segment_anything.utils.onnx import SamOnnxModel
from torch import nn

from samlit.model import PIXEL_MEAN, PIXEL_STD, Sam
from samlit.weights.layouts import from_sam
from samlit_decoders.mask import Mask
from samlit_encoders.tiny_vit import TinyVit
from samlit_encoders.vit import Vit
from samlit_prompts.boxes import Boxes
from samlit_prompts.masks import Masks
from samlit_prompts.points import Points


class Adapter(nn.Module):
    """One of samlit's encoders in the place of the official one."""

    def __init__(self, encoder, image_size):
        super().__init__()
        self.encoder, self.img_size = encoder, image_size

    def forward(self, image):
        return self.encoder(image).image


def small(seed=0, image_size=64, patch=8, channels=32, depth=2):
    """Both models at a small size, with the same random weights; `depth` is the decoder's."""
    torch.manual_seed(seed)
    grid = image_size // patch
    blocks = {"depth": 2, "num_heads": 2, "window_size": 3, "global_attn_indexes": (1,), "use_rel_pos": True}
    norm = functools.partial(nn.LayerNorm, eps=1e-6)
    encoder = ImageEncoderViT(
        image_size, patch, embed_dim=24, out_chans=channels, norm_layer=norm, qkv_bias=True, **blocks
    )
    official = OfficialSam(
        encoder, *_heads(grid, image_size, channels, heads=2, mlp=48, iou=24, depth=depth), PIXEL_MEAN, PIXEL_STD
    )
    with torch.no_grad():
        for parameter in official.parameters():
            parameter.add_(0.25 * torch.randn_like(parameter))
    own = Sam(
        Vit(image_size, 24, 2, 2, (1,), 3, patch, channels),
        [Points, Boxes, Masks],
        functools.partial(Mask, depth=depth, heads=2, mlp_dim=48, iou_hidden=24),
    )
    own.load_state_dict(from_sam(official.state_dict(), "samlit"))
    return official.eval(), own.eval()


def mobile(file):
    """MobileSAM twice: the released predictor, prompt encoder and decoder, and samlit's; one encoder serves both."""
    state = torch.load(file, weights_only=True)
    own = Sam(TinyVit(), [Points, Boxes, Masks], Mask)
    own.load_state_dict(from_sam(state, "samlit"), strict=False)
    official = OfficialSam(Adapter(own.encoder, 1024), *_heads(64, 1024, 256), PIXEL_MEAN, PIXEL_STD)
    rest = {name: value for name, value in state.items() if not name.startswith("image_encoder.")}
    found = official.load_state_dict(rest, strict=False)
    assert not found.unexpected_keys
    assert all(name.startswith("image_encoder.") for name in found.missing_keys)
    return official.eval(), own.eval()


def _heads(grid, image_size, channels, heads=8, mlp=2048, iou=256, depth=2):
    prompts = PromptEncoder(channels, (grid, grid), (image_size, image_size), mask_in_chans=16)
    transformer = TwoWayTransformer(depth=depth, embedding_dim=channels, mlp_dim=mlp, num_heads=heads)
    decoder = MaskDecoder(
        transformer_dim=channels, transformer=transformer, num_multimask_outputs=3, iou_head_hidden_dim=iou
    )
    return prompts, decoder


def exported(released, file, single=False):
    """SAM's own graph of a released model, made with the arguments of its own script.

    The exporter makes constants of the rows and columns that are picture: only for images of 2 to 3 are masks right.
    """
    encoder = released.prompt_encoder
    rows, columns = encoder.image_embedding_size
    given = {
        "image_embeddings": torch.randn(1, encoder.embed_dim, rows, columns),
        "point_coords": torch.randint(0, 1024, (1, 5, 2)).float(),
        "point_labels": torch.randint(0, 4, (1, 5)).float(),
        "mask_input": torch.randn(1, 1, 4 * rows, 4 * columns),
        "has_mask_input": torch.tensor([1.0]),
        "orig_im_size": torch.tensor([1500.0, 2250.0]),
    }
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            SamOnnxModel(released, return_single_mask=single),
            tuple(given.values()),
            str(file),
            input_names=list(given),
            output_names=["masks", "iou_predictions", "low_res_masks"],
            dynamic_axes={"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}},
            opset_version=17,
            do_constant_folding=True,
            dynamo=False,
        )
    return file
