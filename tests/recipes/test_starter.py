"""A model to start from takes no folder that holds something else."""

import pytest

from rlft.errors import ConfigError
from rlft.recipes.smollm2 import build_smollm2
from rlft.recipes.starter import build_starter, check_replaceable


@pytest.mark.parametrize("build", [build_starter, build_smollm2])
def test_a_folder_that_holds_something_else_is_left_alone_and_told_before_any_work(tmp_path, build):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds no model that rlft made; nothing in it is removed: choose another --out"):
        build(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_empty_folder_and_one_made_by_another_version_may_be_filled_anew(tmp_path):
    check_replaceable(tmp_path, tmp_path / "starter.sha256")
    (tmp_path / "starter.sha256").write_text("another version")
    check_replaceable(tmp_path, tmp_path / "starter.sha256")
    check_replaceable(tmp_path / "new", tmp_path / "new" / "starter.sha256")
