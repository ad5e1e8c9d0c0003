"""Published weights by name: what they are, where they are, and how to know that they arrived whole.

New weights are one entry of `PUBLISHED`. Sizes and checksums are those that publishers give and that lists of other
projects agree on; what is not known for certain is left out. Some digits are a checksum as far as they go.
"""

from __future__ import annotations

from dataclasses import dataclass

from samlit.errors import UsageError, did_you_mean

__all__ = ["PUBLISHED", "Published", "find"]

APACHE = "Apache-2.0"
NON_COMMERCIAL = "CC BY-NC 4.0: not for commercial use"


@dataclass(frozen=True)
class Published:
    """A file of weights that somebody published.

    Attributes:
        summary: What they are, in one line.
        url: Where the file is.
        licence: Under which terms it may be used.
        size: Bytes; 0 where they are not known for certain.
        checksum: "sha256:HEX" or "md5:HEX", all of it or as many digits as are known.
        encoder_only: There is no model in it, only an encoder to start a training from.
    """

    summary: str
    url: str
    licence: str
    size: int = 0
    checksum: str = ""
    encoder_only: bool = False

    @property
    def file(self) -> str:
        """The file's own name."""
        return self.url.rpartition("/")[2]

    @property
    def facts(self) -> str:
        """Size, licence and how the file is checked, in a few words."""
        size = f"{self.size / 1e6:,.0f} MB" if self.size else "size not known"
        kind, _, digits = self.checksum.partition(":")
        whole = {"sha256": 64, "md5": 32}.get(kind, 0)
        known = f"checked by {kind}" if len(digits) == whole else f"checked by {len(digits)} digits of its {kind}"
        return f"{size}, {self.licence}, {known if digits else 'no checksum known'}"


SAM = "https://dl.fbaipublicfiles.com/segment_anything/"
MAE = "https://dl.fbaipublicfiles.com/mae/pretrain/"
HQ = "https://huggingface.co/lkeab/hq-sam/resolve/main/"

# SAM's and MAE's publishers give the first six digits of the md5, in the file's name or beside it.
PUBLISHED = {
    "sam_vit_b": Published(
        "SAM with ViT-B, the release of the paper",
        f"{SAM}sam_vit_b_01ec64.pth",
        APACHE,
        375_042_383,
        "sha256:ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "sam_vit_l": Published(
        "SAM with ViT-L, the release of the paper",
        f"{SAM}sam_vit_l_0b3195.pth",
        APACHE,
        1_249_524_607,
        "sha256:3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "sam_vit_h": Published(
        "SAM with ViT-H, the release of the paper and its default",
        f"{SAM}sam_vit_h_4b8939.pth",
        APACHE,
        2_564_550_879,
        "sha256:a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
    "mobile_sam": Published(
        "MobileSAM, a small encoder that learned from SAM's (arXiv 2306.14289)",
        "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
        APACHE,
        40_728_226,
        "sha256:6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
    ),
    "sam_hq_vit_b": Published(
        "SAM-HQ with ViT-B, finer masks (arXiv 2306.01567)",
        f"{HQ}sam_hq_vit_b.pth",
        APACHE,
        checksum="md5:c6b8953247bcfdc8bb8ef91e36a6cacc",
    ),
    "sam_hq_vit_l": Published(
        "SAM-HQ with ViT-L, finer masks (arXiv 2306.01567)",
        f"{HQ}sam_hq_vit_l.pth",
        APACHE,
        checksum="md5:08947267966e4264fb39523eccc33f86",
    ),
    "sam_hq_vit_h": Published(
        "SAM-HQ with ViT-H, finer masks (arXiv 2306.01567)",
        f"{HQ}sam_hq_vit_h.pth",
        APACHE,
        checksum="md5:3560f6b6a5a6edacd814a1325c39640a",
    ),
    "sam_hq_vit_tiny": Published(
        "SAM-HQ with MobileSAM's encoder, finer masks (arXiv 2306.01567)",
        f"{HQ}sam_hq_vit_tiny.pth",
        APACHE,
        checksum="md5:3a661ab92d4088ccd6232fa542998a65",
    ),
    "mae_vit_b": Published(
        "ViT-B of masked autoencoders, to start a training from (arXiv 2111.06377)",
        f"{MAE}mae_pretrain_vit_base.pth",
        NON_COMMERCIAL,
        343_249_461,
        "sha256:aec5f0b68e5f3193a00b07bc65a37440db549c15b36b8bea242606cc40c4bc5d",
        encoder_only=True,
    ),
    "mae_vit_l": Published(
        "ViT-L of masked autoencoders, to start a training from (arXiv 2111.06377)",
        f"{MAE}mae_pretrain_vit_large.pth",
        NON_COMMERCIAL,
        checksum="md5:b8b06e",
        encoder_only=True,
    ),
    "mae_vit_h": Published(
        "ViT-H of masked autoencoders, to start a training from (arXiv 2111.06377)",
        f"{MAE}mae_pretrain_vit_huge.pth",
        NON_COMMERCIAL,
        checksum="md5:9bdbb0",
        encoder_only=True,
    ),
}


def find(name: str) -> Published:
    """Published weights of that name.

    Raises:
        UsageError: There are none.
    """
    if name not in PUBLISHED:
        known = ", ".join(PUBLISHED)
        raise UsageError(f"no weights are called {name!r}{did_you_mean(name, PUBLISHED)} (known: {known})")
    return PUBLISHED[name]
