"""How fast it is: FLOPs against torch's own counter, time with a clock of the test's, names of learning rates."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from samlit.run import speed as module_of_speed
from samlit.run.flops import cost, peak, skeleton, without_values
from samlit.run.speed import Speed, rates
from samlit.structures import PromptSet, Ragged
from samlit.training.optim import Optim
from tests import fitting

pytestmark = fitting.lightning_warnings


def prompts(rows, count, multimask, fed_back=False):
    given = {"points": Ragged.of(torch.ones(rows, count, 3))}
    if fed_back:
        given["masks"] = Ragged.of(torch.zeros(rows, 1, 16, 16))
    return PromptSet(torch.arange(rows) % 2, given, multimask)


def test_flops_are_those_that_torch_counts_of_the_step_itself():
    net = fitting.module().net
    asked = [prompts(6, 1, None), prompts(6, 2, False, True)]
    trained = {name: True for name, _ in net.named_parameters()}
    found = cost(skeleton(net), trained, 32, 2, [without_values(p) for p in asked])

    def counted(run):
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    pixels, sizes = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.full((2, 2), 32)
    whole = counted(lambda: net.embed(pixels, sizes).image.sum().backward())
    patches = 2 * 3 * 8 * 8 * 16 * 16  # pixels need no gradient, so the first layer's products have one less
    assert found.image - patches == whole / 2
    with torch.no_grad():
        embedding = net.embed(pixels, sizes)
    leaf = type(embedding)(embedding.image.clone().requires_grad_(), tuple(x.clone() for x in embedding.early))

    def answers():
        for p in asked:
            answer = net.answer(leaf, p, (32, 32))
            (answer.logits.sum() + answer.iou.sum()).backward()

    assert found.answer == pytest.approx(counted(answers) / 12, rel=0.1)
    # What is frozen is asked for less.
    frozen = {name: not name.startswith("encoder.") for name in trained}
    less = cost(skeleton(net), frozen, 32, 2, [without_values(p) for p in asked])
    assert less.image == pytest.approx(found.image / 3)
    assert less.answer == found.answer


def test_a_gpu_that_is_not_known_has_no_peak():
    assert peak("NVIDIA H200", "bf16-mixed") == 989.4
    assert peak("NVIDIA H100 PCIe", "bf16-true") == 756.0
    full = torch.get_float32_matmul_precision() == "highest"
    assert peak("NVIDIA A100-SXM4-80GB", "32-true") == (19.5 if full else 156.0)
    assert peak("", "bf16-mixed") is peak("Something 9000", "32-true") is None


@pytest.mark.parametrize(
    ("options", "frozen", "names"),
    [
        ({}, "", ["all"]),
        ({}, "encoder.", ["decoder"]),
        ({}, "decoder.", ["all"]),
        ({"layer_decay": 0.5}, "", ["decoder", "encoder_00", "encoder_01"]),
        ({"algorithm": "muon"}, "", ["all", "all_muon"]),
    ],
)
def test_learning_rates_are_named_by_layer_at_every_step_alike(options, frozen, names):
    module = fitting.module()
    for name, parameter in module.net.named_parameters():
        if frozen and name.startswith(frozen):
            parameter.requires_grad_(False)
    optim = dataclasses.replace(Optim(lr=1.0, warmup=1, schedule="cosine"), **options)
    optimizer, schedule = optim.build(module.net, 3)
    first = rates([optimizer], module)
    assert sorted(first) == [f"lr/{name}" for name in names]
    assert first[f"lr/{names[0]}"] == 0.5
    for _ in range(3):
        optimizer.step()
        schedule.step()
    assert sorted(rates([optimizer], module)) == sorted(first)
    assert set(rates([optimizer], module).values()) == {0.0}


def test_a_step_waits_for_its_batch_and_not_for_validation(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module_of_speed.time, "monotonic", lambda: now[0])
    clock = module_of_speed._Clock(torch.device("cpu"))

    def step(waits, takes):
        now[0] += waits
        clock.begin()
        now[0] += takes
        clock.end()

    step(100, 2)  # nobody counts what was before the first
    step(1, 3)
    assert clock.take() == (6, 1)
    step(2, 2)
    clock.pause()  # a validation
    step(50, 4)
    clock.pause()  # a checkpoint, and one more thing
    clock.pause()
    step(50, 4)
    step(1, 1)
    assert clock.take() == (4 + 4 + 6, 2 + 1)
    assert clock.take() == (0, 0)


def test_a_gpu_waits_where_its_own_events_say_so(monkeypatch):
    now, device = [0.0], [0.0]  # the host's time, and how far the device has come

    class Event:
        def __init__(self):
            device[0] = max(device[0], now[0])  # the device had nothing to do, or is still busy
            self.at = device[0]

        def elapsed_time(self, other):
            return 1000 * (other.at - self.at)

    monkeypatch.setattr(module_of_speed.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module_of_speed._Clock, "_event", lambda self: Event() if self._cuda else None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: now.__setitem__(0, max(now[0], device[0])))
    clock = module_of_speed._Clock(torch.device("cuda"))
    for waits in (0, 1, 1, 12):  # the device works for 4 in each step, the host gives it out in no time
        now[0] += waits
        clock.begin()
        device[0] += 4
        clock.end()
    # While the host waited for 12, the device was busy for 10 with what was left of three steps.
    assert clock.take() == (18, 2)


class Numbers(fitting.pl.Callback):
    def __init__(self, speed):
        self.speed, self.rows = speed, []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.rows.append(self.speed.numbers)


def test_a_model_that_looks_at_values_is_trained_without_its_flops(tmp_path, capsys):
    speed, module = Speed(), fitting.module()
    answer = module.net.answer

    def looking(embedding, prompts, size):
        assert float(embedding.image.detach().sum()) < 1e9
        return answer(embedding, prompts, size)

    module.net.answer = looking
    keep = Numbers(speed)
    fitting.trainer(tmp_path, [speed, keep]).fit(module, fitting.data())
    assert capsys.readouterr().err.count("no TFLOP/s") == 1
    assert module.net.answer is looking
    assert [set(row) for row in keep.rows] == [
        {
            "lr/all",
            "speed/images_per_second",
            "speed/answers_per_second",
            "speed/data_wait",
            "speed/memory_gib",
        }
    ] * 2


def test_numbers_come_as_often_as_the_loggers(tmp_path):
    speed, module = Speed(), fitting.module()
    keep = Numbers(speed)
    options = {"max_steps": 4, "log_every_n_steps": 2, "accumulate_grad_batches": 2}
    fitting.trainer(tmp_path, [speed, keep], **options).fit(module, fitting.data(count=16))
    assert [bool(row) for row in keep.rows] == [False] * 3 + [True] * 5
    first, last = keep.rows[3], keep.rows[-1]
    assert first is not last
    assert module.tally.images == 16
    # 8 images in either: the rates say how long they took, and the rest follows.
    seconds = 8 / last["speed/images_per_second"]
    assert last["speed/answers_per_second"] * seconds == pytest.approx(8 * 2 * 4)
    assert 0 < last["speed/tflops"] < 1
    assert 0 <= last["speed/data_wait"] < 1
    assert 0.05 < last["speed/memory_gib"] < 50
    assert "speed/share_of_peak" not in last
