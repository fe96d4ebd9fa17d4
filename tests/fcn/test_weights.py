"""Weights on disk: nothing in a file is executed, nothing damaged is loaded."""

import pickle

import pytest
import torch

from fcn.nets import FCN, Blueprint
from fcn.weights import NET, load_net, read_weights, save_net


class Evil:
    """Would run a command when unpickled without care."""

    def __reduce__(self):
        return print, ("executed",)


def test_a_pickle_that_is_not_tensors_is_not_opened(tmp_path, capsys) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"weight": Evil()}, path)
    with pytest.raises(ValueError, match="could run code when opened"):
        read_weights(path)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"evil\.pth"):
        read_weights(path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_damaged_and_missing_files_are_named(tmp_path, name) -> None:
    path = tmp_path / name
    with pytest.raises(ValueError, match="no weights file"):
        read_weights(path)
    path.write_bytes(b"not weights at all")
    with pytest.raises(ValueError, match=name):
        read_weights(path)


def test_a_net_whose_weights_were_changed_on_disk_is_refused(tmp_path) -> None:
    save_net(tmp_path, FCN(Blueprint("resnet18", 3, 8)))
    raw = bytearray((tmp_path / NET).read_bytes())
    raw[-1] ^= 1
    (tmp_path / NET).write_bytes(raw)
    with pytest.raises(ValueError, match="sha256 differs"):
        load_net(tmp_path)
