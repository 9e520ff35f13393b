"""Which files an input names, in which order, and the domain of each."""

import pytest

from ado_stream.errors import ConfigError, NotFound
from ado_stream.prepare.input_files import file_kind, find_input_files


def _touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


def _found(root, inputs, split="train", by_path=True):
    files = find_input_files(inputs, split, by_path)
    return [(str(file.path).removeprefix(f"{root}/"), file.domain) for file in files]


def test_the_domain_is_the_first_name_below_the_input(tmp_path):
    _touch(tmp_path, "wiki/b/2.txt", "wiki/a.txt", "code.jsonl.zst", "law/x.parquet", "law/README", ".git/config.txt")
    assert _found(tmp_path, [tmp_path]) == [
        ("code.jsonl.zst", "code"),
        ("law/x.parquet", "law"),
        ("wiki/a.txt", "wiki"),
        ("wiki/b/2.txt", "wiki"),
    ]


def test_a_file_given_by_itself_names_its_domain_and_inputs_keep_their_order(tmp_path):
    _touch(tmp_path, "z.jsonl", "a.jsonl.gz")
    inputs = [tmp_path / "z.jsonl", tmp_path / "a.jsonl.gz"]
    assert _found(tmp_path, inputs) == [("z.jsonl", "z"), ("a.jsonl.gz", "a")]


@pytest.mark.parametrize("mark", ["dataset_info.json", "dataset_dict.json", "README.md"])
def test_a_hugging_face_folder_is_one_domain_without_its_held_out_files(tmp_path, mark):
    root = tmp_path / "tiny"
    _touch(root, "data/train-00000-of-00001.parquet", "data/validation-00000.parquet", "data/test.parquet")
    _touch(root, "data/testament.parquet")
    (root / mark).write_text("---\nlicense: mit\n---\n")
    assert _found(root, [root]) == [
        ("data/testament.parquet", "tiny"),
        ("data/train-00000-of-00001.parquet", "tiny"),
    ]
    assert _found(root, [root], split="val") == [
        ("data/test.parquet", "tiny"),
        ("data/validation-00000.parquet", "tiny"),
    ]
    assert [name for name, _ in _found(tmp_path, [tmp_path])] == [
        "tiny/data/testament.parquet",
        "tiny/data/train-00000-of-00001.parquet",
    ]


def test_missing_unknown_empty_and_doubled_inputs_are_named(tmp_path):
    _touch(tmp_path, "a/1.txt", "b.pdf", "only/c.pdf")
    with pytest.raises(NotFound, match="nowhere: no such file"):
        find_input_files([tmp_path / "nowhere"], "train", True)
    with pytest.raises(ConfigError, match=r"b.pdf: unknown kind"):
        find_input_files([tmp_path / "b.pdf"], "train", True)
    with pytest.raises(ConfigError, match="only: no readable file"):
        find_input_files([tmp_path / "only"], "train", True)
    with pytest.raises(ConfigError, match=r"1.txt: given twice"):
        find_input_files([tmp_path / "a", tmp_path / "a" / "1.txt"], "train", True)


def test_a_folder_without_text_is_an_empty_domain_only_where_folders_are_domains(tmp_path):
    _touch(tmp_path, "a/1.txt", "pictures/c.png")
    with pytest.raises(ConfigError, match="domain 'pictures' has no document"):
        find_input_files([tmp_path], "train", by_path=True)
    assert len(find_input_files([tmp_path], "train", by_path=False)) == 1


def test_kinds():
    assert file_kind("c4-train.00000-of-01024.json.gz") == "lines"
    assert file_kind("data.json") is None
