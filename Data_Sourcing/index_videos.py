"""Index real videos for the video models: stratified splits with no source on both sides, and a row for every video.

python -m Data_Sourcing.index_videos --config Data_Sourcing/index_videos.yaml data_root=DIR output_dir=DIR layout=NAME
"""

from __future__ import annotations

from pathlib import Path

from Data_Sourcing.settings import IndexVideosSettings
from utils.config import read_settings
from utils.errors import run_script


def main() -> None:
    """Read the settings, index the videos, say what a trainer needs."""
    settings = read_settings(IndexVideosSettings, __doc__, Path(__file__).with_name("index_videos.yaml"))
    from Data_Sourcing.video_indexing import run_indexing  # PyAV and pandas: a config error must not wait for them

    print(run_indexing(settings))


if __name__ == "__main__":
    run_script(main)
