"""The notebook that shows samlit from the first click to a model of one's own."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).parents[1] / "docs" / "tour.ipynb"
SHARED = Path(os.environ.get("SAMLIT_SHARED") or Path(__file__).resolve().parents[2] / "shared" / "data")
MOBILE_SAM = SHARED.parent / "weights" / "mobile_sam.pt"


def test_it_is_kept_as_it_ran() -> None:
    cells = [cell for cell in nbformat.read(TOUR, 4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert sum("image/jpeg" in output.get("data", {}) for cell in cells for output in cell.outputs) == 3


def less(notebook: nbformat.NotebookNode, text: str, instead: str) -> None:
    (cell,) = [cell for cell in notebook.cells if text in cell.source and cell.cell_type == "code"]
    assert cell.source.count(text) == 1
    cell.source = cell.source.replace(text, instead)


@pytest.mark.slow
@pytest.mark.skipif(
    not MOBILE_SAM.is_file(), reason=f"{MOBILE_SAM} is not here: SAMLIT_SHARED names the folder of real data beside it"
)
def test_it_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "cache" / "weights"
    weights.mkdir(parents=True)
    (weights / MOBILE_SAM.name).symlink_to(MOBILE_SAM)
    monkeypatch.setenv("SAMLIT_CACHE", str(weights.parent))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(TOUR, 4)
    # That the steps teach, and how much is found, is seen in what is kept.
    less(notebook, "--trainer.max_steps 40 --trainer.val_check_interval 40", "--trainer.max_steps 2")
    less(notebook, "--data.source.count 32", "--data.source.count 8")
    less(notebook, "--data.validation.count 12", "--data.validation.count 2")
    less(notebook, "points_per_side=16", "points_per_side=6")
    client = NotebookClient(notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()
    (said,) = [output.text for output in notebook.cells[-2].outputs]
    assert said.startswith("100.00% of the pixels as in PyTorch")
    assert (tmp_path / "runs" / "tour" / "best.ckpt").is_file()
