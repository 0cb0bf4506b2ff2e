"""What is wrong with a configuration is found from the registry alone, before torch and transformers are imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROJECT
from digit_clips import LEARNING
from tiny_families import TINY

from utils.config import read_yaml
from Video_Models.registry import FAMILIES


def test_every_family_has_a_yaml_of_its_own_and_a_learning_test():
    assert {name: read_yaml(PROJECT / f"Video_Models/{name}.yaml")["family"] for name in FAMILIES} == {
        name: name for name in FAMILIES
    }
    assert set(LEARNING) == set(FAMILIES)


@pytest.mark.parametrize("family", TINY)
def test_a_tiny_configuration_is_known_and_a_typo_lists_what_is(family):
    FAMILIES[family].check_config(TINY[family])
    with pytest.raises(ValueError, match=r"^config: unknown key 'hiden_size'; this family knows: [a-z_, ]+$"):
        FAMILIES[family].check_config({"hiden_size": 16})


@pytest.mark.parametrize("family", ["videomae", "timesformer", "vivit"])
def test_a_typo_in_the_settings_ends_before_anything_heavy(family, tmp_path: Path):
    (tmp_path / "a.yaml").write_text(f"family: {family}\ndata_root: .\nweights: none\nconfig: {{hiden_size: 16}}\n")
    code = f"""
import sys
from pathlib import Path
from utils.config import read_settings
from utils.errors import InputError
from Video_Models.settings import VideoSettings
try:
    read_settings(VideoSettings, "", Path({str(tmp_path / "a.yaml")!r}), [])
except InputError as error:
    print(error)
print({{"torch", "transformers", "huggingface_hub"}} & set(sys.modules))
"""
    outcome = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    sentence, heavy = outcome.stdout.splitlines()
    assert "config: unknown key 'hiden_size'; this family knows: attention_probs_dropout_prob, " in sentence
    assert heavy == "set()"
