"""`samlit export --to onnx`: graphs for onnxruntime and the browser, each held to PyTorch before it is kept."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samlit import atomic
from samlit.errors import UsageError
from samlit.export.command import PARTS
from samlit.export.graphs import Answer, Encode, Official, Prepare, Prompted
from samlit.model import Sam
from samlit.training import lora

__all__ = ["Options", "write"]

EXACT = 1e-4
"""How far a graph in fp32 may be from PyTorch, as a share of the largest logit."""


@dataclass(frozen=True)
class Options:
    """What is written.

    Attributes:
        parts: Some of `PARTS`.
        opset: Version of ONNX's operators.
        precision: Of weights and arithmetic: "fp32", "fp16", or "int8", whose matrices are quantised as they are used.
    """

    parts: Sequence[str] = PARTS
    opset: int = 18
    precision: str = "fp32"


@dataclass(frozen=True)
class _Graph:
    name: str
    module: nn.Module
    inputs: Sequence[str]
    outputs: Sequence[str]
    given: Callable[[int, int], tuple[Tensor, ...]]
    dynamic: Any
    rows: int = 1


def write(net: Sam, image_size: int, out: Path, options: Options = Options()) -> list[str]:
    """Write a folder of graphs, and `model.json` which says what they take.

    Each graph is run by onnxruntime beside the model in PyTorch, on prompts of several sizes. In fp32 it must answer
    the same to 1e-4 of the largest logit: so masks are the same but for pixels that are that near to their edge.

    Returns:
        A line for each graph, how near it is.

    Raises:
        UsageError: A package is missing.
        ValueError: The model cannot be said in these graphs, or a graph does not answer as it does.
    """
    _packages()
    net = lora.merged(net).eval()
    beside = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    beside.mkdir(parents=True)
    told = []
    try:
        with torch.no_grad(), _quiet():
            for graph in _graphs(net, image_size, options.parts):
                told.append(_one(graph, beside, options))
        mean, std = ([float(x) for x in buffer.flatten()] for buffer in (net.pixel_mean, net.pixel_std))
        sizes = {"image_size": image_size, "grid": image_size // net.encoder.stride, "channels": net.encoder.channels}
        page = {**sizes, "pixel_mean": mean, "pixel_std": std, "precision": options.precision, "opset": options.opset}
        atomic.write(beside / "model.json", json.dumps(page, indent=2) + "\n")
        beside.replace(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return told


def _packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(f"--to onnx needs {error.name}: pip install 'samlit[onnx]'") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk of their own passes."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _graphs(net: Sam, image_size: int, parts: Sequence[str]) -> Iterator[_Graph]:
    """The graphs of some parts, with inputs to try them on."""
    channels, grid = net.encoder.channels, image_size // net.encoder.stride
    points, rows = torch.export.Dim("num_points", min=1, max=4096), torch.export.Dim("num_prompts", min=2, max=4096)
    chance = torch.Generator().manual_seed(0)
    image = torch.randn(1, channels, grid, grid, generator=chance)

    def prompts(p: int, n: int) -> tuple[Tensor, ...]:
        xy = torch.rand(p, n, 2, generator=chance) * image_size
        kinds = torch.tensor([1.0, 0.0, -1.0, 2.0, 3.0]).repeat(1 + n // 5)[:n].expand(p, n).contiguous()
        mask = 4 * torch.randn(p, 1, 4 * grid, 4 * grid, generator=chance)
        return xy, kinds, mask, (torch.arange(p) + n) % 2.0

    def frame(p: int, n: int) -> tuple[Tensor, ...]:
        picture = 255 * torch.rand(1, 3, image_size, image_size, generator=chance)
        return picture, torch.tensor([[image_size - 4 * n, image_size]])

    one: Any = ({1: points}, {1: points}, None, None)
    size = torch.tensor([0.5 * image_size + 3, 0.75 * image_size])
    for part in parts:
        if part == "encoder":
            encode = Encode(net)
            yield _Graph("encoder", encode, encode.inputs, encode.outputs, frame, None)
        elif part in ("decoder", "single"):
            whole = Official(net, image_size, single=part == "single")

            def sized(p: int, n: int) -> tuple[Tensor, ...]:
                return image, *prompts(p, n), size + n

            yield _Graph(part, whole, whole.inputs, whole.outputs, sized, (None, *one, None))
        elif part == "batched":
            answer = Answer(net, image_size)
            many = ({0: rows, 1: points}, {0: rows, 1: points}, {0: rows}, {0: rows})
            given = partial(_after, (image,), prompts)
            yield _Graph("batched", answer, answer.inputs, answer.outputs, given, (None, *many), 3)
        else:
            prepare = Prepare(net, image_size)
            yield _Graph("prepare", prepare, prepare.inputs, prepare.outputs, lambda p, n: (image,), None)
            prompted = Prompted(prepare)
            given = partial(_after, prepare(image), prompts)
            dynamic = ((*[None] * len(prepare.outputs), *one),)
            yield _Graph("prompt", prompted, prompted.inputs, prompted.outputs, given, dynamic)


def _after(first: Sequence[Tensor], prompts: Callable[[int, int], tuple[Tensor, ...]], p: int, n: int) -> Any:
    """Prompts after what does not depend on them."""
    return (*first, *prompts(p, n))


def _one(graph: _Graph, folder: Path, options: Options) -> str:
    """Write a graph and compare it with PyTorch; a line that says how near it is."""
    from onnxruntime import InferenceSession, SessionOptions

    path = folder / f"{graph.name}.onnx"
    # The exporter's own optimiser is left out: it changes what some of these graphs answer. onnxruntime has another.
    program = torch.onnx.export(
        graph.module.eval(),
        graph.given(graph.rows, 4),
        None,
        input_names=list(graph.inputs),
        output_names=list(graph.outputs),
        dynamic_shapes=graph.dynamic,
        opset_version=options.opset,
        dynamo=True,
        optimize=False,
        verbose=False,
    )
    assert program is not None
    program.save(str(path), external_data=False)
    if options.precision != "fp32":
        _smaller(path, options.precision)
    silent = SessionOptions()
    silent.log_severity_level = 3
    session = InferenceSession(str(path), silent, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    apart, overlap = 0.0, 1.0
    for rows, points in ((graph.rows, 4), (graph.rows, 1), (max(1, graph.rows - 1), 7)):
        given = graph.given(rows, points)
        wanted = graph.module(*given)
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        feed = {name: x.numpy() for name, x in zip(graph.inputs, given, strict=True) if name in names}
        found = [torch.from_numpy(np.asarray(x, np.float32)) for x in session.run(None, feed)]
        for name, a, b in zip(graph.outputs, found, wanted, strict=True):
            apart = max(apart, float((a - b).abs().max() / b.abs().max().clamp_min(1e-6)))
            if "masks" in name:
                overlap = min(overlap, _iou(a, b))
    if options.precision == "fp32" and apart > EXACT:
        raise ValueError(f"the graph {graph.name} answers otherwise than the model ({apart:.1e} apart): not written")
    size = path.stat().st_size / 1e6
    masks = f", mask IoU {overlap:.4f}" if any("masks" in name for name in graph.outputs) else ""
    return f"{path.name}: {size:.1f} MB, {apart:.1e} from PyTorch{masks}"


def _iou(a: Tensor, b: Tensor) -> float:
    """Of all masks together."""
    both, either = ((a > 0) & (b > 0)).sum(), ((a > 0) | (b > 0)).sum()
    return float(both / either) if either else 1.0


def _smaller(path: Path, precision: str) -> None:
    """The same graph with smaller weights."""
    import onnx

    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), path)
        return
    from onnxruntime import set_default_logger_severity
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # A layer's weight reaches its MatMul through a Transpose, and only what is a constant of the graph is quantised.
    folded = path.with_suffix(".folded.onnx")
    set_default_logger_severity(3)
    try:
        quant_pre_process(path, folded, skip_symbolic_shape=True)
    finally:
        set_default_logger_severity(2)  # as onnxruntime begins
    model = onnx.load(folded)
    graph = model.graph
    del graph.value_info[:]  # a weight that was transposed here still has its old shape there, in onnxruntime to 1.26
    onnx.save(model, folded)
    sizes = {one.name: list(one.dims) for one in graph.initializer}
    # What multiplies a click's x and y is left: rounded, it would move the click.
    places = [node.name for node in graph.node if any(sizes.get(name, [])[:1] == [2] for name in node.input)]
    kinds = ["MatMul", "Gemm"]
    quantize_dynamic(folded, path, weight_type=QuantType.QUInt8, op_types_to_quantize=kinds, nodes_to_exclude=places)
    folded.unlink()
