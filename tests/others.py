"""Models of other projects, so small that an answer takes a blink: the official SAM, transformers', timm's."""

from functools import partial

import numpy as np
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

SIDE, DIM, HEADS = 128, 32, 2


def stirred(module, seed=1, by=0.2):
    """The same module, its weights moved by chance: zeros and ones would hide what is mixed up."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=chance))
    return module.eval()


def encoder(side=SIDE, dim=DIM, window=3):
    return ImageEncoderViT(
        img_size=side,
        embed_dim=dim,
        depth=3,
        num_heads=HEADS,
        mlp_ratio=2.0,
        out_chans=32,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=window,
        global_attn_indexes=(1,),
    )


def official(side=SIDE, heads=8, **others):
    """SAM as released, small."""
    torch.manual_seed(0)
    grid = side // 16
    model = Sam(
        encoder(side, **others),
        PromptEncoder(32, (grid, grid), (side, side), 16),
        MaskDecoder(
            transformer_dim=32,
            transformer=TwoWayTransformer(depth=2, embedding_dim=32, num_heads=heads, mlp_dim=64),
            iou_head_hidden_dim=24,
        ),
    )
    return stirred(model)


def picture(rows=100, columns=128, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (rows, columns, 3), dtype=np.uint8)


# What is asked, in the words of samlit's predictor.
ASKED = [
    {"points": [(50, 60, 1)]},
    {"points": [(50, 60, 1), (20, 30, 0)]},
    {"boxes": [(10, 20, 90, 80)]},
    {"boxes": [(10, 20, 90, 80)], "points": [(30, 40, 0)]},
]


class Official:
    """The official predictor; it answers as samlit's does: low-res logits and IoU, the best first."""

    def __init__(self, model, image):
        self.predictor = SamPredictor(model)
        self.predictor.set_image(image)

    def __call__(self, asked, multimask):
        points = np.array([value[:2] for value in asked.get("points", [])], dtype=np.float32)
        labels = np.array([value[2] for value in asked.get("points", [])])
        boxes = asked.get("boxes")
        _, iou, low = self.predictor.predict(
            points if len(points) else None,
            labels if len(points) else None,
            np.array(boxes[0]) if boxes else None,
            multimask_output=multimask,
        )
        order = np.argsort(-iou)
        return torch.from_numpy(low[order]), torch.from_numpy(iou[order])


def apart(a, b):
    """Greatest difference, relative to the greatest value."""
    return float((a - b).abs().max() / b.abs().max())
