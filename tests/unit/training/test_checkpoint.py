"""A checkpoint is there whole or not at all, can be written beside training, and old ones are read."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tiltyard.errors import ModelError
from tiltyard.training import Member, Pack, checkpoint


def pack_of(world: Any, epochs: int = 1) -> Pack:
    pack = Pack.create(world.spec("mlp"), [Member(name=f"m{i}", seed=i, lr=0.01, dropout=0.2) for i in range(3)])
    for epoch in range(epochs):
        pack.train_epoch(world.batches(epoch))
    return pack


def test_checkpoint_written_later_holds_the_moment_it_was_asked_for(
    worlds: Any, tmp_path: Path, params_of: Any
) -> None:
    world = worlds["multiclass"]
    pack = pack_of(world)
    then = {m.name: params_of(pack, m.name) for m in pack.members}
    saving = pack.save_later(tmp_path / "at1")
    pack.train_epoch(world.batches(1))
    saving.wait()
    assert saving.done
    back = Pack.load(tmp_path / "at1")
    assert back.epoch == 1
    for name, value in then.items():
        assert torch.equal(params_of(back, name), value)
        assert not torch.equal(params_of(pack, name), value)


def test_checkpoint_that_could_not_be_written_later_says_so_when_waited_for(worlds: Any, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    saving = pack_of(worlds["multiclass"]).save_later(tmp_path / "taken")
    with pytest.raises(FileExistsError):
        saving.wait()


@pytest.mark.parametrize("fails", ["replace", "fsync"])
def test_checkpoint_whose_writing_fails_leaves_the_older_one_whole(
    fails: str, worlds: Any, tmp_path: Path, params_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = worlds["multiclass"]
    pack = pack_of(world)
    pack.save(tmp_path)
    then = params_of(pack, "m1")
    pack.train_epoch(world.batches(1))

    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, fails, no_space)
        with pytest.raises(OSError, match="No space"):
            pack.save(tmp_path)
    back = Pack.load(tmp_path)
    assert back.epoch == 1
    assert torch.equal(params_of(back, "m1"), then)
    assert len(list(tmp_path.iterdir())) == 2


def test_checkpoint_of_a_writer_that_died_before_the_end_is_the_older_one(worlds: Any, tmp_path: Path) -> None:
    pack = pack_of(worlds["multiclass"])
    pack.save(tmp_path)
    (tmp_path / "pack-0123456789ab.safetensors").write_bytes(b"half of it")
    (tmp_path / ".pack.json").write_text("{")
    assert Pack.load(tmp_path).epoch == 1
    pack.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2, "what was left lying is cleared away"


def test_checkpoint_with_its_tensors_cut_short_or_gone_is_refused(worlds: Any, tmp_path: Path) -> None:
    pack_of(worlds["multiclass"]).save(tmp_path)
    tensors = next(tmp_path.glob("*.safetensors"))
    tensors.write_bytes(tensors.read_bytes()[:-10])
    with pytest.raises(ModelError, match=r"not whole.*Train the pack again"):
        Pack.load(tmp_path)
    tensors.unlink()
    with pytest.raises(ModelError, match=r"not whole"):
        Pack.load(tmp_path)
    (tmp_path / "pack.json").write_text("{")
    with pytest.raises(ModelError, match=r"not JSON"):
        Pack.load(tmp_path)


@pytest.mark.parametrize("seed", range(4))
def test_checkpoint_of_which_any_byte_has_changed_is_refused(seed: int, worlds: Any, tmp_path: Path) -> None:
    pack_of(worlds["multiclass"]).save(tmp_path)
    draw = random.Random(seed)
    for file in sorted(tmp_path.iterdir()):
        whole = file.read_bytes()
        for place in draw.sample(range(len(whole)), 40):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << draw.randrange(8))]) + whole[place + 1 :])
            with pytest.raises(ModelError):
                Pack.load(tmp_path)
        file.write_bytes(whole)
    assert Pack.load(tmp_path).epoch == 1


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"members": None}, r"does not say what a pack's must"),
        ({"spec": {"model": "mlp"}}, r"does not say what a pack's must"),
        ({"epoch": "one"}, r"does not say what a pack's must"),
        ({"optimizer": "momentum"}, r"does not fit its model 'mlp': moment.m is"),
        ({"model_args": {"hidden": [7]}}, r"does not fit its model 'mlp': moment.m is \(\(3, 761\)"),
        ({"tensors": ""}, r"not whole"),
        ({"tensors": "../../elsewhere"}, r"not whole: elsewhere"),
        ({"schema_version": 0}, r"schema version 0; this Tiltyard reads 1 to 3"),
        ({"schema_version": True}, r"schema version True"),
        ([], r"holds a list; an object is wanted"),
        (None, r"holds a NoneType; an object is wanted"),
    ],
)
def test_checkpoint_that_says_what_cannot_be_is_refused_with_what_it_says(
    changes: Any, match: str, worlds: Any, tmp_path: Path
) -> None:
    """Of schema 2, which had no checksum that would tell."""
    pack_of(worlds["multiclass"]).save(tmp_path)
    path = tmp_path / "pack.json"
    meta = json.loads(path.read_text()) | {"schema_version": 2}
    del meta["crc32"]
    if isinstance(changes, dict):
        for name, value in changes.items():
            (meta["spec"] if name in {"optimizer", "model_args"} else meta)[name] = value
    path.write_text(json.dumps(meta if isinstance(changes, dict) else changes))
    with pytest.raises(ModelError, match=match):
        Pack.load(tmp_path)


def test_checkpoints_asked_for_one_after_another_are_written_in_that_order(worlds: Any, tmp_path: Path) -> None:
    world = worlds["multiclass"]
    pack = pack_of(world)
    for epoch in range(1, 6):
        pack.save_later(tmp_path)
        pack.train_epoch(world.batches(epoch))
    pack.save_later(tmp_path).wait()
    assert Pack.load(tmp_path).epoch == 6
    pack.save_later(tmp_path)
    pack.train_epoch(world.batches(6))
    pack.save(tmp_path)
    assert Pack.load(tmp_path).epoch == 7
    assert len(list(tmp_path.iterdir())) == 2


def test_checkpoint_of_schema_2_which_had_no_checksum_is_read(worlds: Any, tmp_path: Path, params_of: Any) -> None:
    pack = pack_of(worlds["multiclass"])
    pack.save(tmp_path)
    path = tmp_path / "pack.json"
    meta = json.loads(path.read_text()) | {"schema_version": 2}
    del meta["crc32"]
    path.write_text(json.dumps(meta))
    assert torch.equal(params_of(Pack.load(tmp_path), "m1"), params_of(pack, "m1"))
    path.write_text(json.dumps(meta | {"schema_version": 3}))
    with pytest.raises(ModelError, match="None is recorded"):
        Pack.load(tmp_path)


def test_checkpoint_of_schema_1_is_read(worlds: Any, tmp_path: Path, params_of: Any) -> None:
    """Its tensors lay in pack.safetensors, and its JSON did not say so."""
    pack = pack_of(worlds["multiclass"])
    pack.save(tmp_path / "new")
    tensors, meta = checkpoint.read(tmp_path / "new")
    old = tmp_path / "old"
    old.mkdir()
    save_file(tensors, old / "pack.safetensors")
    del meta["tensors"], meta["crc32"]
    (old / "pack.json").write_text(json.dumps(meta | {"schema_version": 1}))
    back = Pack.load(old)
    for member in pack.members:
        assert torch.equal(params_of(back, member.name), params_of(pack, member.name))
    back.save(old)
    assert not (old / "pack.safetensors").exists()
