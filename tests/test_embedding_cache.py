"""The embedding cache: the same training without the encoder, made once, found again, and never another's."""

import itertools
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from samlit.datamodule import SamData
from samlit.errors import SamlitError, UsageError
from samlit.faults import Damaged
from samlit.loading.augment import Augment
from samlit.loading.embedding_cache import keep
from samlit.loading.images import Encoded
from samlit.loading.loader import Loader, _Ask, _Batch
from samlit.source import Sample
from tests import fitting

pytestmark = [*fitting.lightning_warnings, pytest.mark.filterwarnings("ignore:.*eval mode at the start")]


class Counting(fitting.Discs):
    """Discs that count how often they are asked for, one of which may be damaged."""

    def __init__(self, count=3, damaged=()):
        super().__init__(count)
        self.damaged = damaged

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        if index in self.damaged:
            return Sample(sample.key, Encoded(b"no image", sample.size), sample.masks)
        return sample


class Blind(fitting.Discs):
    """Discs whose pixels nobody may look at."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return Sample(sample.key, Encoded(b"not to be decoded", sample.size), sample.masks)


def frozen(**others):
    torch.manual_seed(7)
    return fitting.module(freeze=["encoder"], **others)


def fitted(folder, embeddings=None, augment=None, seen=None):
    """The losses of a training, and its scores."""
    losses = []

    class Remember(fitting.pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            losses.append(outputs["loss"].item())

    module = frozen()
    if seen is not None:
        module.net.encoder.register_forward_hook(lambda *_: seen.append(1))
    where = embeddings and str(embeddings)
    data = SamData(fitting.Discs(4), fitting.Discs(3), 32, 2, augment=augment or Augment(), embeddings=where)
    fitting.trainer(folder, [Remember()], max_steps=4).fit(module, data)
    return losses, module.scores


def test_a_training_is_the_same_with_it_and_the_encoder_rests(tmp_path):
    flip = 0.5
    plain, scores = fitted(tmp_path / "plain", augment=Augment(flip=flip))
    seen = []
    kept, kept_scores = fitted(tmp_path / "kept", tmp_path / "cache", Augment(flip=flip), seen)
    # 2 batches of 4 images, and of those mirrored; what is validated on is among them.
    assert len(seen) == 4
    assert torch.allclose(torch.tensor(kept), torch.tensor(plain), rtol=2e-3), "half precision"
    assert kept != plain, "it was read from files"
    for name, value in scores.items():
        assert kept_scores[name] == pytest.approx(value, abs=2e-2)
    again = []
    assert fitted(tmp_path / "again", tmp_path / "cache", Augment(flip=flip), again)[0] == kept
    assert not again, "nothing is embedded twice"


def test_embeddings_are_the_encoders_of_the_frame_as_it_lies(tmp_path):
    """Mirrored within the picture, not within the frame, whose padding stays at the right and below."""
    net, source = frozen().net.eval(), fitting.Discs(2, side=20)
    kept = keep(net, source, tmp_path, 32, mirrored=True, batch_size=2)
    for mirrored in (False, True):
        loader = Loader(source, 32, 1, augment=Augment(flip=float(mirrored)))
        for batch in loader:
            number = int(batch.keys[0].split()[1])
            with torch.no_grad():
                expected = net.embed(batch.image, batch.sizes).image[0]
            (found,) = kept.read(number, mirrored)
            assert found.dtype == np.float16
            # Half precision, and another filter for what is resized.
            assert torch.allclose(torch.from_numpy(found).float(), expected, atol=1e-2)


def test_a_training_batch_comes_without_its_pixels(tmp_path):
    net = frozen().net
    kept = keep(net, fitting.Discs(3), tmp_path, 32)
    loader = Loader(Blind(3), 32, 3, kept=kept)
    (batch,) = loader
    (expected,) = Loader(fitting.Discs(3), 32, 3)
    assert batch.image.shape == (3, 3, 32, 32)
    assert batch.image.untyped_storage().nbytes() == 1, "a picture of nothing takes no room"
    assert torch.equal(batch.masks, expected.masks)
    assert torch.equal(batch.sizes, expected.sizes)
    moved = batch.to("meta")
    assert moved.embedding.image.device.type == "meta"
    assert batch.embedding.image.shape == (3, 16, 4, 4)
    # As it comes from a worker.
    samples = pickle.loads(pickle.dumps(loader._samples))
    (framed,) = samples.__getitems__(_Batch([_Ask(0, 1)], []))
    again = pickle.loads(pickle.dumps(framed))
    assert np.array_equal(again.embedding[0], kept.read(1)[0])
    assert len(pickle.dumps(framed)) < 2000 + framed.embedding[0].nbytes


def test_what_a_killed_run_has_written_stays_and_the_rest_is_made(tmp_path):
    net, source = frozen().net, fitting.Discs(3)
    kept = keep(net, source, tmp_path, 32)
    paths = [kept.path(number, False) for number in range(3)]
    first = paths[0].stat().st_mtime_ns
    paths[1].unlink()
    told = []
    keep(net, source, tmp_path, 32, progress=lambda *step: told.append(step))
    assert told[-1] == (1, 1, "embedding images")
    assert paths[1].exists()
    assert paths[0].stat().st_mtime_ns == first
    assert not list(Path(tmp_path).rglob("*.tmp"))


def test_each_rank_embeds_its_share_and_knows_of_all(tmp_path):
    net, source = frozen().net, fitting.Discs(3)
    one = keep(net, source, tmp_path, 32, rank=0, world=2)
    assert [one.path(number, False).exists() for number in range(3)] == [True, False, True]
    other = keep(net, source, tmp_path, 32, rank=1, world=2)
    assert all(one.path(number, False).exists() for number in range(3))
    assert np.array_equal(one.names, other.names)


def test_other_weights_another_frame_and_another_picture_are_embedded_anew(tmp_path):
    net = frozen().net
    kept = keep(net, fitting.Discs(2), tmp_path, 32)
    assert keep(net, fitting.Discs(3), tmp_path, 32).path(1, False) == kept.path(1, False)
    assert keep(net, fitting.Discs(2), tmp_path, 64).folder != kept.folder
    assert keep(net, fitting.Discs(2), tmp_path, 32, precision="bf16-mixed").folder != kept.folder
    net.encoder.pos_embed.data += 1
    assert keep(net, fitting.Discs(2), tmp_path, 32).folder != kept.folder


def test_what_cannot_be_embedded_is_left_to_the_quarantine(tmp_path):
    kept = keep(frozen().net, Counting(3, damaged=(1,)), tmp_path, 32, batch_size=2)
    assert kept.read(0)
    assert kept.read(2)
    with pytest.raises(Damaged, match="could not be embedded"):
        kept.read(1)
    kept.path(0, False).write_bytes(b"cut")
    with pytest.raises(Damaged, match="is damaged: delete it"):
        kept.read(0)
    kept.path(2, False).unlink()
    with pytest.raises(Damaged, match="is gone: start again"):
        kept.read(2)


def test_what_cannot_be_is_said_in_one_line(tmp_path, monkeypatch):
    torch.manual_seed(0)
    with pytest.raises(UsageError, match=r"^data.embeddings: .* add --model.freeze '\[encoder\]'"):
        keep(fitting.module().net, fitting.Discs(1), tmp_path, 32)
    augment = Augment(flip=0.5, turn=True, zoom=(0.5, 2), color=0.1)
    with pytest.raises(UsageError, match=r"leave out data.augment.turn and data.augment.zoom and data.augment.color"):
        SamData(fitting.Discs(), augment=augment, embeddings="cache")
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(SamlitError, match=r"3 embeddings need 0.0 GB, and .* has room for 0.0 GB"):
        keep(frozen().net, fitting.Discs(3), tmp_path, 32)
    assert not list(tmp_path.rglob("*.safetensors")), "nothing was begun"
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(SamlitError, match="file cannot be written to"):
        keep(frozen().net, fitting.Discs(3), tmp_path / "file", 32)


@pytest.mark.parametrize(("steps", "batches"), [(2, 1), (1, 3), (7, 1)])
def test_only_what_a_training_will_see_is_embedded(tmp_path, steps, batches):
    data = SamData(fitting.Discs(9), image_size=32, batch_size=2, embeddings=str(tmp_path))
    data.trainer = SimpleNamespace(
        max_steps=steps,
        accumulate_grad_batches=batches,
        default_root_dir=tmp_path,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    loader = data.train_dataloader()
    coming = itertools.chain(loader, loader)  # another epoch, where there are steps for one
    keys = {key for batch in itertools.islice(coming, steps * batches) for key in batch.keys}
    seen = data._seen(1)
    assert {f"disc {number}" for number in seen} == keys
    assert len(seen) == min(2 * steps * batches, 9)
    data.trainer.max_steps = -1
    assert data._seen(1) is None
