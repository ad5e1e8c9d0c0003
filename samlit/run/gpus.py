"""What GPUs can do, from their makers' data sheets. No torch."""

from __future__ import annotations

import re
from typing import NamedTuple

from samlit.errors import UsageError, did_you_mean

__all__ = ["GPUS", "Gpu", "find", "named"]


class Gpu(NamedTuple):
    """A kind of GPU.

    Attributes:
        half: TFLOP/s of dense products in bf16 or fp16 that add up in fp32; the fp16 one where there is no bf16.
        tf32: The same in TF32; in fp32 where there is no TF32.
        full: The same in fp32, which is torch's default for float32.
        memory: GiB that torch sees, a little less than what is printed on the box.
        bandwidth: GB/s of its memory.
        bf16: Whether its matrix units know bf16.
    """

    half: float
    tf32: float
    full: float
    memory: float
    bandwidth: float
    bf16: bool = True


# Rates and bandwidths: NVIDIA's data sheets of A10, A100 (SXM), H100 (SXM, PCIe and NVL), H200, L40S, T4, V100 (SXM2)
# and HGX B200, and its Ada and Ampere GA102 whitepapers for the two GeForce cards. All dense: the sheets of Hopper and
# later and of L40S also print twice as much, with sparsity. Memory: what a driver reports of such a card, rounded down.
GPUS = {
    "A100-40": Gpu(312.0, 156.0, 19.5, 39.4, 1555.0),
    "A100-80": Gpu(312.0, 156.0, 19.5, 79.1, 2039.0),
    "H100": Gpu(989.4, 494.7, 66.9, 79.1, 3350.0),
    "H100 PCIe": Gpu(756.0, 378.0, 51.2, 79.1, 2000.0),
    "H100 NVL": Gpu(835.5, 417.5, 60.0, 93.1, 3938.0),
    "H200": Gpu(989.4, 494.7, 66.9, 139.7, 4800.0),
    "B200": Gpu(2250.0, 1125.0, 75.0, 178.3, 7700.0),
    "L40S": Gpu(362.0, 183.0, 91.6, 44.3, 864.0),
    "A10": Gpu(125.0, 62.5, 31.2, 22.0, 600.0),
    "RTX 4090": Gpu(165.2, 82.6, 82.6, 23.5, 1008.0),
    "RTX 3090": Gpu(71.0, 35.6, 35.6, 23.5, 936.0),
    "V100-16": Gpu(125.0, 15.7, 15.7, 15.7, 900.0, bf16=False),
    "V100-32": Gpu(125.0, 15.7, 15.7, 31.7, 900.0, bf16=False),
    "T4": Gpu(65.0, 8.1, 8.1, 14.5, 300.0, bf16=False),
}


def find(name: str) -> str:
    """The kind of GPU that a person means.

    Raises:
        UsageError: It is not among those known, or could be two of them.
    """
    wanted = _plain(name)
    kinds = [kind for kind in GPUS if wanted in (_plain(kind), _plain(kind).removeprefix("rtx"))]
    kinds = kinds or [kind for kind in GPUS if "-" in kind and wanted == _plain(kind.partition("-")[0])]
    if len(kinds) == 1:
        return kinds[0]
    if kinds:
        raise UsageError(f"--gpu {name}: which one, {' or '.join(kinds)}?")
    near = did_you_mean(name.upper(), [*GPUS, "cpu"])
    raise UsageError(f"no GPU is called {name!r}{near} (known: {', '.join(GPUS)}, cpu)")


def named(device: str, memory: float = 0.0) -> str | None:
    """The kind of a device that a driver calls so; None for one that is not known.

    Args:
        device: Its name, as of `torch.cuda.get_device_name`.
        memory: GiB of it, where kinds differ by nothing else.
    """
    words = {kind: kind.partition("-")[0] for kind in GPUS}
    of_name = [kind for kind, word in words.items() if re.search(rf"\b{word}\b", device, re.IGNORECASE)]
    # An H100 PCIe is called H100 too.
    longest = max((len(words[kind]) for kind in of_name), default=0)
    of_name = [kind for kind in of_name if len(words[kind]) == longest]
    return min(of_name, key=lambda kind: abs(GPUS[kind].memory - memory), default=None)


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum()).removeprefix("nvidia").removeprefix("geforce")
