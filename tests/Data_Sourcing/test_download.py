"""`download: true` against a server on this machine: fetched once, checked, and nothing left behind when it fails."""

from __future__ import annotations

import functools
import hashlib
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from samples import write_raw_set

from Data_Sourcing.settings import SourcingSettings
from Data_Sourcing.sourcing import run_sourcing
from utils.artifacts import IMAGE_INDEX, read_table
from utils.config import build_settings
from utils.errors import InputError


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("server")
    write_raw_set(folder / "tiny-imagenet-200")
    return Path(shutil.make_archive(str(folder / "raw"), "zip", folder, "tiny-imagenet-200"))


@pytest.fixture(scope="module")
def url(archive) -> str:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(archive.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/raw.zip"
    server.shutdown()


def settings_for(tmp_path: Path, url: str, md5: str) -> SourcingSettings:
    raw = {
        "raw_root": str(tmp_path / "data" / "tiny.zip"),
        "output_dir": str(tmp_path / "out"),
        "download": True,
        "download_url": url,
        "download_md5": md5,
        "classes": [{"wnid": "c1", "name": "one"}, {"wnid": "c0", "name": "zero"}],
    }
    return build_settings(SourcingSettings, raw, "test")


def test_the_archive_is_fetched_checked_and_used(tmp_path, archive, url):
    settings = settings_for(tmp_path, url, hashlib.md5(archive.read_bytes()).hexdigest())
    index = run_sourcing(settings, "train")
    assert settings.raw_root.read_bytes() == archive.read_bytes()
    assert read_table(index, IMAGE_INDEX)["wnid"].tolist() == ["c1"] * 3 + ["c0"] * 3
    fetched = settings.raw_root.stat().st_mtime_ns
    run_sourcing(settings, "val")
    assert settings.raw_root.stat().st_mtime_ns == fetched, "it was fetched a second time"
    run_sourcing(settings, "train")  # finished, and its archive is known: no complaint


def test_a_finished_split_is_not_fetched_again_and_another_archive_is_refused(tmp_path, archive, url):
    settings = settings_for(tmp_path, url, hashlib.md5(archive.read_bytes()).hexdigest())
    run_sourcing(settings, "train")
    settings.raw_root.unlink()
    run_sourcing(settings, "train")
    assert not settings.raw_root.exists()
    settings.raw_root.write_bytes(b"another")
    with pytest.raises(InputError, match="raw data: its content has changed"):
        run_sourcing(settings, "train")


def test_a_wrong_checksum_leaves_nothing_behind(tmp_path, url):
    settings = settings_for(tmp_path, url, "0" * 32)
    with pytest.raises(InputError, match=r"download of http://.* failed .*fetch it by hand, save it as .*tiny\.zip"):
        run_sourcing(settings, "train")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_server_out_of_reach_is_one_sentence(tmp_path):
    settings = settings_for(tmp_path, "http://203.0.113.1/raw.zip", "0" * 32)
    with pytest.raises(InputError, match=r"download of http://203\.0\.113\.1/raw\.zip failed"):
        run_sourcing(settings, "train")


def test_a_file_that_is_there_is_never_replaced(tmp_path, url):
    settings = settings_for(tmp_path, url, "0" * 32)
    settings.raw_root.parent.mkdir(parents=True)
    settings.raw_root.write_bytes(b"mine")
    with pytest.raises(InputError, match="is not a complete zip file"):
        run_sourcing(settings, "train")
    assert settings.raw_root.read_bytes() == b"mine"
