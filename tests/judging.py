"""The metric of each task that judges, with what its task may say of four images."""

import torch

from samlit.evaluation.detection import Annotations
from samlit_tasks.clicks import Clicks
from samlit_tasks.edges import Edges
from samlit_tasks.foreground import Foreground
from samlit_tasks.instances import Precision
from samlit_tasks.panoptic import Quality
from samlit_tasks.points import Points
from samlit_tasks.proposals import Proposals
from samlit_tasks.semantic import MeanIou
from samlit_tasks.text_to_mask import TextToMask
from tests.clicking import samples
from tests.test_detection import annotated


def four(name):
    """Results of four images, of which no two say the same."""
    for n in range(1, 5):
        share = n / 5
        ious = [share] * n  # images with more masks count for more
        yield {
            "points": {f"{k}_click{'s' * (k > 1)}": torch.tensor(ious) for k in (1, 2, 3, 5, 9)},
            "clicks": {"ious": [[0.1 * n, share, 0.95]] * n, "seconds": n},
            "edges": {"counts": [[[8 - n, 4], [10, 10], [8 - n, 4], [16 - n, 4]]]},
            "proposals": {
                "proposals": [{"pairs": [(0, 0, share), (1, 1, 0.6)], "groups": [["small"], ["large"]], "masks": n + 1}]
            },
            "semantic": {"semantic": [[[1, 10 * n, 50], [n, 5, 9]]]},
            "panoptic": {"panoptic": [[[1, share, n, 1, 2], [n, 0.7, 1, 0, 0]]]},
            "foreground": {"f_curve": [torch.arange(256) / 255 * share], "mae": [share], "s_measure": [1 - share]},
            "text_to_mask": {"text": torch.tensor(ious), "found": [[f"{n}", 1, [share, 0.5], [[0.8], [0.1]]]]},
        }[name]


def judges(folder):
    """By the task's name: a metric, and the results of four images."""
    tasks = {
        "points": Points(), "clicks": Clicks(), "edges": Edges(2), "proposals": Proposals(), "foreground": Foreground(),
        "text_to_mask": TextToMask(),
    }  # fmt: skip
    found = {name: (task.metric(), list(four(name))) for name, task in tasks.items()}
    found["semantic"] = MeanIou(), list(four("semantic"))
    found["panoptic"] = Quality({1, 2}), list(four("panoptic"))
    made = samples(sizes=((50, 90), (64, 61), (70, 40), (40, 44)))
    folder.mkdir()
    known = Annotations(str(annotated(folder, made)))
    results = []
    for n, number in enumerate(known.images):
        rows = []
        for one, mask in known.masks(number):
            told = {"size": list(mask.size), "counts": mask.counts}
            kind = one["category_id"] if len(rows) != n else 3 - one["category_id"]
            rows.append({"image_id": number, "category_id": kind, "segmentation": told, "score": 1 / (1 + one["id"])})
        results.append({"instances": [{"image": number, "results": rows}]})
    found["instances"] = Precision(known), results
    return found


def judged(metric, results):
    """The numbers of some results, by name."""
    for one in results:
        metric.update(one)
    found = {name: float(value) for name, value in metric.compute().items()}
    metric.reset()
    return found
