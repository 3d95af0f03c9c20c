"""A checkpoint's files are found where Transformers finds them, in a folder as in the Hub's cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import BertForSequenceClassification

from accel_kd.errors import UserError
from accel_kd.models.checkpoint_files import code_files, code_revision, raw_config, weight_files
from accel_kd.models.fingerprint import config_facts
from accel_kd.models.loading import Checkpoint, load_classifier
from accel_kd.models.weights_digest import weights_digest
from tests.support.tiny import config, write_model

COMMITS = {"main": "a" * 40, "older": "b" * 40}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an empty cache of the Hub, which cannot be reached."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


def publish(hub: Path, repository: str, content: Path, revision: str = "main") -> Path:
    """`content` as the cache holds it once it has been downloaded; the folder with its files."""
    cached = hub / f"models--{repository.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True, exist_ok=True)
    (cached / "refs" / revision).write_text(COMMITS[revision])
    return shutil.copytree(content, cached / "snapshots" / COMMITS[revision])


def write_code(folder: Path, repository: str = "") -> Path:
    """A model folder of a class that imports from a file, which imports from another."""
    folder.mkdir(parents=True)
    reference = f"{repository}--modeling_mine.Mine" if repository else "modeling_mine.Mine"
    (folder / "config.json").write_text(f'{{"auto_map": {{"AutoModelForSequenceClassification": "{reference}"}}}}')
    (folder / "modeling_mine.py").write_text("from .layers_mine import Layer\n")
    (folder / "layers_mine.py").write_text("from .tables_mine import TABLE\n")
    (folder / "tables_mine.py").write_text("TABLE = 1\n")
    (folder / "train.py").write_text("print('not imported')\n")
    return folder


def test_a_model_on_the_hub_has_the_digest_of_the_same_files_in_a_folder(
    hub: Path, tiny_teacher: Path, tmp_path: Path
) -> None:
    publish(hub, "org/model", tiny_teacher)
    other = write_model(tmp_path / "other", seed=1, layers=1)
    publish(hub, "org/model", other, "older")
    for revision, folder in ((None, tiny_teacher), ("main", tiny_teacher), ("older", other), (COMMITS["older"], other)):
        there = Checkpoint("org/model", "teacher.model", revision=revision)
        here = Checkpoint(str(folder), "teacher.model")
        assert weights_digest(there) == weights_digest(here)
        assert config_facts(there) == config_facts(here)
        assert len(load_classifier(there).state_dict()) == len(load_classifier(here).state_dict())


def test_shards_on_the_hub_are_found_by_their_index(hub: Path, tmp_path: Path) -> None:
    BertForSequenceClassification(config()).save_pretrained(tmp_path / "many", max_shard_size="20KB")
    cached = publish(hub, "org/many", tmp_path / "many")
    checkpoint = Checkpoint("org/many", "teacher.model")
    assert weight_files(checkpoint) == sorted(cached.glob("model-*.safetensors"))
    assert weights_digest(checkpoint) == weights_digest(Checkpoint(str(tmp_path / "many"), "teacher.model"))


def test_what_the_hub_does_not_give_is_one_line_that_names_the_model(hub: Path, tiny_teacher: Path) -> None:
    with pytest.raises(UserError, match=r"^teacher\.model: the configuration of 'org/model' .*from the Hub"):
        raw_config(Checkpoint("org/model", "teacher.model"))
    cached = publish(hub, "org/model", tiny_teacher)
    (cached / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"'org/model' has none of model\.safetensors, .*allow_pickle=true"):
        weights_digest(Checkpoint("org/model", "teacher.model"))
    with pytest.raises(UserError, match=r"none of .*pytorch_model\.bin\.index\.json$"):
        weights_digest(Checkpoint("org/model", "teacher.model", allow_pickle=True))


def test_the_code_of_a_model_on_the_hub_is_what_it_names_and_what_that_imports(hub: Path, tmp_path: Path) -> None:
    publish(hub, "org/code", write_code(tmp_path / "code"))
    names = {"modeling_mine.py", "layers_mine.py", "tables_mine.py"}
    trusted = Checkpoint("org/code", "teacher.model", trust_remote_code=True)
    assert code_files(trusted).keys() == names
    assert code_files(Checkpoint("org/code", "teacher.model")) == {}
    elsewhere = write_code(tmp_path / "elsewhere", repository="org/code")
    (elsewhere / "modeling_mine.py").unlink()
    found = code_files(Checkpoint(str(elsewhere), "teacher.model", trust_remote_code=True))
    assert found.keys() == {"layers_mine.py", "tables_mine.py", "train.py"} | {f"org/code/{name}" for name in names}
    publish(hub, "org/borrowed", elsewhere, "older")
    borrowed = code_files(Checkpoint("org/borrowed", "teacher.model", revision="older", trust_remote_code=True))
    assert borrowed.keys() == {f"org/code/{name}" for name in names}, "the revision is of the other repository"
    (hub / "models--org--code" / "snapshots" / COMMITS["main"] / "layers_mine.py").unlink()
    with pytest.raises(UserError, match=r"^teacher\.model: the code of 'org/code' cannot be loaded"):
        code_files(trusted)


def test_code_in_a_folder_counts_by_its_text_where_it_is_trusted(tmp_path: Path) -> None:
    folder = write_code(tmp_path / "code")
    trusted = Checkpoint(str(folder), "teacher.model", trust_remote_code=True)
    before, untrusted = config_facts(trusted), config_facts(Checkpoint(str(folder), "teacher.model"))
    assert "code" not in untrusted
    assert before == untrusted | {"code": before["code"]} and len(before["code"]) == 4
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    assert config_facts(Checkpoint(str(moved), "teacher.model", trust_remote_code=True)) == before
    (folder / "tables_mine.py").write_text("TABLE = 2\n")
    after = config_facts(trusted)
    assert {name for name in before["code"] if before["code"][name] != after["code"][name]} == {"tables_mine.py"}


def test_the_classifiers_code_is_taken_at_the_revision_of_the_weights_beside_it(hub: Path, tmp_path: Path) -> None:
    publish(hub, "org/code", write_code(tmp_path / "code"), "older")
    publish(hub, "org/same", write_code(tmp_path / "same", "org/same"), "older")
    publish(hub, "org/borrowed", write_code(tmp_path / "borrowed", "org/code"), "older")
    revisions = {
        name: code_revision(Checkpoint(name, "teacher.model", revision="older", trust_remote_code=True))
        for name in ("org/code", "org/same", "org/borrowed")
    }
    assert revisions == {"org/code": "older", "org/same": "older", "org/borrowed": None}
    assert code_revision(Checkpoint("org/code", "teacher.model", revision="older")) is None


@pytest.mark.parametrize("text", ["[1]", "{", "\xff"])
def test_a_configuration_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"^teacher\.model: the configuration of .* cannot be loaded"):
        raw_config(Checkpoint(str(tmp_path), "teacher.model"))
