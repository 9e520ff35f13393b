"""The files of a data set's folder: those that it lists, of the split that it says; checked against the library."""

import datasets
import pytest

from ado_stream.errors import ConfigError, NotFound
from ado_stream.prepare.input_files import find_input_files

CARD = """---
license: mit
configs:
- config_name: en
  data_files:
  - split: train
    path: [a/*.jsonl, "**/more.jsonl"]
  - {split: quiz, path: q/**}
  - split: test
    path: b/0.jsonl
- config_name: de
  data_files: de/x.jsonl
---
# A data set
"""


def _write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text('{"text": "x"}\n')


def _found(given, split="train"):
    found = find_input_files([given], split, True)
    return [file.path.removeprefix(f"{given}/") for file in found.files], found.left_out


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """As save_to_disk writes it, with what `map` caches beside it."""
    place = tmp_path_factory.mktemp("saved") / "tiny"
    texts = {
        name: datasets.Dataset.from_dict({"text": [f"{name} {n}" for n in range(9)]}) for name in ("train", "eval")
    }
    datasets.DatasetDict(**texts, quiz=texts["eval"]).save_to_disk(place)
    datasets.load_from_disk(place / "train").map(lambda row: {"text": row["text"].upper()})
    assert len(list((place / "train").glob("*.arrow"))) == 2
    return place


@pytest.mark.parametrize("below", ["", "up/and/up"])
def test_of_a_saved_data_set_the_training_files_are_read_and_what_map_cached_is_not(saved, tmp_path, below):
    root = saved
    if below:
        (tmp_path / below).mkdir(parents=True)
        (tmp_path / below / "tiny").symlink_to(saved)
        root = tmp_path
    files, left_out = _found(root)
    assert [file.removeprefix(f"{below}/tiny/") for file in files] == ["train/data-00000-of-00001.arrow"]
    assert left_out["file that its data set does not list"] == 1
    assert left_out["held-out file of a Hugging Face data set"] == 1
    assert left_out["split 'quiz' file of a Hugging Face data set"] == 1
    assert [file[-35:] for file in _found(root, "val")[0]] == ["eval/data-00000-of-00001.arrow"[-35:]] or below


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", ["train", "eval", "quiz"])
def test_a_split_that_is_named_itself_is_read_for_what_it_is_named_for(saved, name, split):
    assert _found(saved / name, split)[0] == ["data-00000-of-00001.arrow"]


def test_the_files_of_a_card_are_those_of_the_library(tmp_path):
    root = tmp_path / "set"
    _write(root, "a/0.jsonl", "a/1.jsonl", "b/0.jsonl", "b/1.jsonl", "q/0.jsonl", "z/more.jsonl", "de/x.jsonl")
    (root / "README.md").write_text(CARD)
    files, left_out = _found(root)
    library = [datasets.load_dataset_builder(str(root), name).config.data_files["train"] for name in ("en", "de")]
    assert sorted(files) == sorted(file.removeprefix(f"{root}/") for some in library for file in some)
    assert left_out == {
        ".md file, not of a known kind": 1,
        "held-out file of a Hugging Face data set": 1,
        "file that its data set does not list": 1,
        "split 'quiz' file of a Hugging Face data set": 1,
    }


@pytest.mark.parametrize(
    "name", ["evaluation.jsonl", "a_test_b.jsonl", "test/x/y/0.jsonl", "my-dev/0.jsonl", "val1.jsonl"]
)
def test_a_word_anywhere_in_a_path_says_that_a_file_is_held_out_as_for_the_library(tmp_path, name):
    root = tmp_path / "set"
    _write(root / "data", "train.jsonl", name)
    (root / "README.md").write_text("---\n---\n")
    splits = datasets.load_dataset_builder(str(root)).config.data_files
    assert not any(file.endswith(name) for file in splits.get("train", []))
    assert _found(root)[0] == ["data/train.jsonl"]


@pytest.mark.parametrize("text", ["[", '{"_data_files": 3}', '{"_data_files": [{"filename": 3}]}'])
def test_a_list_of_odd_shape_is_named(tmp_path, text):
    _write(tmp_path, "data.jsonl", "dataset_info.json")
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(ConfigError, match=r"state\.json"):
        _found(tmp_path)


@pytest.mark.parametrize(
    "pattern",
    ["../../**/*", "**/" * 20 + "x", "/etc/*", "a\\0b", "x" * 5000, "[", "***/a", "https://h/x", "~/x", ""],
)
def test_a_pattern_of_any_shape_is_no_failure_and_leaves_the_folder_alone(tmp_path, pattern):
    _write(tmp_path, "a/x.jsonl", *(f"{'/'.join('abcdefghij'[:n])}/y.jsonl" for n in range(1, 10)))
    (tmp_path / "README.md").write_text(
        f'---\nconfigs:\n- data_files: [a/x.jsonl, {{split: test, path: "{pattern}"}}]\n---\n'
    )
    files, left_out = _found(tmp_path)
    assert files == ["a/x.jsonl"]
    assert left_out["file that its data set does not list"] == 9


def test_a_card_that_is_not_yaml_is_named(tmp_path):
    _write(tmp_path, "data/x.jsonl")
    (tmp_path / "README.md").write_text("---\nconfigs: [\n---\n")
    with pytest.raises(ConfigError, match=r"README\.md: not YAML"):
        _found(tmp_path)


def test_a_listed_file_that_is_not_there_is_named(tmp_path):
    """Of a download that was not finished; the library refuses it, too."""
    datasets.Dataset.from_dict({"text": [*"abcdef"]}).save_to_disk(tmp_path / "tiny", num_shards=3)
    (tmp_path / "tiny" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(NotFound, match=r"data-00001-of-00003\.arrow: no such file, but .*state\.json lists it"):
        _found(tmp_path / "tiny")


def test_a_card_of_thousands_of_configurations_is_read_and_one_of_a_billion_is_refused(tmp_path):
    _write(tmp_path, "de/x.jsonl", "en/x.jsonl", "en/y.jsonl")
    configs = "".join(f"- {{config_name: c{n}, data_files: {n}/*.jsonl}}\n" for n in range(4000))
    card = "---\nconfigs:\n{}- {{config_name: en, data_files: [{{split: quiz, path: en/y.jsonl}}, en/x.jsonl]}}\n---\n"
    (tmp_path / "README.md").write_text(card.format(configs))
    assert _found(tmp_path)[0] == ["en/x.jsonl"]
    paths = ", ".join(["q"] * 99)
    first = f"- &first {{data_files: [{{path: &paths [{paths}]}}, {', '.join(['{path: *paths}'] * 99)}]}}"
    (tmp_path / "README.md").write_text("\n".join(["---", "configs:", first, *["- *first"] * 99, "---", ""]))
    with pytest.raises(ConfigError, match=r"README\.md: over 100,000 patterns"):
        _found(tmp_path)


def test_a_split_that_is_no_text_is_that_of_training(tmp_path):
    """Of a number of thousands of digits, or a list of aliases, there is no text that memory holds."""
    _write(tmp_path, "x.jsonl", "y.jsonl", "z.jsonl")
    bomb = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
    entries = [f"split: 0x{'f' * 5000}, path: x.jsonl", "split: *a29, path: y.jsonl"]
    entries = "".join(f"  - {{{each}}}\n" for each in entries)
    (tmp_path / "README.md").write_text(f"---\na0: &a0 [1]\n{bomb}configs:\n- data_files:\n{entries}---\n")
    assert _found(tmp_path)[0] == ["x.jsonl", "y.jsonl"]
