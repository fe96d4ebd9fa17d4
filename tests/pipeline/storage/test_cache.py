"""A machine downloads a file of a bucket once, verifies it, and never takes a part for the whole."""

import pickle
import threading
import time

import pytest

from pipeline.data.shards import Shards, fetch_ahead
from pipeline.errors import StoreError
from pipeline.storage.object_store import ObjectStore
from pipeline.storage.store import MANIFEST, UPLOAD, Store
from tests.pipeline.storage.test_store import publish


@pytest.fixture
def store(s3) -> Store:
    return Store(s3)


@pytest.fixture
def elsewhere(store, monkeypatch, tmp_path) -> Store:
    """The same store on another machine."""
    monkeypatch.setenv("FCN_CACHE", str(tmp_path / "elsewhere"))
    return pickle.loads(pickle.dumps(store))


def stored_name(store: Store, name: str) -> str:
    """Where a file of the published net lies in the bucket."""
    manifest = store.published("nets", "a")
    assert manifest is not None
    return f"nets/a/{manifest[UPLOAD]}/{name}"


def read(store: Store) -> bytes:
    return (store.stored("nets", "a").localize() / "net.safetensors").read_bytes()


def test_files_of_another_upload_are_not_taken_for_those_of_the_first(store, elsewhere) -> None:
    publish(store)
    assert read(elsewhere) == b"weights"
    store.files.remove(f"nets/a/{MANIFEST}")
    publish(store, content=b"WEIGHTS")  # of the same size
    assert read(pickle.loads(pickle.dumps(elsewhere))) == b"WEIGHTS"


def test_a_damaged_object_is_named_and_nothing_takes_its_place(store, elsewhere) -> None:
    publish(store)
    name = stored_name(store, "net.safetensors")
    store.files.write(name, b"weirdos")
    with pytest.raises(
        StoreError, match=rf"{name} is not what was uploaded.*remove nets/a/{MANIFEST}"
    ):
        read(elsewhere)
    assert not [p for p in elsewhere.cache.rglob("*") if p.suffix in (".safetensors", ".part")]
    store.files.write(name, b"weights")
    assert read(elsewhere) == b"weights"


def test_an_object_that_is_gone_is_named(store, elsewhere) -> None:
    publish(store)
    store.files.remove(stored_name(store, "net.safetensors"))
    with pytest.raises(StoreError, match=r"net\.safetensors is not what was uploaded"):
        read(elsewhere)


def test_a_copy_that_was_cut_off_is_downloaded_again(store, elsewhere) -> None:
    publish(store)
    path = elsewhere.stored("nets", "a").localize() / "net.safetensors"
    path.write_bytes(b"weig")
    assert read(elsewhere) == b"weights"


def test_one_process_of_a_machine_downloads_and_the_others_wait(
    store, elsewhere, monkeypatch
) -> None:
    publish(store)
    downloads = []
    get = ObjectStore.get

    def slow(self, name, target):
        downloads.append(name)
        time.sleep(0.5)
        return get(self, name, target)

    monkeypatch.setattr(ObjectStore, "get", slow)
    others = [pickle.loads(pickle.dumps(elsewhere)) for _ in range(3)]
    threads = [threading.Thread(target=s.localize, args=("nets/a",)) for s in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(downloads) == 2


def test_shards_are_fetched_ahead_of_use_and_a_damaged_one_is_its_readers_error(
    store, elsewhere, caplog
) -> None:
    publish(store)
    files = [elsewhere.stored("nets", "a", name) for name in ("net.safetensors", "panels/x.png")]
    store.files.write(stored_name(store, "panels/x.png"), b"picturf")
    shards = pickle.loads(pickle.dumps(Shards(files, [1, 1])))
    fetch_ahead(shards).join()
    found = {p.name for p in (elsewhere.cache / "nets").rglob("*") if p.is_file()}
    assert found == {"net.safetensors"}
    assert "x.png is not what was uploaded" in caplog.text
    with pytest.raises(StoreError, match=r"x\.png is not what was uploaded"):
        shards.id(1)
